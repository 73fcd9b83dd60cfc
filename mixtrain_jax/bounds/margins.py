"""The specification people certify: by how much the label's logit exceeds every other one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mixtrain_jax.bounds.engine import Bounded
from mixtrain_jax.bounds.errors import BoundsError, check_classes, check_labels
from mixtrain_jax.bounds.independence import check_independent, read_batch
from mixtrain_jax.bounds.interval import Ball, Interval, check, concrete
from mixtrain_jax.bounds.loops import largest_array, map_rows
from mixtrain_jax.bounds.symbolic import Method
from mixtrain_jax.bounds.undefined import explain

# Bytes of one array that stay close to a core, with some others of its size; and the fewest examples that are worth a
# pass over all weights, and over their gradients. Forwards, and where each example has many rows.
_FORWARDS = 2**21, 16
_BACKWARDS = 2**20, 4


def margins(
    method: Method, f: Callable[[Any], jax.Array], *, group: int | None = None
) -> Callable[[Interval, ArrayLike], jax.Array]:
    """Lower bounds of `z_y - z_j` for every class `j` other than the label `y`, where `z = f(x)`.

    The differences are folded into the affine maps that end `f`, which is tighter than the difference of two bounds. An
    example is verified when all its margins are positive.

    Args:
      method: `ibp`, `symbolic`, `crown`, `crown_ibp`, or one of them with options by `functools.partial`.
      f: logits of a batch, `[n, ...] -> [n, classes]`, that treats examples independently of each other.
      group: how many examples are bounded at a time, in a loop, which saves memory and may be faster: `group_size` says
        when. None for all at once.

    Returns:
      A function of a ball of shape `[n, ...]` and integer labels `[n]` that returns margins `[n, classes - 1]`, classes
      in order with the label left out. With a scalar label it takes a ball of one example instead, `f` is one of one
      example, `[...] -> [classes]`, and margins are `[classes - 1]`.

    Example:
      >>> import jax.numpy as jnp
      >>> import mixtrain_jax as mt
      >>> ball = mt.linf_ball(jnp.array([[3.0, 1.0]]), eps=0.5)
      >>> mt.margins(mt.ibp, lambda x: 2 * x)(ball, jnp.array([0])).tolist()  # 2 * 3 - 2 * 1 - 2 * 0.5 * 2
      [[2.0]]

    Raises:
      BoundsError: (the returned function) where labels are not integers, don't fit the ball or are no class of `f`;
        where `f` mixes the images of a batch, as its jaxpr says, or the logits of some images where the jaxpr doesn't;
        and, outside `jit`, where a margin is NaN, with the operation and the line in which NaN arises.
    """

    def bounded(ball: Interval, labels: ArrayLike) -> jax.Array:
        labels = jnp.asarray(labels)
        ball = check(ball) if jnp.ndim(labels) == 0 else _checked_batch(ball, labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim > 1:
            raise BoundsError(f"margins wants integer labels, a scalar or [n], got {labels.dtype}{list(labels.shape)}.")
        if ball.shape[:1] != labels.shape and labels.ndim == 1:
            raise BoundsError(
                f"margins wants one label an example, got a ball of shape {list(ball.shape)} and {len(labels)} labels."
            )
        verdict, logits = read_batch(f, ball.lower) if labels.ndim else (None, jax.eval_shape(f, ball.lower))
        if len(logits.shape) != labels.ndim + 1 or (verdict is not None and logits.shape[0] != verdict.size):
            raise BoundsError(
                f"margins wants the logits of at least 2 classes, {list(labels.shape)} + [classes], "
                f"got an output of shape {list(logits.shape)}."
            )
        check_classes("margins", logits.shape)
        if (values := concrete(labels)) is not None:
            check_labels("margins", values, logits.shape[-1])

        if verdict is not None:
            check_independent(f, ball.lower, verdict)

        def example(x: Interval, label: jax.Array, of_one: Callable[[Any], jax.Array]) -> jax.Array:
            return method(of_one).differences(label, x).lower

        if labels.ndim == 0:
            return example(ball, labels, f)
        of_one = lambda v: f(v[None])[0]  # noqa: E731
        found = map_rows(lambda row: example(row[0], row[1], of_one), (ball, labels), group)
        _refuse_nan(found, method(of_one), ball)
        return found

    return bounded


def _refuse_nan(margins: jax.Array, bounded: Any, ball: Interval) -> None:
    """Raise where a margin has a value and that is NaN."""
    values = concrete(margins)
    if values is None or not (lost := np.isnan(values).any(-1)).any():
        return
    first = int(lost.argmax())
    found = bounded.undefined(jax.tree.map(lambda x: x[first], ball)) if isinstance(bounded, Bounded) else []
    raise BoundsError(f"The margins of example {first} are NaN ({lost.sum()} of {len(values)} are). {explain(found)}")


def group_size(method: Method | None, f: Callable[[Any], jax.Array], shape: Sequence[int]) -> int | None:
    """How many examples are best worked on at a time, for speed; for less memory any smaller number will do.

    What lies between the layers for a few examples stays in the caches of a core, which saves a CPU up to a third of
    the time of a gradient. A bound that goes backwards has a copy of the widest layer for each row of each example:
    there it saves half.

    Args:
      method: as for `margins`, whose `group` this is; None for `f` itself.
      f: as for `margins`.
      shape: of one example.

    Returns:
      A number of examples; None, all at once, on accelerators and on several devices.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return None
    backwards = method is not None and method(f).domain.slopes is not None
    cached, fewest = _BACKWARDS if backwards else _FORWARDS

    def of_one(x: jax.Array) -> jax.Array:
        return f(x[None])[0] if method is None else margins(method, lambda v: f(v[None])[0])(Interval(x, x), 0)

    size = largest_array(of_one, jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
    return max(fewest, 1 << max(1, cached // size).bit_length() - 1)


def _checked_batch(ball: Interval, labels: jax.Array) -> Interval:
    """A batch of boxes, or of `Ball`s with a point and a radius for each example, as `jax.vmap(l2_ball)` makes them."""
    box = check(Interval(ball.lower, ball.upper))
    if isinstance(ball, Ball) and jnp.shape(ball.eps) != labels.shape:
        raise BoundsError(
            f"margins wants a Ball for each example, got radii of shape {list(jnp.shape(ball.eps))} "
            f"and {len(labels)} labels; make them by jax.vmap."
        )
    return ball if isinstance(ball, Ball) else box


def specification(label: ArrayLike, classes: int, dtype: Any = jnp.float32) -> jax.Array:
    """Rows `e_y - e_j` for the classes `j` other than the label `y`, in order: `[classes - 1, classes]`."""
    others = jnp.arange(classes - 1, dtype=jnp.asarray(label).dtype)
    others = jnp.where(others >= label, others + 1, others)
    return jax.nn.one_hot(label, classes, dtype=dtype)[None] - jax.nn.one_hot(others, classes, dtype=dtype)
