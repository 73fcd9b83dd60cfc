"""Many devices: the same numbers as on one, what their talk costs, and how long ImageNet takes on many.

    python benchmarks/scaling.py agree [--data-dir DIR]
    python benchmarks/scaling.py order
    python benchmarks/scaling.py talk
    python benchmarks/scaling.py page

`agree` trains the digits, and MNIST where it is prepared, on 1 and on 8 devices of this machine's processors and in two
processes of two devices, and compares losses and parameters. `talk` times what devices send each other in a step,
computation left out. Both write what they found to benchmarks/scaling.json, and `page` writes docs/scaling.md from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from fault_cases import processes
from jax.sharding import PartitionSpec
from results_page.numbers import table

from mixtrain_jax import certify, config, environment, experiment, losses, models, parallel
from mixtrain_jax.bounds import linf_ball, margins
from mixtrain_jax.fingerprints import fingerprint

HERE = Path(__file__).parent
RECORD, PAGE = HERE / "scaling.json", HERE.parent / "docs" / "scaling.md"
COUNTS = (1, 2, 4, 8)
# Name: arguments of train.py. Certifying is no part of the question.
RUNS = {
    "digits, 120 steps": ["digits", "--training.epochs", "13", "--training.points", "12"],
    "mnist_small at 0.3, 430 steps": [
        "mnist_small_0.3",
        "--training.epochs",
        "1",
        "--training.points",
        "10",
        "--training.measure",
        "500",
    ],
}
BRIEF = [
    "--certify.bounds",
    "ibp",
    "--certify.attack-steps",
    "1",
    "--certify.attack-restarts",
    "1",
    "--certify.curve-examples",
    "0",
]
PLACES = {"8 devices": (1, 8), "2 processes of 2 devices": (2, 2)}


class Run(NamedTuple):
    """What a run left behind."""

    losses: np.ndarray  # [rows, 2]: clean and robust
    params: dict[str, np.ndarray]


def trained(arguments: list[str], processes_: int = 1, devices: int = 1, flags: str = "") -> Run:
    """Train with train.py in so many processes of so many devices each, compiled with XLA's flags."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        begun = processes.begin([*arguments, "--workdir", str(workdir)], processes_, devices, flags)
        with processes.ending(begun) as started:
            told = processes.errors(started, 3600)
        if any(process.returncode for process in started):
            sys.exit(f"A run ended with {[process.returncode for process in started]}: {told[0][-500:]}")
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return Run(np.array([[row["clean_loss"], row["robust_loss"]] for row in rows]), processes.params(workdir))


def agree(data_dir: str | None) -> list[dict[str, Any]]:
    """How far runs on many devices are from the one on one device, and for comparison others on one device."""
    rows = []
    for name, arguments in RUNS.items():
        if data_dir is None and not arguments[0].startswith("digits"):
            continue
        arguments = [*arguments, *BRIEF, *(["--data-dir", data_dir] if data_dir else [])]
        first = trained(arguments)
        others = {place: trained(arguments, *many) for place, many in PLACES.items()}
        others["1 device, compiled otherwise"] = trained(arguments, flags=processes.QUICK)
        others["1 device, another seed"] = trained([*arguments, "--seed", "1"])
        for place, other in others.items():
            rows.append(
                {
                    **{"run": name, "place": place},
                    "first": float(np.abs(other.losses / first.losses - 1)[0].max()),
                    "loss": float(np.abs(other.losses / first.losses - 1).max()),
                    "params": max(
                        float(np.abs(first.params[leaf] - other.params[leaf]).max()) for leaf in first.params
                    ),
                    "largest": max(float(np.abs(leaf).max()) for leaf in first.params.values()),
                }
            )
            print(rows[-1], flush=True)
    return rows


ORDERED = ("digits", "digits_cnn")
STEPS, ROUNDS = 20, 9


