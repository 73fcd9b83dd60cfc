"""Bounds of margins in NumPy and float64, made anew for the check of certificates.

Shares no code with `mixtrain_jax.bounds`. Every bound holds in real arithmetic and for the network as deployed, whose
operations are rounded in a narrower float dtype and whose sums come in any order; the roundings of the float64
computation itself are counted and taken off too. Beside every bound stand a `floor` and a `ceiling` that the same
method in the float dtype of the network can be expected to lie between; they are no bounds of anything, but what tells
a margin that was computed from one that was made up.

Rounding is counted by Higham (Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1): a sum of `n`
products, in any order, is off by at most `n u / (1 - n u)` of the sum of their absolute values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mixtrain_jax.certify.program import Program, Step
from mixtrain_jax.errors import CertificateError

UNIT = 2.0**-53  # of float64
_TINY = 1e-200  # far more than all that underflow can take off
_ENTRIES = 2**18  # coefficients of one step in memory at a time
_SURPLUS = 2.0  # by how much the roundings that a sound bound allows for may exceed those counted here


class Box(NamedTuple):
    """Bounds of a value for each image, `[images, *shape]`, and the ends that a narrower float dtype would find.

    Entries whose ends are crossed are NaN, which proves nothing.
    """

    lower: np.ndarray
    upper: np.ndarray
    lower_floor: np.ndarray  # at most `lower`
    upper_floor: np.ndarray  # at least `upper`

    @property
    def size(self) -> np.ndarray:
        """Largest absolute value, entry by entry."""
        return np.maximum(np.abs(self.lower), np.abs(self.upper))

    @property
    def doubt(self) -> np.ndarray:
        """How far off the ends of the narrower dtype may be."""
        return np.maximum(self.lower - self.lower_floor, self.upper_floor - self.upper)


class Lines(NamedTuple):
    """`slope * x` below and `upper_slope * x + offset` above `max(x, 0)` on a box, and what of that is in doubt."""

    slope: np.ndarray
    upper_slope: np.ndarray
    offset: np.ndarray
    doubt: np.ndarray
    unstable: np.ndarray


class Analysis(NamedTuple):
    """Boxes of all values, lines of the ReLUs by the number of the value that they make, and the largest numbers."""

    boxes: list[Box]
    lines: dict[int, Lines]
    largest: np.ndarray  # that sums on the way can reach, in whatever order, for each image


class Bound(NamedTuple):
    """Lower bounds, proved in real arithmetic, and between what the narrower dtype's are: `[images, rows]` each."""

    lower: np.ndarray
    floor: np.ndarray
    ceiling: np.ndarray


