"""The judge on a model that a command line names: from its file to its report."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from mixtrain_jax import certify as certify_lib
from mixtrain_jax import data, environment, foreign
from mixtrain_jax.certify import METHODS, Judgement, Threat
from mixtrain_jax.errors import CertificateError, ConfigError
from mixtrain_jax.fingerprints import fingerprint, sha256_of_files
from mixtrain_jax.report import judgement as report
from mixtrain_jax.report.display import Display
from mixtrain_jax.runs import load_run
from mixtrain_jax.training.rundir import RunDir


class Source(NamedTuple):
    """Where a model and its images come from; the fields are those of the command line."""

    model: str
    data: str | None = None
    data_dir: Path | None = None
    params: Path | None = None
    per_example: bool = False
    output: str | None = None


class Subject(NamedTuple):
    """A model, and the data that it is judged on."""

    apply: Any
    params: Any
    name: str
    dataset: data.Dataset
    threat: Threat | None  # that it was trained for, where that is known


def judge(
    source: Source,
    display: Display,
    *,
    eps: float | None = None,
    norm: Literal["linf", "l2"] | None = None,
    examples: int = 1000,
    attacks: str = "strong",
    certify: Sequence[str] = METHODS,
    skip_proved: bool = False,
    complete: float | None = None,
    curve_examples: int = 100,
    batch_size: int = 128,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Judge a model on the first test images, write the report, and return its numbers.

    Args:
      source: the model and its data.
      display: shows what happens.
      eps: radius in pixel units; by default that of the run.
      norm: of the ball; by default that of the run, else linf.
      examples: how many of the first test images; 0 for all.
      attacks: name of a `certify.suite`.
      certify: names of bounds, cheapest first.
      skip_proved: as for `certify.judge`.
      complete: seconds of complete verification for each image that is still open then; None for none.
      curve_examples: as for `certify.judge`.
      batch_size: as for `certify.judge`.
      seed: of the attacks.
      out: folder of the report; by default `judgements/NAME-NORM-EPS`.

    Raises:
      MixtrainError: one of its kinds, each with the exit code of the command line; the message says what to do.
    """
    if examples < 0 or curve_examples < 0 or batch_size < 1:
        raise ConfigError(
            f"judge wants examples and curve_examples of 0 or more and a batch_size of 1 or more, "
            f"got {examples}, {curve_examples} and {batch_size}."
        )
    if complete is not None and not complete > 0:
        raise ConfigError(f"judge wants complete to be seconds above 0 for an image, got {complete:g}.")
    _check_before_loading("judge", source, eps, norm or "linf")
    subject = load(source, display)
    threat = _threat(subject, eps, norm)
    split = subject.dataset.test[: examples or len(subject.dataset.test)].floats()
    folder = RunDir(out or Path("judgements") / f"{subject.name}-{threat.norm}-{threat.eps:g}")
    display.note(f"Judging {subject.name} on {len(split)} images of {subject.dataset.name}, {threat}.")
    for doubt in threat.doubts(split.images.shape[1:]):
        display.note(doubt)
    methods = certify_lib.methods(certify)
    found = certify_lib.judge(
        subject.apply,
        subject.params,
        split,
        threat,
        key=jax.random.key(seed),
        attacks=certify_lib.suite(attacks, threat),
        methods=methods,
        skip_proved=skip_proved,
        seconds=complete,
        curve_examples=curve_examples,
        batch_size=batch_size,
        poll=display.progress,
    )
    about = {
        "model": subject.name,
        "data": subject.dataset.name,
        "seed": seed,
        "attacks": attacks,
        "skip_proved": skip_proved,
        "params_sha256": fingerprint(subject.params),
        "device": environment.device(),
        **environment.versions(environment.TRAINING),
    }
    numbers = {**report.to_json(found, split), **about}
    certificates = _certificates(found, subject, split, display) if threat.norm == "linf" and methods else None
    folder.make()
    arrays = {"adversarial.npz": _adversarial(found), "certificates.jsonl": certificates}
    hashes = sha256_of_files(arrays)
    folder.write_all(
        {
            "judgement.json": _json({**numbers, "files_sha256": hashes}),
            "robustbench.json": _json(report.robustbench(numbers, subject.name, subject.dataset.name)),
            "report.html": report.render(found, numbers, split, about),
            **arrays,  # certificates are the last: there are none without their judgement
        }
    )
    report.show(display.console, numbers)
    display.note(f"Report: {folder.path / 'report.html'}")
    return numbers


