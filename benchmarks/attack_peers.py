"""Our attacks beside those of other libraries: one network, the same images, image by image.

    python benchmarks/attack_peers.py [--network conv] [--images 500] [--norms linf l2] [--out FILE]

The network is a small conv net, or one with a hidden layer, trained on the digits here against a one-step attack. The
peers are the reference
ensemble (`pyautoattack`, on PyTorch), once on our JAX network behind an adapter and once on a copy of the network in
PyTorch, PGD and FMN of Foolbox on the JAX network, and PGD of ART (the Adversarial Robustness Toolbox) on its JAX
classifier. They are not dependencies of this package; one that cannot be imported is named and left out. FMN has no
radius: an image is broken where its distance is at most eps.

Seconds are those of a second call, so nothing compiles in them; those of the first are given beside. The reference is
called once, its network before that, and so is FMN. All run on the cores that this process may use.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import mixtrain_jax as mt
from mixtrain_jax.attacks import Budget, descend, flags, in_turn, pgd, standard_attacks
from mixtrain_jax.data import load

BATCH = 64
EPS = {"linf": 0.15, "l2": 0.8}
Params = dict[str, jax.Array]


# --- the network ----------------------------------------------------------------------------------------------------


# Of 8x8 images: convolutions to 16 and 32 channels, then 10 logits; or 512 hidden units, then 10 logits.
NETWORKS = {
    "conv": {"a": (3, 3, 1, 16), "b": (4, 4, 16, 32), "c": (512, 10)},
    "mlp": {"a": (64, 512), "c": (512, 10)},
}


def initial(key: jax.Array, network: str) -> Params:
    """First weights."""
    shapes = NETWORKS[network]
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {
        name: jax.random.normal(keys[name], shape) * (2 / np.prod(shape[:-1])) ** 0.5 for name, shape in shapes.items()
    }


def logits(params: Params, x: jax.Array) -> jax.Array:
    """Logits `[n, 10]` of images `[n, 8, 8, 1]`."""
    conv = functools.partial(jax.lax.conv_general_dilated, padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if "b" in params:
        x = jax.nn.relu(conv(x, params["a"], (1, 1)))
        x = jax.nn.relu(conv(x, params["b"], (2, 2)))
    else:
        x = jax.nn.relu(x.reshape(len(x), -1) @ params["a"])
    return x.reshape(len(x), -1) @ params["c"]


def trained(network: str, images: np.ndarray, labels: np.ndarray, eps: float, epochs: int, seed: int) -> Params:
    """Weights after Adam on inputs from a one-step attack."""
    params = initial(jax.random.key(seed), network)
    optimizer = optax.adam(2e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(key: jax.Array, params: Params, state: Any, x: jax.Array, y: jax.Array) -> tuple[Params, Any]:
        ball = mt.linf_ball(x, eps, (0.0, 1.0))
        bad = descend(key, functools.partial(logits, params), y, ball, steps=1)

        def loss(params: Params) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, bad), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        for i, rows in enumerate(rng.permutation(len(images))[: len(images) // 64 * 64].reshape(-1, 64)):
            key = jax.random.fold_in(jax.random.key(seed + 1), epoch * 10_000 + i)
            params, state = step(key, params, state, images[rows], labels[rows])
    return params


# --- the attacks: each a function of images and labels -> which images stand ------------------------------------------


def ours(params: Params, norm: str, eps: float, budget: Budget) -> Callable[..., tuple[np.ndarray, Any]]:
    """The standard ensemble of this package."""
    logits_fn = functools.partial(logits, params)

    def attack(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, Any]:
        attacks = standard_attacks(budget, (0.0, 1.0))
        record = in_turn(jax.random.key(0), logits_fn, x, y, ball(norm, x, eps), attacks, batch_size=BATCH)
        names, counts = np.unique(record.broken_by, return_counts=True)
        by = {str(name) or "standing": int(count) for name, count in zip(names, counts, strict=True)}
        return record.standing, {"broken_by": by, "flags": flags(logits_fn, x, y, broken_by=record.broken_by)}

    return attack


def our_pgd(params: Params, eps: float) -> Callable[..., tuple[np.ndarray, Any]]:
    """PGD of this package, 100 steps and 3 starts."""
    logits_fn = functools.partial(logits, params)

    def attack(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, Any]:
        found = pgd(jax.random.key(0), logits_fn, jnp.asarray(x), jnp.asarray(y), ball("linf", x, eps))
        return np.asarray(logits_fn(found)).argmax(-1) == y, None

    return attack


def ball(norm: str, x: np.ndarray, eps: float) -> mt.Interval:
    """The ball of every image, pixels in [0, 1]."""
    if norm == "linf":
        return mt.linf_ball(x, eps, (0.0, 1.0))
    return jax.vmap(lambda image: mt.l2_ball(image, eps, (0.0, 1.0)))(jnp.asarray(x))


def reference(network: Any, norm: str, eps: float, budget: Budget) -> Callable[..., tuple[np.ndarray, Any]]:
    """The reference ensemble on a PyTorch module of images `[n, 1, 8, 8]`."""
    import torch
    from pyautoattack.autoattack import AutoAttack

    def attack(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, Any]:
        ensemble = AutoAttack(network, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=0)
        ensemble.apgd.n_iter = ensemble.apgd_targeted.n_iter = ensemble.fab.n_iter = budget.steps
        ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = budget.targets
        ensemble.square.n_queries = budget.queries
        images = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
        found, _ = ensemble.run_standard_evaluation(images, torch.from_numpy(y.astype(np.int64)), batch_size=BATCH)
        with torch.no_grad():
            return network(found).argmax(-1).numpy() == y, None

    return attack


def adapter(params: Params) -> Any:
    """The JAX network as a PyTorch module: its logits, and its Jacobian times whatever gradients come back.

    Batches are padded to one size, so that JAX compiles once.
    """
    import torch

    forward = jax.jit(functools.partial(logits, params))

    @jax.jit
    def backward(x: jax.Array, cotangent: jax.Array) -> jax.Array:
        return jax.vjp(functools.partial(logits, params), x)[1](cotangent)[0]

    def padded(x: Any) -> np.ndarray:
        array = x.detach().numpy()
        return np.concatenate([array, np.zeros((BATCH - len(array), *array.shape[1:]), array.dtype)])

    class Logits(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any) -> Any:
            context.save_for_backward(x)
            return torch.from_numpy(np.array(forward(np.moveaxis(padded(x), 1, -1)))[: len(x)])

        @staticmethod
        def backward(context: Any, cotangent: Any) -> Any:
            (x,) = context.saved_tensors
            found = backward(np.moveaxis(padded(x), 1, -1), padded(cotangent))
            return torch.from_numpy(np.moveaxis(np.array(found), -1, 1)[: len(x)].copy())

    class Network(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.cat([Logits.apply(part) for part in x.split(BATCH)])

    network, start = Network().eval(), torch.zeros(1, 1, 8, 8, requires_grad=True)
    network(start).sum().backward()
    return network


def copy(params: Params) -> Any:
    """The network in PyTorch."""
    import torch

    tensors = {name: torch.from_numpy(np.array(leaf)) for name, leaf in params.items()}
    c = tensors["c"]
    a, b = (tensors[name].permute(3, 2, 0, 1).contiguous() if "b" in params else tensors["a"] for name in "ab")

    class Network(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            if "b" not in params:
                return torch.relu(x.flatten(1) @ a) @ c
            x = torch.relu(torch.nn.functional.conv2d(x, a, padding=1))
            x = torch.relu(torch.nn.functional.conv2d(x, b, stride=2, padding=1))
            return x.movedim(1, -1).flatten(1) @ c

    return Network().eval()


def foolbox(params: Params, name: str, norm: str, eps: float) -> Callable[..., tuple[np.ndarray, Any]]:
    """PGD (100 steps, 3 starts) or FMN (1000 steps) of Foolbox on the JAX network."""
    import foolbox as peer

    model = peer.models.JAXModel(jax.jit(functools.partial(logits, params)), bounds=(0, 1))
    attacks = {
        ("PGD", "linf"): lambda: peer.attacks.LinfPGD(steps=100),
        ("PGD", "l2"): lambda: peer.attacks.L2PGD(steps=100),
        ("FMN", "linf"): lambda: peer.attacks.LInfFMNAttack(steps=1000),
        ("FMN", "l2"): lambda: peer.attacks.L2FMNAttack(steps=1000),
    }

    def attack(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, Any]:
        standing = np.ones(len(x), bool)
        for _ in range(3 if name == "PGD" else 1):
            _, found, _ = attacks[name, norm]()(model, jnp.asarray(x), jnp.asarray(y), epsilons=eps)
            away = np.asarray(found, np.float64) - x
            far = np.abs(away).max((1, 2, 3)) if norm == "linf" else np.sqrt(np.square(away).sum((1, 2, 3)))
            wrong = np.asarray(logits(params, found)).argmax(-1) != y
            standing &= ~(wrong & (far <= eps * (1 + 1e-5)))
        return standing, None

    return attack


def art(params: Params, norm: str, eps: float) -> Callable[..., tuple[np.ndarray, Any]]:
    """PGD of ART, 100 steps and 3 starts, on its JAX classifier."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.experimental.estimators.classification import JaxClassifier

    @jax.jit
    def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy(logits(params, x), y).sum()

    network = JaxClassifier(
        model=params,
        predict_func=jax.jit(logits),
        loss_func=loss,
        update_func=lambda *_: params,
        input_shape=(8, 8, 1),
        nb_classes=10,
        clip_values=(0.0, 1.0),
    )
    peer = ProjectedGradientDescent(
        network,
        norm=np.inf if norm == "linf" else 2,
        eps=eps,
        eps_step=eps / 40,
        max_iter=100,
        num_random_init=3,
        batch_size=BATCH,
        verbose=False,
    )

    def attack(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, Any]:
        found = peer.generate(x, np.eye(10, dtype=np.float32)[y])
        away = np.asarray(found, np.float64) - x
        far = np.abs(away).max((1, 2, 3)) if norm == "linf" else np.sqrt(np.square(away).sum((1, 2, 3)))
        wrong = np.asarray(logits(params, jnp.asarray(found))).argmax(-1) != y
        return (np.asarray(logits(params, x)).argmax(-1) == y) & ~(wrong & (far <= eps * (1 + 1e-5))), None

    return attack


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(params: Params, norm: str, x: np.ndarray, y: np.ndarray, budget: Budget, peers: list[str]) -> dict:
    """What each attack leaves standing, and its seconds."""
    eps = EPS[norm]
    attacks: dict[str, Callable[[], Any]] = {"ours": lambda: ours(params, norm, eps, budget)}
    if norm == "linf":
        attacks["ours, PGD"] = lambda: our_pgd(params, eps)
    if "pyautoattack" in peers:
        attacks["reference on JAX"] = lambda: reference(adapter(params), norm, eps, budget)
        attacks["reference on PyTorch"] = lambda: reference(copy(params), norm, eps, budget)
    if "foolbox" in peers:
        attacks["Foolbox PGD"] = lambda: foolbox(params, "PGD", norm, eps)
        attacks["Foolbox FMN"] = lambda: foolbox(params, "FMN", norm, eps)
    if "art" in peers:
        attacks["ART PGD"] = lambda: art(params, norm, eps)
    found: dict[str, Any] = {}
    stands: dict[str, np.ndarray] = {}
    for name, make in attacks.items():
        attack, seconds = make(), []
        for _ in range(1 if name.startswith("reference") or name.endswith("FMN") else 2):
            start, cpu = time.perf_counter(), time.process_time()
            stands[name], more = attack(x, y)
            seconds.append((time.perf_counter() - start, time.process_time() - cpu))
        found[name] = {
            "accuracy": float(stands[name].mean()),
            "first_seconds": seconds[0][0],
            "seconds": seconds[-1][0],
            "cpu_seconds": seconds[-1][1],
            "agreement": float((stands[name] == stands["ours"]).mean()),
            "only_ours_broke": np.flatnonzero(stands[name] & ~stands["ours"]).tolist(),
            "only_it_broke": np.flatnonzero(~stands[name] & stands["ours"]).tolist(),
        } | (more or {})
        print(norm, name, found[name], flush=True)
    return found


