"""Our bounds beside those of auto_LiRPA (PyTorch) and jax_verify: the same networks, weights and inputs.

    python benchmarks/bounds_peers.py [--nets mnist_small cifar_large] [--methods ibp crown_ibp] [--repeats 10]

The peers are not dependencies of this package: put checkouts of them on PYTHONPATH, and PyTorch into the environment.
One that cannot be imported is named and left out. Networks have random weights, and labels are what they predict.

Every method is timed with the libraries taking turns, so that a noisy machine disturbs all alike. The table shows
medians of wall seconds and of CPU seconds, the least wall seconds, those of the first call (it compiles), the peak
memory that a method adds to a fresh process, the median of ours over each peer's, and how far the bounds differ,
relative to the largest of them: by how much ours are looser anywhere, and by how much tighter anywhere. Of gradients
the norms are compared. Bounds of `sound=True` are measured beside the plain ones, as if they were a peer's.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import mixtrain_jax as mt
from mixtrain_jax.environment import device

Arrays = tuple[np.ndarray, ...]
Weights = list[tuple[np.ndarray, ...]]  # of a layer: weight, bias, weight, bias, ...; as PyTorch lays them out


class Conv(NamedTuple):
    """A convolution and a ReLU."""

    channels: int
    kernel: int
    stride: int


class Block(NamedTuple):
    """Two 3x3 convolutions beside one 1x1 convolution, and a ReLU."""

    channels: int
    stride: int


class Dense(NamedTuple):
    """A dense layer, with a ReLU unless it is the last."""

    units: int


class Net(NamedTuple):
    """A network, and the batch it is measured at."""

    shape: tuple[int, int, int]  # channels, height, width
    layers: tuple[Conv | Block | Dense, ...]
    batch: int
    crown_batch: int  # CROWN needs far more memory


class Problem(NamedTuple):
    """What is bounded: all inputs within `eps` of the images, in [0, 1]."""

    net: Net
    weights: Weights
    images: np.ndarray  # [n, channels, height, width]
    labels: np.ndarray
    eps: float
    layout: str  # of images in JAX: NHWC or NCHW
    chunk: int | None


NETS = {
    "mnist_small": Net((1, 28, 28), (Conv(16, 4, 2), Conv(32, 4, 2), Dense(100), Dense(10)), 100, 10),
    "cifar_large": Net(
        (3, 32, 32),
        (Conv(32, 3, 1), Conv(32, 4, 2), Conv(64, 3, 1), Conv(64, 4, 2), Dense(512), Dense(512), Dense(10)),
        32,
        1,
    ),
    "cnn7": Net(
        (3, 32, 32),
        (Conv(64, 3, 1), Conv(64, 3, 1), Conv(128, 3, 2), Conv(128, 3, 1), Conv(128, 3, 1), Dense(512), Dense(10)),
        32,
        1,
    ),
    "residual": Net((3, 32, 32), (Conv(16, 3, 1), Block(32, 2), Block(64, 2), Dense(100), Dense(10)), 32, 2),
}

# Method: what each array of its result is: 1 a lower bound, -1 an upper bound, 0 neither.
METHODS = {
    "forward": (0,),
    "ibp": (1, -1),
    "ibp_margins": (1,),
    "ibp_grad": (0,),
    "crown_ibp": (1,),
    "crown_ibp_grad": (0,),
    "crown": (1,),
}


# --- the networks ---------------------------------------------------------------------------------------------------


def random_weights(net: Net, seed: int) -> Weights:
    """He weights and small biases of every layer."""
    rng = np.random.default_rng(seed)

    def affine(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        scale = math.sqrt(2 / math.prod(shape[1:]))
        return scale * rng.standard_normal(shape, np.float32), 0.1 * rng.standard_normal(shape[0], np.float32)

    weights: Weights = []
    (channels, height, width), flat = net.shape, False
    for layer in net.layers:
        if isinstance(layer, Dense):
            units = channels if flat else channels * height * width
            weights.append(affine(layer.units, units))
            channels, flat = layer.units, True
            continue
        if isinstance(layer, Conv):
            weights.append(affine(layer.channels, channels, layer.kernel, layer.kernel))
        else:
            out = layer.channels
            weights.append((*affine(out, channels, 3, 3), *affine(out, out, 3, 3), *affine(out, channels, 1, 1)))
        channels, height, width = layer.channels, -(-height // layer.stride), -(-width // layer.stride)
    return weights


def make_problem(name: str, method: str, arguments: argparse.Namespace) -> Problem:
    """The network of this name, with random weights, images and labels."""
    net = NETS[name]
    batch = (arguments.crown_batch or net.crown_batch) if method == "crown" else (arguments.batch or net.batch)
    rng = np.random.default_rng(arguments.seed)
    images, weights = rng.random((batch, *net.shape), np.float32), random_weights(net, arguments.seed)
    problem = Problem(net, weights, images, np.zeros(batch, int), arguments.eps, arguments.layout, arguments.chunk)
    logits = jax.jit(functools.partial(jax_forward, problem))(jax_weights(problem), jax_images(problem))
    return problem._replace(labels=np.asarray(logits).argmax(-1))


def jax_images(problem: Problem) -> np.ndarray:
    """The images in the layout of the network."""
    return problem.images if problem.layout == "NCHW" else problem.images.transpose(0, 2, 3, 1)


def jax_weights(problem: Problem) -> list[tuple[jax.Array, ...]]:
    """Parameters as a JAX network has them: HWIO, and `[in, out]` for dense layers."""
    found, channels = [], None
    for layer, arrays in zip(problem.net.layers, problem.weights, strict=True):
        if isinstance(layer, Dense):
            weight, bias = arrays
            if channels and problem.layout == "NHWC":  # the first one flattens images
                side = math.isqrt(weight.shape[1] // channels)
                weight = weight.reshape(-1, channels, side, side).transpose(0, 2, 3, 1).reshape(weight.shape)
            arrays, channels = (weight.T, bias), None
        else:
            arrays, channels = tuple(x.transpose(2, 3, 1, 0) if x.ndim == 4 else x for x in arrays), layer.channels
        found.append(tuple(map(jnp.asarray, arrays)))
    return found


def jax_forward(problem: Problem, params: Sequence[tuple[jax.Array, ...]], x: jax.Array) -> jax.Array:
    """Logits `[n, 10]` of images `[n, ...]`."""
    layout, last = problem.layout, len(params) - 1

    def conv(x: jax.Array, weight: jax.Array, bias: jax.Array, stride: int, pad: int) -> jax.Array:
        numbers = (layout, "HWIO", layout)
        y = jax.lax.conv_general_dilated(x, weight, (stride, stride), [(pad, pad)] * 2, dimension_numbers=numbers)
        return y + (bias if layout == "NHWC" else bias[:, None, None])

    for i, (layer, arrays) in enumerate(zip(problem.net.layers, params, strict=True)):
        if isinstance(layer, Conv):
            x = conv(x, *arrays, layer.stride, 1)
        elif isinstance(layer, Block):
            inner = jax.nn.relu(conv(x, *arrays[:2], layer.stride, 1))
            x = conv(inner, *arrays[2:4], 1, 1) + conv(x, *arrays[4:], layer.stride, 0)
        else:
            x = x.reshape(len(x), -1) @ arrays[0] + arrays[1]
        x = x if i == last else jax.nn.relu(x)
    return x


# --- the libraries --------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One method of one library, ready to be timed."""

    call: Callable[[], Any]  # returns when the result is there
    read: Callable[[Any], Arrays]  # of a result, as `METHODS` describes it


