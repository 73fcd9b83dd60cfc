"""A function that keeps a bound rule of its own, weights included, wherever it is called.

The call is a primitive of jax, which no transformation opens: it stays one operation under `jit`, `scan`, `remat` and
`vmap`, and its values under `grad`. What it is made of is written out when it is compiled. Rules belong to the function
they were given with, and no other function ever meets them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from mixtrain_jax.bounds import rounding, rules
from mixtrain_jax.bounds.affine import AffineProgram, affine_program
from mixtrain_jax.bounds.curves import Curve
from mixtrain_jax.bounds.elementwise import curve_rule
from mixtrain_jax.bounds.errors import BoundsError
from mixtrain_jax.bounds.interval import Interval, concrete
from mixtrain_jax.bounds.relaxations import Slopes
from mixtrain_jax.bounds.rules import Affine, Arrays, Relaxation, Rule, Value
from mixtrain_jax.bounds.tape import Op, Ref

Function = Callable[..., Any]
Batch = tuple[tuple[bool, ...], ...]  # of each `vmap`, the innermost first: which operands it maps, along their axis 0


@dataclasses.dataclass(frozen=True)
class CustomRule:
    """How a function is bounded, said for one example: under `vmap` the library maps the rule as well.

    Both functions take the arguments of the function they belong to. Every array that depends on an interval is an
    `Interval` there, every other is the array itself.

    Attributes:
      interval: returns what the function returns, every array an `Interval` of its shape and dtype that holds its
        range.
      relax: returns two functions `(lower, upper)` of the same arguments, arrays now, with
        `lower(*args) <= f(*args) <= upper(*args)` for all values in the intervals. Both are affine in the arguments
        that are intervals, which is checked: additions, products with what is exact, and moves. None to bound the
        function by its interval alone.
    """

    interval: Function
    relax: Function | None = None


def custom_rule(
    f: Function, rule: CustomRule | Curve, *, rounding: Function | None = None, name: str | None = None
) -> Function:
    """Give a function a bound rule.

    Args:
      f: a pure function of arrays and pytrees of arrays, such as an activation or a layer of its weights and inputs.
        All that is traced comes in by its arguments.
      rule: a `Curve`, for an entrywise function of one array; or a `CustomRule`.
      rounding: what `sound=True` needs. It takes the arguments as `rule.interval` does and returns, for every output,
        a number or an array: how far in floating point each of these may be from the exact value over the box, `f`
        itself, the ends of `rule.interval`, and `lower` and `upper` as functions with the coefficients they have.
        Without it bounds with `sound=True` raise.
      name: what errors call it, by default the name of `f`.

    Returns:
      A function with the values and the derivatives of `f`.

    Raises:
      BoundsError: when called, where `f` closes over a traced value, or a `Curve` was given and `f` does not map one
        floating array to one of its shape; when bounded, where the rule raises or returns what it should not.
    """
    call = _Call(f, rule, rounding, name or getattr(f, "__name__", type(f).__name__))
    primitive = _CURVE if isinstance(rule, Curve) else _WHOLE

    @functools.wraps(f)
    def called(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        if any(isinstance(x, jax.core.Tracer) for x in closed.consts):
            raise BoundsError(
                f"{call.name!r} closes over a traced value, of which its rule knows nothing: make it an argument."
            )
        outputs, out_tree = jax.tree.flatten(shapes)
        if primitive is _CURVE:
            _check_entrywise(call.name, leaves, outputs)
        results = primitive.bind(*leaves, call=call, tree=tree, out_tree=out_tree, batch=())
        return jax.tree.unflatten(out_tree, results)

    return called


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """What was given to `custom_rule`."""

    f: Function
    rule: CustomRule | Curve
    rounding: Function | None
    name: str


def _check_entrywise(name: str, leaves: Sequence[Any], outputs: Sequence[jax.ShapeDtypeStruct]) -> None:
    shapes = [jnp.shape(x) for x in leaves]
    if not (len(shapes) == len(outputs) == 1 and shapes[0] == outputs[0].shape and _is_floating(outputs[0])):
        raise BoundsError(
            f"A Curve is the rule of a function that maps one floating array to one of its shape; {name!r} maps "
            f"{shapes} to {[(x.shape, str(x.dtype)) for x in outputs]}. Give it a CustomRule."
        )


# --- the primitive --------------------------------------------------------------------------------------------------


def _mapped(f: Function, batch: Batch) -> Function:
    for mapped in batch:
        f = jax.vmap(f, in_axes=tuple(0 if m else None for m in mapped))
    return f


def _written_out(*operands: Any, call: _Call, tree: Any, out_tree: Any, batch: Batch) -> list[jax.Array]:
    """What the primitive computes."""

    def flat(*leaves: Any) -> list[jax.Array]:
        return list(map(jnp.asarray, jax.tree.leaves(call.f(*jax.tree.unflatten(tree, leaves)))))

    return _mapped(flat, batch)(*operands)


def inlined(**params: Any) -> Callable[..., list[jax.Array]]:
    """The plain function of the operands that an operation with these parameters computes."""
    return functools.partial(_written_out, **params)


def _primitive(name: str) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True

    def differentiated(primals: Any, tangents: Any, **params: Any) -> Any:
        moving = [not isinstance(t, ad.Zero) and t.dtype != jax.dtypes.float0 for t in tangents]

        def of_moving(*values: Any) -> Any:
            given = iter(values)
            operands = [next(given) if m else x for m, x in zip(moving, primals, strict=True)]
            return _written_out(*operands, **params)

        at, change = ([x for m, x in zip(moving, values, strict=True) if m] for values in (primals, tangents))
        _, changes = jax.jvp(of_moving, at, change)
        return primitive.bind(*primals, **params), changes

    def mapped(operands: Any, dims: Any, *, batch: Batch, **params: Any) -> Any:
        operands = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)]
        batch = (*batch, tuple(d is not None for d in dims))
        outputs = primitive.bind(*operands, batch=batch, **params)
        return outputs, (0,) * len(outputs)

    primitive.def_impl(_written_out)
    primitive.def_abstract_eval(lambda *avals, **params: jax.make_jaxpr(inlined(**params))(*avals).out_avals)
    ad.primitive_jvps[primitive] = differentiated
    batching.primitive_batchers[primitive] = mapped
    mlir.register_lowering(primitive, mlir.lower_fun(_written_out, multiple_results=True))
    return primitive


_WHOLE, _CURVE = _primitive("custom_rule"), _primitive("custom_curve")
PRIMITIVES = (_WHOLE, _CURVE)

# --- the rule of the primitive --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _blamed(op: Op, what: str) -> Iterator[None]:
    """Errors of a rule by its name; matrix products of it at full precision."""
    try:
        with jax.default_matmul_precision("highest"):
            yield
    except BoundsError as error:
        raise BoundsError(f"{_named(op, what)} {error}\n  It is called at {op.source()}") from error
    except Exception as error:
        raise BoundsError(
            f"{_named(op, what)} raised {type(error).__name__}: {error}\n  It is called at {op.source()}"
        ) from error


def _named(op: Op, what: str) -> str:
    return f"The {what} of the rule of {op.params['call'].name!r}"


def _leaves(operands: Sequence[Value]) -> list[Value]:
    """Boxes of operands; of a ball its box, which `vmap` can map."""
    return [Interval(x.lower, x.upper) if isinstance(x, Interval) else x for x in operands]


def _examples(op: Op) -> list[jax.ShapeDtypeStruct]:
    """The outputs of one example."""
    return [jax.ShapeDtypeStruct(ref.shape[len(op.params["batch"]) :], ref.dtype) for ref in op.outputs]


def _flat(op: Op, result: Any) -> list[Any]:
    leaves, tree = jax.tree.flatten(result, is_leaf=lambda x: isinstance(x, Interval))
    if tree != op.params["out_tree"]:
        raise BoundsError(f"returned {tree}, expected what the function returns, {op.params['out_tree']}.")
    return leaves


def _interval(op: Op, operands: Sequence[Value]) -> list[Interval]:
    call, tree = op.params["call"], op.params["tree"]

    def one(*leaves: Value) -> list[Interval]:
        boxes = _flat(op, call.rule.interval(*jax.tree.unflatten(tree, leaves)))
        return [_checked(box, out) for box, out in zip(boxes, _examples(op), strict=True)]

    with _blamed(op, "interval"):
        boxes = _mapped(one, op.params["batch"])(*_leaves(operands))
        for box in boxes:
            ends = concrete(box.lower), concrete(box.upper)
            if ends[0] is not None and ends[1] is not None and np.any(ends[0] > ends[1]):
                raise BoundsError("returned an Interval whose lower end is above the upper one.")
    return boxes


def _checked(box: Any, out: jax.ShapeDtypeStruct) -> Interval:
    if not isinstance(box, Interval):
        raise BoundsError(f"returned {type(box).__name__}, expected an Interval of {out.dtype}{list(out.shape)}.")
    lower, upper = jnp.asarray(box.lower), jnp.asarray(box.upper)
    for end in (lower, upper):
        if end.shape != out.shape or end.dtype != out.dtype:
            raise BoundsError(
                f"returned an Interval of {end.dtype}{list(end.shape)}, expected {out.dtype}{list(out.shape)}."
            )
    return Interval(lower, upper)


def _relax(op: Op, operands: Sequence[Value], slopes: Slopes) -> Relaxation | None:
    if op.params["call"].rule.relax is None:
        return None
    with _blamed(op, "relax"):
        both = affine_program(_both_sides(op, _leaves(operands)), op.refs)
    count = len(op.outputs)
    lower, upper = both.of_outputs(range(count)), both.of_outputs(range(count, 2 * count))
    boxes = [x for x in operands if isinstance(x, Interval)]
    below, above = lower.sizes(boxes), upper.sizes(boxes)
    scale = tuple(jnp.maximum(a, b) for a, b in zip(below.outputs, above.outputs, strict=True))
    return Relaxation(_affine(lower), _affine(upper), scale, below.floor + above.floor)


def _affine(program: AffineProgram) -> Affine:
    offsets, transpose = jax.vjp(lambda *values: tuple(program(*values)), *(ref.zeros() for ref in program.inputs))
    return Affine(transpose, offsets)


def _both_sides(op: Op, operands: Sequence[Value]) -> Callable[..., list[jax.Array]]:
    """The function of the interval operands that returns the outputs of `lower`, then those of `upper`."""
    call, tree, count = op.params["call"], op.params["tree"], len(op.operands)
    ranges = [isinstance(x, Ref) for x in op.operands]

    def one(*leaves: Any) -> list[jax.Array]:
        given = iter(leaves[count:])
        values = [next(given) if moves else x for moves, x in zip(ranges, leaves[:count], strict=True)]
        sides = call.rule.relax(*jax.tree.unflatten(tree, leaves[:count]))
        if not isinstance(sides, tuple) or len(sides) != 2 or not all(map(callable, sides)):
            raise BoundsError("returned no pair of functions (lower, upper).")
        outputs = [_flat(op, side(*jax.tree.unflatten(tree, values))) for side in sides]
        return [_of_shape(x, out) for side in outputs for x, out in zip(side, _examples(op), strict=True)]

    batch = tuple(
        (*flags, *(m for m, moves in zip(flags, ranges, strict=True) if moves)) for flags in op.params["batch"]
    )
    return lambda *values: _mapped(one, batch)(*operands, *values)


def _of_shape(x: Any, out: jax.ShapeDtypeStruct) -> jax.Array:
    x = jnp.asarray(x)
    if x.shape != out.shape or x.dtype != out.dtype:
        raise BoundsError(f"returned a function of {x.dtype}{list(x.shape)}, expected {out.dtype}{list(out.shape)}.")
    return x


def _rounded(op: Op, operands: Sequence[Value], outputs: Sequence[Interval]) -> Arrays:
    """What the deployed function and its rule add, each as much as the user says."""
    call, tree = op.params["call"], op.params["tree"]
    if call.rounding is None:
        raise BoundsError(
            f"The rule of {call.name!r} does not say what rounding adds, without which it proves nothing in floating "
            f"point: give custom_rule its `rounding`, or bound without sound=True.\n  It is called at {op.source()}"
        )

    def one(*leaves: Value) -> list[jax.Array]:
        errors = _flat(op, call.rounding(*jax.tree.unflatten(tree, leaves)))
        cases = zip(errors, _examples(op), strict=True)
        return [jnp.broadcast_to(jnp.asarray(e, rounding.coarsest(out.dtype)), out.shape) for e, out in cases]

    with _blamed(op, "rounding"):
        errors = _mapped(one, op.params["batch"])(*_leaves(operands))
    return tuple(2.1 * jnp.maximum(e, 0) + rounding.tiny(e.dtype) for e in errors)


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


rules.register(Rule("custom", _interval, relax=_relax, rounded=_rounded, way="the planes of its rule"), _WHOLE)
_OF_CURVE = curve_rule(lambda op: op.params["call"].rule)  # as deployed it may leave the curve's codomain
rules.register(dataclasses.replace(_OF_CURVE, rounded=_rounded, limits=None), _CURVE)
