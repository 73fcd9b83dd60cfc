"""The same networks, weights and inputs bounded and attacked by other libraries, each where it can be imported.

They are no dependencies of this package: put checkouts of them on PYTHONPATH, and PyTorch into the environment.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mixtrain_jax as mt
from timed.measures import ATTACK_STEPS, Bench, norm, of_arrays
from timed.nets import EPS, Block, Conv, Dense, Problem, apply
from timed.turns import Timed

BOUNDS = ("forward", "ibp", *(f"{b}-{what}" for b in ("ibp", "crown_ibp", "crown") for what in ("margins", "gradient")))


def rows(problem: Problem) -> np.ndarray:
    """Rows `e_y - e_j` of every label, classes in order: `[n, classes - 1, classes]`."""
    eye = np.eye(problem.net.classes, dtype=np.float32)
    return np.stack([eye[y] - np.delete(eye, y, axis=0) for y in np.asarray(problem.labels)])


def jax_verify(name: str, problem: Problem) -> Timed:
    """The 2023 library on JAX; backward bounds of it want one example at a time."""
    import jax_verify as peer

    propagate = {
        "ibp": peer.interval_bound_propagation,
        "crown_ibp": peer.crownibp_bound_propagation,
        "crown": peer.backward_crown_bound_propagation,
    }

    def bound(params: Any, ball: mt.Interval, specified: jax.Array) -> Any:
        network = functools.partial(problem.apply, params)
        if name == "forward":
            return network(problem.images)
        if name == "ibp":
            out = propagate[name](network, peer.IntervalBound(ball.lower, ball.upper))
            return out.lower, out.upper

        def example(lower: jax.Array, upper: jax.Array, specified: jax.Array) -> jax.Array:
            # Its intervals are those of the logits, and then of their differences, unless these are the last layer.
            *hidden, last = params
            folded = functools.partial(apply, problem.net, [*hidden, tuple(x @ specified.T for x in last)])
            box = peer.IntervalBound(lower[None], upper[None])
            return propagate[name.partition("-")[0]](folded, box).lower[0]

        return jax.vmap(example)(ball.lower, ball.upper, specified)

    f = jax.grad(lambda *args: bound(*args).sum()) if name.endswith("-gradient") else bound
    return of_arrays(f, problem.params, problem.ball, jnp.asarray(rows(problem)))


def auto_lirpa(name: str, problem: Problem) -> Timed:
    """The library on PyTorch, on its GPU where it has one."""
    import torch
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def tensor(x: Any) -> Any:  # images as PyTorch lays them out
        return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy()).to(device)

    images, lower, upper = map(tensor, (problem.images, problem.ball.lower, problem.ball.upper))
    specified, network = torch.from_numpy(rows(problem)).to(device), torch_network(problem).to(device)
    bounded = BoundedModule(network, torch.empty_like(images), device=device)
    ball = BoundedTensor(images, PerturbationLpNorm(x_L=lower, x_U=upper))
    method = {"ibp": "IBP", "crown_ibp": "CROWN-IBP", "crown": "CROWN"}.get(name.partition("-")[0])

    def margins() -> Any:
        return bounded.compute_bounds(x=(ball,), C=specified, method=method, bound_upper=False)[0]

    def result() -> Any:
        if name.endswith("-gradient"):
            bounded.zero_grad()
            margins().sum().backward()
            return [x.grad for x in bounded.parameters()]
        with torch.no_grad():
            if name == "forward":
                return [network(images)]
            return bounded.compute_bounds(x=(ball,), method=method) if name == "ibp" else [margins()]

    def call() -> Any:
        found = result()
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    def read(result: Any) -> tuple[np.ndarray, ...]:
        arrays = [x.detach().cpu().numpy() for x in result]
        return (norm(arrays),) if name.endswith("-gradient") else tuple(arrays)

    return Timed(call, read=read)


def torch_network(problem: Problem) -> Any:
    """The network as a PyTorch module."""
    import torch
    from torch import nn

    def filled(module: Any, weight: np.ndarray, bias: jax.Array) -> Any:
        module.weight, module.bias = (nn.Parameter(torch.from_numpy(np.array(x))) for x in (weight, bias))
        return module

    def conv(layer: Conv, weight: jax.Array, bias: jax.Array) -> Any:
        module = nn.Conv2d(weight.shape[2], weight.shape[3], layer.kernel, layer.stride, layer.padding)
        return filled(module, np.asarray(weight).transpose(3, 2, 0, 1), bias)

    class Residual(nn.Module):
        def __init__(self, layer: Block, arrays: tuple[jax.Array, ...]):
            super().__init__()
            pairs = [arrays[i : i + 2] for i in (0, 2, 4)]
            convolutions = [conv(one, *pair) for one, pair in zip(layer.convolutions(), pairs, strict=True)]
            self.first, self.second, self.short = convolutions

        def forward(self, x: Any) -> Any:
            return self.second(torch.relu(self.first(x))) + self.short(x)

    modules, channels = [], 0
    for layer, arrays in zip(problem.net.layers, problem.params, strict=True):
        if isinstance(layer, Dense):
            weight = np.asarray(arrays[0])
            modules += [nn.Flatten()] if channels is not None else []
            if channels:  # the first one flattens images: channels come first there
                side = round((len(weight) / channels) ** 0.5)
                weight = weight.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(weight.shape)
            modules.append(filled(nn.Linear(*weight.shape), weight.T, arrays[1]))
            channels = None
        else:
            modules.append(conv(layer, *arrays) if isinstance(layer, Conv) else Residual(layer, arrays))
            channels = layer.channels
        modules.append(nn.ReLU())
    return nn.Sequential(*modules[:-1]).eval()


def foolbox(name: str, problem: Problem) -> Timed:
    """PGD of the library of attacks, on our network."""
    import foolbox as peer

    model = peer.models.JAXModel(jax.jit(functools.partial(problem.apply, problem.params)), bounds=(0, 1))
    attack = peer.attacks.LinfPGD(steps=ATTACK_STEPS)
    return Timed(lambda: attack(model, problem.images, problem.labels, epsilons=EPS)[1])


# Name of the module: which measures it has, and one of them ready to be timed.
PEERS: Mapping[str, tuple[tuple[str, ...], Callable[[str, Problem], Timed]]] = {
    "auto_LiRPA": (BOUNDS, auto_lirpa),
    "jax_verify": (BOUNDS, jax_verify),
    "foolbox": (("pgd-20",), foolbox),
}


def prepare(name: str, peer: str, bench: Bench) -> Timed:
    """One measure of one peer."""
    return PEERS[peer][1](name, bench.of(name))


def compare(name: str, mine: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> dict[str, float]:
    """By how much ours are looser and tighter than another's, relative to the largest; what is no bound is looser."""
    signs = {"forward": (0,), "ibp": (1, -1)}.get(name, (0,) if name.endswith("-gradient") else (1,))
    looser = tighter = 0.0
    for sign, a, b in zip(signs, mine, other, strict=True):
        gain = (a.astype(np.float64) - b) / max(np.abs(b).max(), 1e-30)
        low, high = (gain.min() * sign, gain.max() * sign) if sign else (-np.abs(gain).max(), 0.0)
        looser, tighter = max(looser, -low, -high), max(tighter, low, high)
    return {"looser": float(looser), "tighter": float(tighter)}