def specification(labels: np.ndarray, classes: int = 10) -> np.ndarray:
    """Rows `e_y - e_j` of every label, classes in order: `[n, classes - 1, classes]`."""
    eye = np.eye(classes, dtype=np.float32)
    return np.stack([eye[y] - np.delete(eye, y, axis=0) for y in labels])


def jax_run(method: str, problem: Problem, bound: Callable[..., Any]) -> Run:
    """Time `bound(params, ball, labels)`, jitted, or its gradient by the parameters."""
    params, labels = jax_weights(problem), jnp.asarray(problem.labels)
    images = jax_images(problem)
    ball = mt.Interval(np.maximum(images - problem.eps, 0), np.minimum(images + problem.eps, 1))  # as the peers round
    is_gradient = method.endswith("_grad")
    f = jax.jit(jax.grad(lambda *args: bound(*args).sum()) if is_gradient else bound)

    def read(result: Any) -> Arrays:
        arrays = map(np.asarray, jax.tree.leaves(result))
        return (norm(arrays),) if is_gradient else tuple(arrays)

    return Run(lambda: jax.block_until_ready(f(params, ball, labels)), read)


def norm(arrays: Iterator[np.ndarray]) -> np.ndarray:
    """Norm of all arrays together."""
    return np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in arrays))


