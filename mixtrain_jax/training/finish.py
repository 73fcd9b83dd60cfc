"""The end of a run: certification on the test set, and the report."""

from __future__ import annotations

import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp

from mixtrain_jax import certify, data, environment, image_table, parallel
from mixtrain_jax.attacks import non_finite_gradient, pgd
from mixtrain_jax.fingerprints import fingerprint, sha256_of_files
from mixtrain_jax.report import page
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.measure import median_step
from mixtrain_jax.training.records import CURVE, curve_text
from mixtrain_jax.training.resume import Saved, chosen
from mixtrain_jax.training.rundir import RunDir
from mixtrain_jax.training.setup import Setup
from mixtrain_jax.training.signals import Stop

_LOOKED_AT = 64  # test images, for gradients that attacks cannot follow


def finish(setup: Setup, saved: Saved, folder: RunDir, stop: Stop, display: Display) -> dict[str, Any]:
    """Certify the chosen state on the whole test set and write the report; the summary comes last: the run has ended.

    Raises:
      PreemptedError, InterruptedRunError: after a signal; training is saved.
      SoundnessError: where an image is both proved and broken.
    """
    config, dataset = setup.config, setup.dataset
    saved = parallel.fetch(saved)
    step, params = chosen(saved)
    realised = jax.jit(config.reparam.realise)(jax.tree.map(jnp.asarray, params))
    logits_fn = functools.partial(setup.network, realised)
    spread = parallel.data_parallel(setup.mesh)

    agree = parallel.vote(setup.mesh)

    def poll(what: str, done: int, total: int) -> None:
        display.progress(what, done, total)
        if number := agree(stop.signal or 0):
            raise stop.error(number, "training is saved, certification starts anew")

    started = time.monotonic()
    display.note(f"Measuring on the {len(dataset.test)} test images.")
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    methods = certify.methods(config.certify.bounds)
    attacks = {
        "pgd": functools.partial(pgd, steps=config.certify.attack_steps, restarts=config.certify.attack_restarts)
    }
    evaluation = certify.evaluate(
        key, logits_fn, dataset.test, setup.threat, attacks=attacks, methods=methods, poll=poll, spread=spread
    )
    completion = None
    if config.certify.complete:
        seconds = config.certify.complete
        evaluation, completion = certify.complete(evaluation, setup.network, realised, dataset.test, seconds, poll=poll)
    curve = None
    if few := min(config.certify.curve_examples, len(dataset.test)):
        curve = certify.measure_curve(
            key,
            logits_fn,
            dataset.test[:few],
            evaluation.first(few),
            methods=methods,
            attack_steps=config.certify.attack_steps,
            poll=poll,
            spread=spread,
        )
    few = dataset.test[:_LOOKED_AT].floats()
    if warning := non_finite_gradient(logits_fn, jnp.asarray(few.images), jnp.asarray(few.labels)):
        display.note(f"Mind: {warning}. Attacks, that of training too, follow the other entries.")
    proving = [*methods, *(["complete"] if completion else [])]
    branched = " and complete verification" if completion else ""
    summary = {
        **evaluation.accuracies(),
        "eps": config.threat.eps,
        "method": ", ".join(proving),
        "attack": f"PGD {config.certify.attack_steps} steps x {config.certify.attack_restarts} starts{branched}",
        "seconds": float(saved.seconds),
        "step_seconds": parallel.broadcast_from_zero(lambda: median_step(folder.metrics())),
        "certify_seconds": time.monotonic() - started,
        "seed": config.seed,
        "test_examples": len(dataset.test),
        "verified_by": {name: int((evaluation.proved_by == name).sum()) for name in proving},
        **({"complete": completion.summary()} if completion else {}),
        "step": step,
        "skipped": int(saved.state.bad.skipped),
        "warnings": [warning] if warning else [],
        "params_sha256": fingerprint(params),
        "state_sha256": fingerprint(saved.state),
        "versions": environment.versions(environment.TRAINING),
        "device": environment.device(),
    }

    def write() -> None:
        content = page.render(config, summary, folder.metrics(), evaluation, curve, dataset.test)
        arrays = {"certificates.npz": certificates(evaluation, dataset.test), CURVE: curve_text(curve)}
        told = {**summary, "files_sha256": sha256_of_files(arrays)}
        folder.write_all({"report.html": content, **arrays, "summary.json": json.dumps(told, indent=2) + "\n"})

    parallel.on_process_zero(write)
    return summary


def certificates(evaluation: certify.Evaluation, split: data.Split) -> bytes:
    """What is known of each test image, in their order, as the bytes of an `.npz` file."""
    return image_table.pack({"labels": split.labels, **vars(evaluation)})