def table(norm: str, found: dict[str, Any]) -> Table:
    """A line an attack."""
    out = Table(title=f"{norm}, eps {EPS[norm]}", title_justify="left")
    for heading in ("attack", "stand", "agree", "only ours broke", "only it broke", "s", "CPU s", "first s"):
        out.add_column(heading, justify="left" if heading == "attack" else "right")
    for name, row in found.items():
        counts = [str(len(row[key])) for key in ("only_ours_broke", "only_it_broke")]
        times = [f"{row[key]:.1f}" for key in ("seconds", "cpu_seconds", "first_seconds")]
        out.add_row(name, f"{row['accuracy']:.2%}", f"{row['agreement']:.2%}", *counts, *times)
    return out


def versions() -> dict[str, str]:
    """What took part."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "torch", "pyautoattack", "foolbox", "adversarial-robustness-toolbox", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Train, attack, print a table a norm, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="conv", choices=list(NETWORKS))
    parser.add_argument("--images", type=int, default=500, help="of the test set, the first")
    parser.add_argument("--norms", nargs="+", default=list(EPS), choices=list(EPS))
    parser.add_argument("--steps", type=int, default=Budget().steps)
    parser.add_argument("--targets", type=int, default=Budget().targets)
    parser.add_argument("--queries", type=int, default=Budget().queries)
    parser.add_argument("--training.epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    peers = []
    for peer in ("pyautoattack", "foolbox", "art"):
        try:
            importlib.import_module(peer)
            peers.append(peer)
        except Exception as error:  # A library that does not fit can fail at import in any way.
            print(f"{peer} cannot be imported and is left out: {type(error).__name__}: {error}")
    data = load("digits")
    train, test = data.train.floats(), data.test.floats()
    params = trained(arguments.network, train.images, train.labels, EPS["linf"], arguments.epochs, arguments.seed)
    x, y = test.images[: arguments.images], test.labels[: arguments.images]
    clean = float((np.asarray(logits(params, x)).argmax(-1) == y).mean())
    print(f"clean accuracy {clean:.2%} of {len(x)} images")
    budget = Budget(arguments.steps, arguments.targets, arguments.queries)
    found = {norm: measure(params, norm, x, y, budget, peers) for norm in arguments.norms}
    console = Console(width=None if sys.stdout.isatty() else 130)
    for norm, rows in found.items():
        console.print(table(norm, rows))
    if arguments.out:
        options = {name: value for name, value in vars(arguments).items() if name != "out"}
        about = {"device": f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores"}
        about |= {"versions": versions(), "options": options, "eps": EPS, "clean_accuracy": clean}
        arguments.out.write_text(json.dumps(about | {"norms": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