def order() -> list[dict[str, Any]]:
    """Milliseconds of a step with sums as devices have them and in a fixed order, and whether those have equal bits."""
    rows = []
    for name in ORDERED:
        whole = config.load(name, HERE.parent / "configs")
        ends, times = {}, {}
        for count in COUNTS:
            runs = [_run_of(dataclasses.replace(whole, microbatches=m), count) for m in (0, max(COUNTS))]
            seconds = np.array([[take() for take, _ in runs] for _ in range(ROUNDS)]) / STEPS  # in turns
            times[count], ends[count] = seconds, runs[1][1]()
        for count, seconds in times.items():
            plain, ordered = np.median(seconds, 0)
            ratio = float(np.median(seconds[:, 1] / seconds[:, 0]))
            same = ends[count] == ends[1]
            rows.append({"run": name, "devices": count, "plain_ms": 1e3 * plain, "ordered_ms": 1e3 * ordered})
            rows[-1] |= {"ratio": ratio, "equal": same, "steps": STEPS * ROUNDS}
    return rows


def _run_of(of: config.Config, count: int) -> tuple[Callable[[], float], Callable[[], str]]:
    """What takes the next steps of a run and returns their seconds, and what returns the hash of its state."""
    made = experiment.trainer(of, mesh=parallel.data_mesh(jax.devices()[:count]))
    state, done = made.initial, 0

    def take() -> float:
        nonlocal state, done
        started = time.perf_counter()
        state = jax.block_until_ready(made.advance(state, done, done + STEPS))
        done += STEPS
        return time.perf_counter() - started

    return take, lambda: fingerprint(parallel.fetch(state))


def on_devices(what: str) -> list[dict[str, Any]]:
    """What a measurement of this page finds in a process that has eight devices."""
    environment_ = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={max(COUNTS)}"}
    environment_ |= {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__, what, "--print"], env=environment_, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def talk() -> list[dict[str, Any]]:
    """Milliseconds of what devices send each other in a step, by the number of devices, each with 16 examples.

    Every device has its own sums of gradients of the size of imagenet200_resnet, which are added up twice, for
    the clean and for the robust part; one example in eight is drawn from the whole batch and dealt out again.
    """
    network = models.build("resnet_imagenet", classes=200)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    gradient = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    rows = []
    for count in COUNTS:
        mesh, each = parallel.data_mesh(jax.devices()[:count]), 16
        n, k = each * count, each * count // 8
        images = parallel.put(np.zeros((n, 64, 64, 3), np.float32), mesh, "rows")
        whole = parallel.put(gradient, mesh, "replicated")

        def add(tree: Any, mesh: Any = mesh) -> Any:
            return jax.shard_map(
                lambda own: jax.lax.psum(own, "data"),
                mesh=mesh,
                in_specs=PartitionSpec(),
                out_specs=PartitionSpec(),
                check_vma=False,
            )(tree)

        def deal(images: jax.Array, key: jax.Array, n: int = n, k: int = k, mesh: Any = mesh) -> jax.Array:
            chosen = jax.random.permutation(key, n)[np.minimum(np.arange(parallel.padded(k, mesh)), k - 1)]
            return parallel.constrain(images[chosen], mesh, "rows")

        key = parallel.put(jax.random.key(0), mesh, "replicated")
        rows.append(
            {
                "devices": count,
                "gradients_ms": 2e3 * median(jax.jit(add), whole),
                "subsample_ms": 1e3 * median(jax.jit(deal), images, key),
            }
        )
    return rows