def ours(method: str, problem: Problem, sound: bool = False) -> Run:
    """This package; soundly in floating point too, if asked for."""
    domains = {"ibp": mt.ibp, "crown_ibp": mt.crown_ibp, "crown": functools.partial(mt.crown, chunk=problem.chunk)}
    domains = {name: functools.partial(domain, sound=sound) for name, domain in domains.items()}

    def bound(params: Any, ball: mt.Interval, labels: jax.Array) -> Any:
        network = functools.partial(jax_forward, problem, params)
        if method == "forward":
            return network(ball.lower)
        if method == "ibp":
            return domains[method](network)(ball)
        domain = domains[method.removesuffix("_grad").removesuffix("_margins")]
        return mt.margins(domain, network)(ball, labels)

    return jax_run(method, problem, bound)


def jax_verify(method: str, problem: Problem) -> Run:
    """The 2023 library on JAX; backward bounds of it want one example at a time."""
    import jax_verify as peer

    rows = jnp.asarray(specification(problem.labels))
    propagate = {
        "ibp": peer.interval_bound_propagation,
        "crown_ibp": peer.crownibp_bound_propagation,
        "crown": peer.backward_crown_bound_propagation,
    }

    def bound(params: Any, ball: mt.Interval, labels: jax.Array) -> Any:
        del labels
        network = functools.partial(jax_forward, problem, params)
        if method == "forward":
            return network(ball.lower)
        if method == "ibp":
            out = propagate[method](network, peer.IntervalBound(ball.lower, ball.upper))
            return out.lower, out.upper
        domain = propagate[method.removesuffix("_grad").removesuffix("_margins")]

        def example(lower: jax.Array, upper: jax.Array, rows: jax.Array) -> jax.Array:
            box = peer.IntervalBound(lower[None], upper[None])
            return domain(lambda x: network(x) @ rows.T, box).lower[0]

        return jax.vmap(example)(ball.lower, ball.upper, rows)

    return jax_run(method, problem, bound)


def auto_lirpa(method: str, problem: Problem) -> Run:
    """The library on PyTorch."""
    import torch
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    images, rows = torch.from_numpy(problem.images), torch.from_numpy(specification(problem.labels))
    lower, upper = (images - problem.eps).clamp(min=0), (images + problem.eps).clamp(max=1)
    network = torch_network(problem)
    bounded = BoundedModule(network, torch.empty_like(images))
    ball = BoundedTensor(images, PerturbationLpNorm(x_L=lower, x_U=upper))
    name = {"ibp": "IBP", "crown_ibp": "CROWN-IBP", "crown": "CROWN"}.get(
        method.removesuffix("_grad").removesuffix("_margins")
    )

    def margins() -> Any:
        return bounded.compute_bounds(x=(ball,), C=rows, method=name, bound_upper=False)[0]

    def call() -> Any:
        if method.endswith("_grad"):
            bounded.zero_grad()
            margins().sum().backward()
            return [x.grad for x in bounded.parameters()]
        with torch.no_grad():
            if method == "forward":
                return [network(lower)]
            return bounded.compute_bounds(x=(ball,), method=name) if method == "ibp" else [margins()]

    def read(result: Any) -> Arrays:
        arrays = [x.detach().numpy() for x in result]
        return (norm(iter(arrays)),) if method.endswith("_grad") else tuple(arrays)

    return Run(call, read)


