"""What a bound costs as one size grows: seconds and memory, and the exponents that fit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from timed.measures import Trainer, certified, margins, margins_gradient
from timed.nets import NETS, Dense, Net, make_problem
from timed.turns import Timed


class Curve(NamedTuple):
    """What is timed at which sizes, and what exponents are expected of large ones."""

    what: str
    sizes: Sequence[int]
    make: Callable[[int], Timed]
    seconds: str
    memory: str


SMALL = NETS["mnist_small"]


def _mlp(width: int, depth: int) -> Net:
    return Net((16, 16, 1), (*[Dense(width)] * depth, Dense(10)), 0, 0)


def _step(k: int) -> Timed:
    problem = make_problem(SMALL, 128)
    return certified(Trainer(problem), problem, "ibp", 128 // k)


def _side(side: int, bound: str, batch: int) -> Timed:
    return margins(make_problem(SMALL._replace(shape=(side, side, 1)), batch), bound)


# Expected: an affine map is read once for IBP, pulled back for every class by CROWN-IBP, and by CROWN once more from
# every layer after it, for every unit there.
CURVES = {
    "k": Curve("training step, IBP on k of 128, mnist_small", (8, 16, 32, 64, 128), _step, "0 to 1", "0 to 1"),
    "batch": Curve(
        "CROWN-IBP and gradient, mnist_small",
        (4, 8, 16, 32, 64),
        lambda n: margins_gradient(make_problem(SMALL, n), "crown_ibp"),
        *("1", "0 to 1"),  # a group at a time, or all
    ),
    "width": Curve(
        "IBP and gradient, 3 hidden layers, batch 64",
        (256, 512, 1024, 2048),
        lambda width: margins_gradient(make_problem(_mlp(width, 3), 64), "ibp"),
        *("2", "1 to 2"),
    ),
    "depth, ibp": Curve(
        "IBP, hidden layers of 512, batch 64",
        (2, 4, 8, 16),
        lambda depth: margins(make_problem(_mlp(512, depth), 64), "ibp"),
        *("1", "0"),
    ),
    "depth, crown": Curve(
        "CROWN, hidden layers of 128, 4 images",
        (2, 4, 8, 16),
        lambda depth: margins(make_problem(_mlp(128, depth), 4), "crown"),
        *("2", "0 to 1"),
    ),
    "classes, ibp": Curve(
        "IBP, mnist_small, batch 32",
        (10, 30, 100, 300, 1000),
        lambda classes: margins(make_problem(SMALL.with_classes(classes), 32), "ibp"),
        *("0 to 1", "0 to 1"),
    ),
    "classes, crown_ibp": Curve(
        "CROWN-IBP, mnist_small, 4 images",
        (10, 30, 100, 300, 1000),
        lambda classes: margins(make_problem(SMALL.with_classes(classes), 4), "crown_ibp"),
        *("1", "1"),
    ),
    "image side, ibp": Curve(
        "IBP, mnist_small's layers, batch 16", (16, 32, 64, 128), lambda side: _side(side, "ibp", 16), *("2", "2")
    ),
    "image side, crown": Curve(
        "CROWN, mnist_small's layers, 1 image", (8, 16, 24, 32), lambda side: _side(side, "crown", 1), *("2 to 4", "2")
    ),
    "chunk": Curve(
        "CROWN, mnist_small, 2 images, rows at a time",
        (16, 64, 256, 1024),
        lambda chunk: margins(make_problem(SMALL, 2), "crown", chunk=chunk),
        *("0", "0 to 1"),
    ),
}


def exponent(sizes: Sequence[int], values: Sequence[float | None]) -> float | None:
    """The power of the size that fits values best, by least squares of logarithms; None of fewer than two."""
    known = [(size, value) for size, value in zip(sizes, values, strict=True) if value]
    if len(known) < 2:
        return None
    return float(np.polyfit(*np.log(np.transpose(known)), 1)[0])