def median(f: Callable[..., Any], *arguments: Any) -> float:
    """Median seconds of a call, compilation apart."""
    jax.block_until_ready(f(*arguments))
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def flops() -> dict[str, Any]:
    """Operations an example that XLA counts in the gradients of the clean loss and of the robust loss by IBP."""
    found: dict[str, Any] = {}
    for classes in (200, 1000):
        network = models.build("resnet_imagenet", classes=classes)
        images, labels = jnp.zeros((16, 64, 64, 3)), jnp.zeros(16, jnp.int32)
        params = jax.eval_shape(network.init, jax.random.key(0), images)

        def clean(params: Any, images: jax.Array, labels: jax.Array, network: Any = network) -> jax.Array:
            return losses.clean_loss(network.apply(params, images), labels).mean()

        def robust(params: Any, images: jax.Array, labels: jax.Array, network: Any = network) -> jax.Array:
            method = certify.methods(["ibp"], sound=False)["ibp"]
            lower = margins(method, lambda x: network.apply(params, x))(linf_ball(images, 0.007, (0.0, 1.0)), labels)
            return losses.robust_loss(lower).mean()

        counts = [
            jax.jit(jax.grad(loss)).lower(params, images, labels).compile().cost_analysis()["flops"] / 16
            for loss in (clean, robust)
        ]
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        found[str(classes)] = {"clean_flops": counts[0], "robust_flops": counts[1], "parameters": size}
    return found


# Dense bfloat16 operations a second, bytes a second between 8 neighbours and between more, each way, as published.
MACHINES = {
    "TPU v5e": (197e12, 100e9, 100e9),  # 1600 Gbit/s in all from a chip, both ways, in pods of 256; slower beyond
    "H100 SXM": (989e12, 450e9, 50e9),  # NVLink 4 within a host, 400 Gbit/s InfiniBand a GPU between them
}
LATENCY = 10e-6  # seconds of a message between devices, an assumption
OVERHEAD = 2e-3  # seconds of a step that a device spends on starting a few hundred kernels, an assumption
SHARES = (0.02, 0.1)  # of the peak that these small convolutions reach, an assumption until it is measured
RUNS_OF = {  # examples, epochs, classes
    "ImageNet-200": (100_000, 60, 200),
    "ImageNet-1k at 64x64": (1_281_167, 60, 1000),
}
MOST = 8192  # examples in a batch; larger ones need another learning rate, and train worse