def ball(images: np.ndarray, eps: np.ndarray, domain: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Ends of `{x : |x - image| <= eps, low <= x <= high}`, rounded outwards: `[n, ...]` each, radii `[n]`.

    Raises:
      CertificateError: where a radius is negative or not finite, or an image is not in the domain: its ball would not
        hold it, and the ends might be crossed.
    """
    center = images.astype(np.float64)
    radius = eps.astype(np.float64).reshape(-1, *(1,) * (images.ndim - 1))
    if not ((radius >= 0) & np.isfinite(radius)).all():
        raise CertificateError("A ball wants a finite radius from 0.")
    lower, upper = _sum_below(center, -radius), -_sum_below(-center, -radius)
    lower, upper = np.maximum(lower, domain[0]), np.minimum(upper, domain[1])
    if not ((lower <= center) & (center <= upper)).all():  # NaN is not
        raise CertificateError(f"A ball wants an image in the domain {domain}.")
    return lower, upper


def float_domain(domain: tuple[float, float], dtype: Any) -> tuple[float, float]:
    """The ends of a domain in a float dtype, rounded outwards: pixels at its ends as data have them are inside."""
    low, high = (np.asarray(end, dtype) for end in domain)
    low = np.nextafter(low, np.asarray(-np.inf, dtype)) if float(low) > domain[0] else low
    high = np.nextafter(high, np.asarray(np.inf, dtype)) if float(high) < domain[1] else high
    return float(low), float(high)


def _sum_below(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum, or the next number below it where it was rounded (Knuth's TwoSum has the error)."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    return np.where(error == 0, total, np.nextafter(total, -np.inf))


def analyse(
    program: Program, lower: np.ndarray, upper: np.ndarray, *, slopes: str = "adaptive", tighten: bool = False
) -> Analysis:
    """Boxes of every value, in order.

    Args:
      program: the network.
      lower: of every pixel, `[images, ...]`.
      upper: of every pixel, `[images, ...]`.
      slopes: `adaptive`, those of CROWN (Zhang et al., arXiv 1811.00866), or `parallel`, those of symbolic intervals
        (Wang et al., arXiv 1811.02625).
      tighten: whether operands of ReLUs get boxes from backward passes, intersected with their interval ones.
    """
    shape = (len(lower), *program.shapes[0])
    ends = lower.reshape(shape), upper.reshape(shape)
    known, mixed = Analysis([_ordered(Box(*ends, *ends))], {}, np.zeros(len(lower))), [0]
    for number, step in enumerate(program.steps, 1):
        if step.linear is None:
            (before,) = step.inputs
            if tighten and mixed[before] > 1:
                known.boxes[before] = _ordered(_tightened(program, known, before))
            box = known.boxes[before]
            known.lines[number] = _relu_lines(box, slopes, program.unit)
            known.boxes.append(Box(*(np.maximum(end, 0) for end in box)))
        else:
            box, size = _affine(step, [known.boxes[x] for x in step.inputs], program)
            known.boxes.append(_ordered(box))
            known.largest[:] = np.maximum(known.largest, _largest(size))
        mixed.append(_mixed(step, mixed, program))
    return known


def _mixed(step: Step, mixed: list[int], program: Program) -> int:
    """0 while entries are independent of each other, 1 where each attains the ends of its box, 2 otherwise."""
    if len(step.inputs) > 1:
        return 2
    (before,) = step.inputs
    copies = np.prod(step.shape) > np.prod(program.shapes[before])
    if step.name in ("dot_general", "convolution", "reduce_sum") or copies:
        return 1 if mixed[before] == 0 else 2
    return mixed[before]


def _ordered(box: Box) -> Box:
    """The box, NaN where its ends are crossed."""
    crossed = ~(box.lower <= box.upper)
    return Box(*(np.where(crossed, np.nan, end) for end in box)) if crossed.any() else box


def _largest(values: np.ndarray) -> np.ndarray:
    """Largest value of each image, `[images]`; NaN where one is."""
    return values.reshape(len(values), -1).max(1, initial=0)


def _affine(step: Step, boxes: list[Box], program: Program) -> tuple[Box, np.ndarray]:
    """Center and radius through an affine step (Gowal et al., arXiv 1810.12715), widened by the roundings.

    Returns:
      The box, and the sum of the absolute values of the step's terms.
    """
    assert step.linear is not None
    center = step.linear([(box.lower + box.upper) / 2 for box in boxes], False)
    radius = step.linear([(box.upper - box.lower) / 2 for box in boxes], True)
    size = step.linear([box.size for box in boxes], True)
    doubt = step.linear([box.doubt for box in boxes], True)
    if step.offset is not None:
        center, size = center + step.offset, size + np.abs(step.offset)
    wide = radius + _roundings(2 * step.terms + 8, UNIT) * size + _deployed(step, boxes, size, program) + _TINY
    wider = wide + doubt + _SURPLUS * _roundings(2 * step.terms + 16, program.unit) * size
    return Box(center - wide, center + wide, center - wider, center + wider), size


def _deployed(step: Step, boxes: list[Box], size: np.ndarray, program: Program) -> np.ndarray:
    """By how much the step may be off where it is deployed, at operands in these boxes; `size` is that of its terms.

    Products, and weights that are subnormal, may count as 0.
    """
    if not step.summed:
        return np.zeros_like(size)
    flushed = 2 * step.summed * program.tiny * (1 + np.sum([_largest(box.size) for box in boxes], 0))
    return _roundings(step.summed, program.unit) * size + flushed.reshape(-1, *(1,) * (size.ndim - 1))


def _roundings(count: int, unit: float) -> float:
    return 1.01 * count * unit / (1 - count * unit) if count * unit < 0.5 else np.inf


def _relu_lines(box: Box, slopes: str, unit: float) -> Lines:
    lower, upper = box.lower, box.upper
    unstable = (lower < 0) & (upper > 0)
    active = (lower >= 0).astype(np.float64)
    chord = np.where(unstable, upper / np.where(unstable, upper - lower, 1), active)
    # The least offset for the slope as it was rounded: a convex function is below a line that is above both ends.
    offset = np.maximum(-chord * lower, (1 - chord) * upper) * (1 + 8 * UNIT) + _TINY
    offset = np.where(unstable, offset, 0)
    near = (box.lower_floor < 0) & (box.upper_floor > 0)
    doubt = np.where(near, box.doubt, 0)
    if slopes == "parallel":
        return Lines(np.minimum(chord, 1), chord, offset, doubt, unstable)
    steep = np.where(unstable, (upper > -lower).astype(np.float64), active)
    # Where the two ends are about as far from 0, the narrower dtype may choose the other slope.
    either = unstable & (np.abs(upper + lower) <= 2 * box.doubt + 8 * unit * box.size)
    doubt = doubt + np.where(either, np.maximum(upper, -lower), 0)
    return Lines(steep, chord, offset, doubt, unstable)


def _tightened(program: Program, known: Analysis, number: int) -> Box:
    """Box of a value from a backward pass over each entry that can be positive, where it is better than the box."""
    box = known.boxes[number]
    shape, images = box.lower.shape[1:], len(box.lower)
    ends = [end.reshape(images, -1).copy() for end in box]
    needed = np.flatnonzero((ends[3] > 0).any(0))
    at_a_time = max(1, _ENTRIES // (images * max(map(_size, program.shapes))))
    for start in range(0, len(needed), at_a_time):
        rows = needed[start : start + at_a_time]
        seed = np.zeros((1, len(rows), ends[0].shape[1]))
        seed[0, np.arange(len(rows)), rows] = 1
        seed = np.broadcast_to(seed.reshape(1, len(rows), *shape), (images, len(rows), *shape))
        below, above = (pull(program, known, {number: sign * seed}) for sign in (1.0, -1.0))
        for end, found, better in (
            (ends[0], below.lower, np.maximum),
            (ends[1], -above.lower, np.minimum),
            (ends[2], below.floor, np.maximum),
            (ends[3], -above.floor, np.minimum),
        ):
            end[:, rows] = better(end[:, rows], found)
    return Box(*(end.reshape(box.lower.shape) for end in ends))


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def pull(
    program: Program,
    known: Analysis,
    seeds: Mapping[int, np.ndarray],
    *,
    boxes_only: bool = False,
    slopes: Mapping[int, np.ndarray] | None = None,
    keep: dict[int, np.ndarray] | None = None,
) -> Bound:
    """Lower bounds of linear functions of values, pulled back to the pixels.

    Args:
      program: the network.
      known: boxes and lines of what comes before the values.
      seeds: coefficients of each value, `[images, rows, *shape]`.
      boxes_only: whether to stop at ReLUs, whose boxes are the end of the way then.
      slopes: lower slopes of ReLUs for each row, instead of those known, `[images, rows, *shape]`.
      keep: receives the coefficients of every ReLU and of the image, by number, where it is given.
    """
    pending = dict(seeds)
    images, rows = next(iter(pending.values())).shape[:2]
    value, sizes, error, doubt = (np.zeros((images, rows)) for _ in range(4))

    def count(coefficients: np.ndarray, scale: np.ndarray, terms: int) -> None:
        # The products of the step, the inner product with the offsets, and the sum where ways meet.
        nonlocal error, doubt
        total = _inner(np.abs(coefficients), scale)
        entries = _size(scale.shape[1:])
        error += _roundings(terms + entries + len(program.shapes) + 16, UNIT) * total
        doubt += _SURPLUS * _roundings(terms + 2 * (int(entries**0.5) + 1) + 16, program.unit) * total

    def add(term: np.ndarray) -> None:
        nonlocal value, sizes
        value, sizes = value + term, sizes + np.abs(term)

    for number in range(max(pending), 0, -1):
        step = program.steps[number - 1]
        if number not in pending or (boxes_only and step.linear is None):
            continue
        coefficients = pending.pop(number)
        if step.linear is None:
            if keep is not None:
                keep[number] = coefficients
            (before,) = step.inputs
            lines, box = known.lines[number], known.boxes[before]
            slope = lines.slope[:, None] if slopes is None or number not in slopes else slopes[number]
            falling = np.minimum(coefficients, 0)
            add(_inner(falling, lines.offset))
            count(coefficients, box.size + lines.offset, 2)
            doubt += _inner(np.abs(coefficients), lines.doubt)
            contributions = [np.where(coefficients > 0, slope, lines.upper_slope[:, None]) * coefficients]
        else:
            assert step.transpose is not None
            boxes = [known.boxes[x] for x in step.inputs]
            scale = step.linear([box.size for box in boxes], True)
            if step.offset is not None:
                offset = np.broadcast_to(step.offset, (images, *step.shape))
                add(_inner(coefficients, offset))
                scale = scale + np.abs(offset)
            count(coefficients, scale, 2 * step.terms)
            error += _inner(np.abs(coefficients), _deployed(step, boxes, scale, program))
            flat = step.transpose(coefficients.reshape(-1, *step.shape))
            contributions = [part.reshape(images, rows, *part.shape[1:]) for part in flat]
        for x, part in zip(step.inputs, contributions, strict=True):
            pending[x] = pending[x] + part if x in pending else part
    for number, coefficients in pending.items():
        if keep is not None:
            keep[number] = coefficients
        box = known.boxes[number]
        center, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
        add(_inner(coefficients, center))
        add(-_inner(np.abs(coefficients), radius))
        count(coefficients, np.abs(center) + radius, 4)
        doubt += _inner(np.abs(coefficients), box.doubt)
    terms = 3 * len(program.shapes)
    error = error * (1 + 1e-6) + _roundings(terms, UNIT) * sizes + _TINY
    doubt = doubt + _SURPLUS * _roundings(terms, program.unit) * sizes
    lower = np.nextafter(value - error, -np.inf)
    return Bound(lower, lower - doubt, lower + doubt)


def _inner(coefficients: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Inner products of coefficients `[images, rows, ...]` with values `[images, ...]`: `[images, rows]`."""
    images, rows = coefficients.shape[:2]
    return np.matmul(coefficients.reshape(images, rows, -1), values.reshape(images, -1, 1))[..., 0]


def margins(program: Program, known: Analysis, labels: np.ndarray, *, boxes_only: bool = False) -> Bound:
    """Bounds of `z_y - z_j` for the classes `j` other than the labels `[images]`, in order: `[images, classes - 1]`.

    They are the better of a backward pass to the pixels and of one that stops at the boxes of the last ReLUs, or the
    latter alone.
    """
    seeds = {program.output: specification(program, labels)}
    folded = pull(program, known, seeds, boxes_only=True)
    if boxes_only:
        return folded
    return Bound(*map(np.maximum, folded, pull(program, known, seeds)))


def specification(program: Program, labels: np.ndarray) -> np.ndarray:
    """Coefficients of the margins, `[images, classes - 1, 1, classes]`."""
    classes = program.shapes[program.output][-1]
    differences = np.eye(classes)[labels][:, None] - np.eye(classes)[None]
    others = np.array([[j for j in range(classes) if j != label] for label in labels], int).reshape(-1, classes - 1)
    return np.take_along_axis(differences, others[..., None], 1)[:, :, None]


def ascend(program: Program, known: Analysis, labels: np.ndarray, steps: int, goal: float) -> Bound:
    """Margins with lower slopes chosen for each, by steps of Adam up the bound (alpha-CROWN, arXiv 2011.13824).

    The gradient is in closed form. The bound is linear in the slope of a ReLU: its factor is the coefficient of the
    ReLU times the value that its operand takes at the pixels that attain the bound, carried forwards along the lines.

    Args:
      program: the network.
      known: boxes and lines.
      labels: `[images]`.
      steps: of Adam, rate 0.1.
      goal: smallest margin that is enough to stop at.

    Returns:
      The best of each margin that was met, never worse than those of `margins`.
    """
    best, seeds = margins(program, known, labels), {program.output: specification(program, labels)}
    rows = best.lower.shape[1]
    slopes = {
        number: np.repeat(lines.slope[:, None], rows, 1)
        for number, lines in known.lines.items()
        if lines.unstable.any()
    }
    first = {number: np.zeros_like(slope) for number, slope in slopes.items()}
    second = {number: np.zeros_like(slope) for number, slope in slopes.items()}
    for i in range(1, steps + 1):
        if best.lower.min() >= goal or not slopes:
            break
        keep: dict[int, np.ndarray] = {}
        found = pull(program, known, seeds, slopes=slopes, keep=keep)
        best = Bound(*map(np.maximum, best, found))
        for number, gradient in _gradient(program, known, slopes, keep).items():
            first[number] = 0.9 * first[number] + 0.1 * gradient
            second[number] = 0.999 * second[number] + 0.001 * gradient**2
            move = first[number] / (1 - 0.9**i) / (np.sqrt(second[number] / (1 - 0.999**i)) + 1e-8)
            slopes[number] = np.clip(slopes[number] + 0.1 * move, 0, 1)
            stable = ~known.lines[number].unstable[:, None]
            slopes[number] = np.where(stable, known.lines[number].slope[:, None], slopes[number])
    return best


def _gradient(
    program: Program, known: Analysis, slopes: Mapping[int, np.ndarray], keep: Mapping[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """Of the bounds in the slopes, from the coefficients that a pass kept."""
    image = known.boxes[0]
    images, rows = keep[0].shape[:2]
    worst = np.where(keep[0] > 0, image.lower[:, None], image.upper[:, None])
    values = [worst.reshape(images * rows, *program.shapes[0])]
    gradients = {}
    for number, step in enumerate(program.steps, 1):
        if step.linear is not None:
            out = step.linear([values[x] for x in step.inputs], False)
            values.append(out if step.offset is None else out + step.offset)
            continue
        (before,) = step.inputs
        x, lines = values[before].reshape(images, rows, *step.shape), known.lines[number]
        slope = slopes.get(number, lines.slope[:, None])
        coefficients = keep.get(number, np.zeros((images, rows, *step.shape)))
        above = lines.upper_slope[:, None] * x + lines.offset[:, None]
        values.append(np.where(coefficients > 0, slope * x, above).reshape(images * rows, *step.shape))
        if number in slopes:
            gradients[number] = np.where(lines.unstable[:, None], np.maximum(coefficients, 0) * x, 0)
    return gradients
