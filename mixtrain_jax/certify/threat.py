"""What an attacker may do to an image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.bounds import Ball, BoundsError, Interval, l2_ball, linf_ball


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

    def ball(self, images: jax.Array, eps: jax.Array) -> Interval:
        """The balls of images `[n, ...]` with radii `[n]`, rounded outwards: what a bound has to cover."""
        if self.norm == "l2":
            return jax.vmap(lambda image, radius: l2_ball(image, radius, self.domain))(images, eps)
        return linf_ball(images, eps.reshape(eps.shape + (1,) * (images.ndim - 1)), self.domain)

    def inner(self, images: np.ndarray, eps: np.ndarray) -> Interval:
        """The same balls rounded inwards: no point of them is outside the ball in exact arithmetic.

        Args:
          images: float32 `[n, ...]`.
          eps: radii `[n]`.
        """
        radius = np.asarray(eps, np.float64).reshape(len(images), *(1,) * (images.ndim - 1))
        exact = images.astype(np.float64)
        upper = np.minimum(_round_down(exact + radius), np.float32(self.domain[1]))
        lower = np.maximum(-_round_down(radius - exact), np.float32(self.domain[0]))
        lower, upper = np.minimum(lower, images), np.maximum(upper, images)
        if self.norm == "l2":
            return Ball(*map(jnp.asarray, (lower, upper, images, np.asarray(eps, np.float32))), norm=2)
        return Interval(jnp.asarray(lower), jnp.asarray(upper))

    def outside(self, images: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Which points `[n, ...]` are no such inputs of their images, `[n]`, judged in float64."""
        points, axes = np.asarray(points, np.float64), tuple(range(1, images.ndim))
        away = np.abs(points - np.asarray(images, np.float64))
        length = away.max(axes, initial=0) if self.norm == "linf" else np.sqrt(np.square(away).sum(axes))
        low, high = np.float32(self.domain[0]), np.float32(self.domain[1])
        in_domain = ((points >= low) & (points <= high)).all(axes)
        return ~(in_domain & (length <= self.eps))


def _round_down(x: np.ndarray) -> np.ndarray:
    """The largest float32 at most each float64."""
    near = x.astype(np.float32)
    return np.where(near > x, np.nextafter(near, np.float32(-np.inf)), near)