def torch_network(problem: Problem) -> Any:
    """The network as a PyTorch module."""
    import torch
    from torch import nn

    def affine(module: Any, weight: np.ndarray, bias: np.ndarray) -> Any:
        module.weight, module.bias = (nn.Parameter(torch.from_numpy(x.copy())) for x in (weight, bias))
        return module

    def conv(weight: np.ndarray, bias: np.ndarray, stride: int, pad: int) -> Any:
        out, into, kernel, _ = weight.shape
        return affine(nn.Conv2d(into, out, kernel, stride, pad), weight, bias)

    class Residual(nn.Module):
        def __init__(self, arrays: Arrays, stride: int):
            super().__init__()
            self.first, self.second = conv(*arrays[:2], stride, 1), conv(*arrays[2:4], 1, 1)
            self.skip = conv(*arrays[4:], stride, 0)

        def forward(self, x: Any) -> Any:
            return self.second(torch.relu(self.first(x))) + self.skip(x)

    modules, flat = [], False
    for layer, arrays in zip(problem.net.layers, problem.weights, strict=True):
        if isinstance(layer, Dense):
            modules += [] if flat else [nn.Flatten()]
            modules.append(affine(nn.Linear(arrays[0].shape[1], layer.units), *arrays))
            flat = True
        elif isinstance(layer, Conv):
            modules.append(conv(*arrays, layer.stride, 1))
        else:
            modules.append(Residual(arrays, layer.stride))
        modules.append(nn.ReLU())
    return nn.Sequential(*modules[:-1]).eval()


OURS = {"ours": ours, "ours, sound": functools.partial(ours, sound=True)}
LIBRARIES = {**OURS, "auto_LiRPA": auto_lirpa, "jax_verify": jax_verify}


# --- measuring ------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """A result, and the wall and CPU seconds it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def compare(method: str, mine: Arrays, other: Arrays) -> dict[str, float]:
    """By how much ours are looser and tighter than another's, relative to the largest; what is no bound is looser."""
    looser = tighter = 0.0
    for sign, a, b in zip(METHODS[method], mine, other, strict=True):
        gain = (a.astype(np.float64) - b) / max(np.abs(b).max(), 1e-30)
        low, high = (gain.min() * sign, gain.max() * sign) if sign else (-np.abs(gain).max(), 0.0)
        looser, tighter = max(looser, -low, -high), max(tighter, low, high)
    return {"looser": float(looser), "tighter": float(tighter)}


