"""What an attacker may do to an image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds import Ball, BoundsError, Interval, l2_ball, linf_ball
from mixtrain_jax.bounds.outward import covering_radius, domain_ends, round_down, round_radius_up, round_up


@dataclasses.dataclass(frozen=True)
class Threat:
    """Every input of the domain that is within `eps` of an image.

    Attributes:
      eps: radius in input units.
      domain: lowest and highest value of a pixel.
      norm: `linf`, the largest change of a pixel, or `l2`, the Euclidean length of all changes.

    Raises:
      BoundsError: where one of them makes no sense.
    """

    eps: float
    domain: tuple[float, float] = (0.0, 1.0)
    norm: Literal["linf", "l2"] = "linf"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.eps) and self.eps >= 0):
            raise BoundsError(f"A threat wants a finite eps >= 0, got {self.eps}.")
        if not self.domain[0] < self.domain[1]:
            raise BoundsError(f"A threat wants a domain (low, high) with low < high, got {self.domain}.")
        if self.norm not in ("linf", "l2"):
            raise BoundsError(f"A threat wants the norm linf or l2, got {self.norm!r}.")

    @property
    def name(self) -> str:
        """The norm in words."""
        return "l-infinity" if self.norm == "linf" else "l2"

    def __str__(self) -> str:
        return f"{self.name} eps {self.eps:g}"

    def doubts(self, shape: Sequence[int]) -> list[str]:
        """A warning where every image of the domain is in every ball; empty otherwise.

        Args:
          shape: of an image.
        """
        width = self.domain[1] - self.domain[0]
        widest = width if self.norm == "linf" else width * math.prod(shape) ** 0.5
        if self.eps < widest:
            return []
        return [
            f"radius: {self} reaches across the whole domain {self.domain}, so every image is within it and nothing "
            f"can be robust. eps is in units of the pixels: give 8 / 255 as {8 / 255 * width:.4g}."
        ]

    def ball(self, images: jax.Array, eps: jax.typing.ArrayLike) -> Interval:
        """The balls of images `[n, ...]`, rounded outwards: what a bound has to cover.

        Args:
          images: `[n, ...]`.
          eps: radii `[n]`; concrete ones are rounded up, traced ones have to be, as `radii` does.
        """
        eps = covering_radius(eps, images.dtype)
        if self.norm == "l2":
            return jax.vmap(lambda image, radius: l2_ball(image, radius, self.domain))(images, eps)
        return linf_ball(images, eps.reshape(eps.shape + (1,) * (images.ndim - 1)), self.domain)

    def radii(self, n: int) -> np.ndarray:
        """The radius `n` times, as float32 that is rounded up: for `ball` inside `jax.jit`."""
        return np.full(n, round_radius_up(self.eps, np.float32))

    def inner(self, images: np.ndarray, eps: np.ndarray) -> Interval:
        """The same balls rounded inwards: no point of them is outside the ball in exact arithmetic.

        Args:
          images: float32 `[n, ...]`.
          eps: radii `[n]`.
        """
        radius = np.asarray(eps, np.float64).reshape(len(images), *(1,) * (images.ndim - 1))
        exact = images.astype(np.float64)
        low, high = round_up(self.domain[0], np.float32), round_down(self.domain[1], np.float32)
        upper = np.minimum(round_down(_sum_below(exact, radius), np.float32), high)
        lower = np.maximum(-round_down(_sum_below(-exact, radius), np.float32), low)
        lower, upper = np.minimum(lower, images), np.maximum(upper, images)
        if self.norm == "l2":
            return Ball(*map(jnp.asarray, (lower, upper, images, round_down(eps, np.float32))), norm=2)
        return Interval(jnp.asarray(lower), jnp.asarray(upper))

    def outside(self, images: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Which points `[n, ...]` are no such inputs of their images, `[n]`: as if in exact arithmetic.

        The ends of the domain are those of float32, rounded outwards, so that pixels at its ends are inside as data
        have them. The float32 points that pass here are all in `ball`.
        """
        exact, points = np.asarray(images, np.float64), np.asarray(points, np.float64)
        axes = tuple(range(1, exact.ndim))
        low, high = domain_ends(self.domain, np.float32)
        in_domain = ((points >= low) & (points <= high)).all(axes)
        if self.norm == "linf":
            away = np.maximum(_sum_above(points, -exact), _sum_above(exact, -points))
            return np.logical_not(in_domain & (away <= self.eps).all(axes))
        length = np.sqrt(np.square(points - exact).sum(axes))
        inside = length <= self.eps
        rounding = (math.prod(exact.shape[1:]) + 8) * float(np.finfo(np.float64).eps)
        for i in np.flatnonzero(in_domain & (np.abs(length - self.eps) <= rounding * self.eps)):
            inside[i] = _squared_distance(exact[i], points[i]) <= Fraction(float(self.eps)) ** 2
        return ~(in_domain & inside)


def _sum_below(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum, or the next number below it where it was rounded up."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)  # exact (Knuth's TwoSum)
    return np.where(error < 0, np.nextafter(total, -np.inf), total)


def _sum_above(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return -_sum_below(-a, -b)


def _squared_distance(a: np.ndarray, b: np.ndarray) -> Fraction:
    pairs = zip(a[a != b], b[a != b], strict=True)
    return sum(((Fraction(float(x)) - Fraction(float(y))) ** 2 for x, y in pairs), Fraction(0))