def hours(machine: str, devices: int, name: str, share: float, counts: dict[str, Any]) -> tuple[float, float]:
    """Hours of a run, and the share of them that devices talk."""
    peak, near, far = MACHINES[machine]
    examples, epochs, classes = RUNS_OF[name]
    count = counts[str(classes)]
    each = min(128, MOST // devices)
    compute = each * (count["clean_flops"] + count["robust_flops"] / 8) / (peak * share)
    # The clean gradient once and the robust one in up to three parts; a sum passes every link twice.
    sent = 4 * count["parameters"] * 4 * 2 * (devices - 1) / devices / (near if devices <= 8 else far)
    dealt = each / 8 * 64 * 64 * 3 * 4 / far
    talk = sent + dealt + 6 * LATENCY * math.log2(devices)
    steps = epochs * examples / (each * devices)
    step = compute + talk + OVERHEAD
    return steps * step / 3600, talk / step


TEXT = """# Many devices

## The same numbers

Training is one program for any number of devices ([architecture.md](architecture.md)): the same examples and
subsamples, sums in another order. Largest difference to the run on one device, of the losses of the first row of the
log (the mean of a tenth of the run) and of all rows, relative, and of the final parameters, absolute, beside the
largest parameter:

{agree}

Training amplifies rounding: Adam takes the sign of gradients that are next to nothing, and a unit turned on or off by
one step is in all that follow. So the measure is the run on one device whose program was compiled otherwise, without
XLA's optimizations.

With `microbatches = 8` gradients are summed over eight fixed parts of a batch in a fixed order, and a run ends with the
same bits on 1, 2, 4 and 8 devices. What that costs, on devices that are threads of one machine; the ratio is the median
over rounds in turns, taken while other work had most of the two cores:

{order}

Products of matrices of a few examples use a processor less well. Where each device has one part, its work is that of a
plain step, and as many bytes are sent.

## What devices tell each other

In a step devices add up their gradients and deal out the subsample; within a bound they are silent, which a test reads
in the compiled programs. So many devices cost what they cost ordinary data-parallel training, and a few images. With
computation left out: two sums of gradients the size of `imagenet200_resnet` (740,000 parameters), and one example in
eight drawn from the whole batch, 16 examples a device, and dealt out again; medians of 30:

{talk}

Taken on {device}: the devices are threads that share its processors and its memory, so this counts the work of
communication and says nothing of links.

## How long ImageNet would take

*An estimate, not a measurement.* The network of `imagenet200_resnet` on 64x64 pixels, IBP on 1 example in 8, 60 epochs.
XLA counts {counted} million operations an example in the gradients of the clean and of the robust loss.
A device has 128 examples, or as many as keep the batch at {most:,}. Peaks and links are as their makers publish them
(TPU v5e: 197 Tflop/s, 100 GB/s each way; H100: 989 Tflop/s, 450 GB/s within a host of 8, 50 GB/s between hosts); a
message takes {latency:.0f} microseconds, and starting the kernels of a step {overhead:.0f} ms. What share of its peak a
device reaches on such small convolutions was not measured, so there are two columns.

{hours}

So a network this small is soon bound by the start of its kernels and by latency: beyond 64 devices there is little to
gain. And reading has to keep up: the fastest line wants {rate:,.0f} images a second over all hosts, where two cores
read 7,400, so the images would have to live on the devices, as small data sets do.

`python benchmarks/scaling.py` makes this page; see its first lines.
"""


def page() -> None:
    """Write docs/scaling.md from what was measured."""
    record = json.loads(RECORD.read_text())
    counts = record["flops"]
    agreed = [
        (
            row["run"],
            row["place"],
            *(f"{row[name]:.1e}" for name in ("first", "loss", "params")),
            f"{row['largest']:.2g}",
        )
        for row in record["agree"]
    ]
    talked = [
        (str(row["devices"]), f"{row['gradients_ms']:.1f}", f"{row['subsample_ms']:.1f}") for row in record["talk"]
    ]
    ordered = [
        (
            *(row["run"], str(row["devices"]), f"{row['plain_ms']:.2f}", f"{row['ordered_ms']:.2f}"),
            *(f"{row['ratio']:.2f}", f"equal after {row['steps']} steps" if row["equal"] else "**another**"),
        )
        for row in record["order"]
    ]
    estimated, rate = [], 0.0
    for name, (examples, epochs, _) in RUNS_OF.items():
        for machine in MACHINES:
            for devices in (8, 64, 512):
                cells = []
                for share in SHARES:
                    time_, talk_ = hours(machine, devices, name, share, counts)
                    rate = max(rate, examples * epochs / (3600 * time_))
                    cells += [f"{60 * time_:.1f} min" if 60 * time_ >= 1 else f"{3600 * time_:.0f} s", f"{talk_:.0%}"]
                estimated.append((name, machine, str(devices), *cells))
    heads = [text for share in SHARES for text in (f"at {share:.0%} of the peak", "of it talk")]
    PAGE.write_text(
        TEXT.format(
            agree=table(["run", "on", "first loss", "all losses", "parameters", "largest"], agreed),
            order=table(["run", "devices", "ms a step", "ms in a fixed order", "ratio", "bits"], ordered),
            talk=table(["devices", "gradients, ms", "subsample, ms"], talked),
            hours=table(["run", "device", "how many", *heads], estimated),
            **{
                "device": record["device"],
                "most": MOST,
                "latency": 1e6 * LATENCY,
                "overhead": 1e3 * OVERHEAD,
                "rate": rate,
            },
            counted=", ".join(
                f"{each['clean_flops'] / 1e6:.0f} and {each['robust_flops'] / 1e6:.0f} ({classes} classes)"
                for classes, each in counts.items()
            ),
        )
    )


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agree", "order", "talk", "page"])
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--print", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.print:
        print(json.dumps({"order": order, "talk": talk}[given.what]()))
        return
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if given.what == "agree":
        record["agree"] = agree(given.data_dir)
    elif given.what == "order":
        record["order"] = on_devices("order")
    elif given.what == "talk":
        record |= {"talk": on_devices("talk"), "flops": flops()}
        record |= {"device": environment.device(), "versions": environment.versions(environment.TRAINING)}
    else:
        page()
        return
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