def measure(name: str, method: str, libraries: Sequence[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of every library for one method on one network."""
    problem = make_problem(name, method, arguments)
    runs, found, results = {}, {}, {}
    for library in libraries:
        try:
            run = LIBRARIES[library](method, problem)
            result, first, _ = timed(run.call)
            run.call()
        except Exception as error:  # A peer may fail in any way; the others still count.
            if library in OURS:
                raise
            print(f"{library} fails on {method} of {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        runs[library], results[library] = run, run.read(result)
        found[library] = {"first_seconds": first}
    seconds: dict[str, list[tuple[float, float]]] = {library: [] for library in runs}
    for _ in range(arguments.repeats):
        for library, run in runs.items():
            seconds[library].append(timed(run.call)[1:])
    for library, times in seconds.items():
        wall, cpu = (statistics.median(x) for x in zip(*times, strict=True))
        found[library] |= {"seconds": wall, "fastest_seconds": min(times)[0], "cpu_seconds": cpu}
        if library != "ours" and "ours" in found:
            found[library] |= compare(method, results["ours"], results[library])
            found[library]["ratio"] = statistics.median(
                mine[0] / theirs[0] for mine, theirs in zip(seconds["ours"], times, strict=True)
            )
        if arguments.memory:
            found[library]["peak_mib"] = memory_of(name, method, library, arguments)
    return {"batch": len(problem.images), "libraries": found}


def memory_of(name: str, method: str, library: str, arguments: argparse.Namespace) -> float | None:
    """MiB that one method adds to the peak of a fresh process."""
    options = ["--nets", name, "--methods", method, "--child", library, "--layout", arguments.layout]
    for option in ("batch", "crown_batch", "chunk", "seed", "eps"):
        value = getattr(arguments, option)
        options += [] if value is None else [f"--{option.replace('_', '-')}", str(value)]
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, *options], capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def child(arguments: argparse.Namespace) -> None:
    """Run one method and print by how many MiB the peak memory of this process grew."""
    (name,), (method,) = arguments.nets, arguments.methods
    problem = make_problem(name, method, arguments)
    if arguments.child not in OURS:
        importlib.import_module(arguments.child)
    run = LIBRARIES[arguments.child](method, problem)
    before = peak_mib()
    for _ in range(2):
        run.call()
    print(peak_mib() - before)


def peak_mib() -> float:
    """Peak memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # On Linux `getrusage` counts the parent's peak too.
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def importable(peers: Sequence[str]) -> list[str]:
    """The peers that can be imported; says of the others why not."""
    found = []
    for peer in peers:
        try:
            importlib.import_module(peer)
            found.append(peer)
        except Exception as error:  # An old library can fail at import in any way.
            print(f"{peer} cannot be imported and is left out: {type(error).__name__}: {error}")
    return found


def table(name: str, cases: dict[str, Any]) -> Table:
    """What was measured on one network, one line a method and library."""
    out = Table(title=f"{name}, {device()}", title_justify="left")
    for heading in ("method", "batch", "library"):
        out.add_column(heading)
    for heading in ("s", "min s", "CPU s", "first s", "MiB", "ours / peer", "looser", "tighter"):
        out.add_column(heading, justify="right")
    for method, case in cases.items():
        for library, row in case["libraries"].items():
            memory, ratio = row.get("peak_mib"), row.get("ratio")
            cells = [f"{row[key]:.4f}" for key in ("seconds", "fastest_seconds", "cpu_seconds")]
            cells.append(f"{row['first_seconds']:.1f}")
            cells += ["" if memory is None else f"{memory:.0f}", "" if ratio is None else f"{ratio:.2f}"]
            cells += [f"{row[key]:.0e}" if key in row else "" for key in ("looser", "tighter")]
            out.add_row(method, str(case["batch"]), library, *cells)
        out.add_section()
    return out


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["mnist_small", "cifar_large"], choices=list(NETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["auto_LiRPA", "jax_verify"],
        choices=[name for name in LIBRARIES if name not in OURS],
    )
    parser.add_argument("--batch", type=int, help="examples; without it, what the network's entry says")
    parser.add_argument("--crown-batch", type=int, help="the same for CROWN")
    parser.add_argument("--chunk", type=int, default=256, help="rows of our CROWN in memory at a time")
    parser.add_argument("--layout", default="NHWC", choices=["NHWC", "NCHW"], help="of images in JAX")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--eps", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory too")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--child", choices=list(LIBRARIES), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure what the arguments name, print a table a network, keep the figures if asked to."""
    warnings.simplefilter("ignore")  # The peers warn of much.
    arguments = parse()
    if arguments.child:
        return child(arguments)
    libraries, found = [*OURS, *importable(arguments.peers)], {}
    console = Console(width=None if sys.stdout.isatty() else 130)
    for name in arguments.nets:
        found[name] = {method: measure(name, method, libraries, arguments) for method in arguments.methods}
        console.print(table(name, found[name]))
    if arguments.out:
        options = {key: value for key, value in vars(arguments).items() if key not in ("out", "child")}
        arguments.out.write_text(json.dumps({"device": device(), "options": options, "nets": found}, indent=1))


if __name__ == "__main__":
    main()