def verify(file: Path, source: Source, display: Display, *, eps: float | None = None, examples: int = 0) -> bool:
    """Check a file of certificates against a model, its test images and a threat, and show what they prove.

    Args:
      file: the certificates.
      source: the model and its data.
      display: shows what happens.
      eps: radius in pixel units, in the l-infinity norm; by default that of the run.
      examples: of how many of the first test images; 0 for all.

    Returns:
      Whether all certificates of these images hold.

    Raises:
      MixtrainError: one of its kinds; the message says what to do.
    """
    if examples < 0:
        raise ConfigError(f"verify-certificate wants examples of 0 or more, got {examples}.")
    certificates = certify_lib.read(file)
    _check_before_loading("verify-certificate", source, eps)
    subject = load(source, display)
    threat = _threat(subject, eps, "linf")  # that of certificates
    test = subject.dataset.test
    split = test[: examples or len(test)]
    indices = [record.index for record in certificates.records if not examples or record.index < len(split)]
    checked = certify_lib.verify(
        certificates, subject.apply, subject.params, split, threat, indices=indices, poll=display.progress
    )
    images = f"the {len(test)} test images of {subject.dataset.name}"
    report.show_check(display.console, checked, f"the first {len(split)} of {images}" if examples else images)
    if later := len(certificates.records) - len(indices):
        display.note(f"{later} certificates of later images were not looked at.")
    if (tried := certificates.header.images) < len(split):
        display.note(f"The file says that {tried} images were tried; --examples {tried} counts among those.")
    return bool(checked.accepted.all())


def _check_before_loading(
    command: str, source: Source, eps: float | None, norm: Literal["linf", "l2"] = "linf"
) -> None:
    _check_source(source)
    if eps is None and not _is_run(source):
        raise ConfigError(f"{command} wants --eps for {source.model}, which is no run folder.")
    if eps is not None:
        Threat(eps, norm=norm)


def _threat(subject: Subject, eps: float | None, norm: Literal["linf", "l2"] | None) -> Threat:
    trained = subject.threat
    norm = norm or (trained.norm if trained else "linf")
    if eps is None:
        assert trained is not None  # runs have one
        if norm != trained.norm:
            raise ConfigError(f"{subject.name} was trained for the norm {trained.norm}; say --eps for {norm}.")
        return trained
    return Threat(eps, subject.dataset.domain, norm)


def load(source: Source, display: Display) -> Subject:
    """Read the model and its data.

    Raises:
      ConfigError: where an option is missing.
      ModelError: where the model cannot be read.
      DataError: where the data are missing or damaged.
    """
    _check_source(source)
    folder = Path(source.model)
    if _is_run(source):
        run = load_run(folder, tell=display.note)
        dataset = data.load(source.data or run.config.data.name, source.data_dir, display.progress)
        return Subject(run.apply, run.params, folder.name, dataset, run.threat)
    assert source.data is not None  # it is checked
    dataset = data.load(source.data, source.data_dir, display.progress)
    shape = dataset.test.images.shape[1:]
    if source.model.endswith(".onnx"):
        model = _onnx(source, shape)
    else:
        model = foreign.load_model(source.model, shape=shape, params=source.params, per_example=source.per_example)
    for note in model.notes:
        display.note(note)
    if model.classes != dataset.classes:
        raise ConfigError(f"{model.name} has {model.classes} classes, but {dataset.name} has {dataset.classes}.")
    return Subject(model.apply, model.params, Path(model.name).stem, dataset, None)


def _is_run(source: Source) -> bool:
    return (Path(source.model) / "config.json").exists()


def _check_source(source: Source) -> None:
    """Find what is wrong with the names of a model and its data before anything is loaded.

    Raises:
      ConfigError: where the model does not exist, or has no data.
    """
    path = Path(source.model)
    if not path.exists() and ":" not in source.model:
        raise ConfigError(
            f"There is no {source.model}. A model is a run folder, FILE.onnx or package.module:attribute; paths are "
            f"looked up from {Path.cwd()}."
        )
    if path.is_dir() and not _is_run(source):
        raise ConfigError(f"{path} is no run folder: it has no config.json.")
    if source.data is None and not _is_run(source):
        raise ConfigError(f"judge wants --data for {source.model}, which is no run folder.")


def _certificates(found: Judgement, subject: Subject, split: data.Split, display: Display) -> str | None:
    """The text of the certificates, or None where there can be none."""
    try:
        certificates = certify_lib.certificates_of(found.evaluation, subject.apply, subject.params, split)
    except CertificateError as error:  # the numbers hold all the same
        display.note(f"No certificates are written: {error}")
        return None
    return certify_lib.text(certificates)


def _onnx(source: Source, shape: tuple[int, ...]) -> foreign.Model:
    if source.params is not None or source.per_example:
        raise ConfigError(f"{source.model} is an ONNX file, which has its own parameters and batch: leave them out.")
    return foreign.load_onnx_for(source.model, shape, output=source.output)


def _json(values: Any) -> str:
    return json.dumps(values, indent=2) + "\n"


def _adversarial(found: Judgement) -> bytes:
    """The points that broke images, and which ones, as the bytes of an `.npz` file."""
    rows = np.flatnonzero(found.evaluation.broken_by != "")
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        index=rows,
        adversarial=found.evaluation.adversarial[rows],
        seen_as=found.evaluation.seen_as[rows],
        broken_by=found.evaluation.broken_by[rows],
    )
    return buffer.getvalue()
