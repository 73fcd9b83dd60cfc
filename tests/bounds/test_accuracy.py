"""Elementary functions are as accurate on this backend as float soundness takes them to be.

`python tests/bounds/test_accuracy.py` prints what was measured, in units of roundoff, beside what is assumed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from compiling import optimizing_jit
from flint import arb, ctx
from jax import lax, nn
from scipy import special

from mixtrain_jax import bounds
from mixtrain_jax.bounds import functions, rounding, rules
from mixtrain_jax.bounds.tape import Op, record


class Case(NamedTuple):
    """A function, what it is in float64, which has digits to spare, and in ball arithmetic."""

    f: Callable[[jax.Array], jax.Array]
    double: Callable[[np.ndarray], np.ndarray]
    exact: Callable[[Any], Any]


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.where(x < -30, np.exp(np.minimum(x, 0)), np.logaddexp(x, 0))


def _arb_softplus(a: Any) -> Any:
    return a.exp().log1p()


def _arb_logistic(a: Any) -> Any:
    return 1 / (1 + (-a).exp())


def _arb_tanh(a: Any) -> Any:
    return a.tanh()


def _arb_gelu_tanh(a: Any) -> Any:
    return a * _arb_logistic(2 * (2 / arb.pi()).sqrt() * (a + arb("0.044715") * a**3))


def _power(n: float) -> Case:
    f = (lambda x: lax.integer_pow(x, int(n))) if n == int(n) else lambda x: lax.pow(x, jnp.asarray(n, x.dtype))
    return Case(f, lambda x: x**n, lambda a: a ** arb(n) if n != int(n) else a ** int(n))


_SLOPE = 0.0625  # a number of every dtype
_TANH = math.sqrt(2 / math.pi)
CASES: dict[str, Case] = {
    "abs": Case(lax.abs, np.abs, abs),
    "asinh": Case(lax.asinh, np.arcsinh, arb.asinh),
    "atan": Case(lax.atan, np.arctan, arb.atan),
    "cbrt": Case(lax.cbrt, np.cbrt, lambda a: abs(a).root(3) * (1 if a > 0 else -1)),
    "cos": Case(lax.cos, np.cos, arb.cos),
    "cosh": Case(lax.cosh, np.cosh, arb.cosh),
    "erf": Case(lax.erf, special.erf, arb.erf),
    "erf_inv": Case(lax.erf_inv, special.erfinv, arb.erfinv),
    "erfc": Case(lax.erfc, special.erfc, arb.erfc),
    "exp": Case(lax.exp, np.exp, arb.exp),
    "exp2": Case(lax.exp2, np.exp2, lambda a: (a * arb.const_log2()).exp()),
    "expm1": Case(lax.expm1, np.expm1, arb.expm1),
    "log": Case(lax.log, np.log, arb.log),
    "log1p": Case(lax.log1p, np.log1p, arb.log1p),
    "logistic": Case(lax.logistic, special.expit, _arb_logistic),
    "rsqrt": Case(lax.rsqrt, lambda x: 1 / np.sqrt(x), arb.rsqrt),
    "sin": Case(lax.sin, np.sin, arb.sin),
    "sinh": Case(lax.sinh, np.sinh, arb.sinh),
    "sqrt": Case(lax.sqrt, np.sqrt, arb.sqrt),
    "square": Case(lax.square, np.square, lambda a: a * a),
    "tanh": Case(lax.tanh, np.tanh, arb.tanh),
    **{f"integer_pow {n}": _power(n) for n in (3, 4, 7, 20, 100, -1, -2, -7)},
    **{f"pow {p}": _power(p) for p in (0.5, -0.75, 2.5, 30.5)},
    "gelu": Case(
        functools.partial(nn.gelu, approximate=False),
        lambda x: x * special.ndtr(x),
        lambda a: a / 2 * (-a / arb(2).sqrt()).erfc(),
    ),
    "gelu_tanh": Case(nn.gelu, lambda x: x * special.expit(2 * _TANH * (x + 0.044715 * x**3)), _arb_gelu_tanh),
    "silu": Case(nn.silu, lambda x: x * special.expit(x), lambda a: a * _arb_logistic(a)),
    "mish": Case(nn.mish, lambda x: x * np.tanh(_softplus(x)), lambda a: a * _arb_softplus(a).tanh()),
    "softplus": Case(nn.softplus, _softplus, _arb_softplus),
    "soft_sign": Case(nn.soft_sign, lambda x: x / (1 + np.abs(x)), lambda a: a / (1 + abs(a))),
    "hard_swish": Case(
        nn.hard_swish, lambda x: x * np.clip(x + 3, 0, 6) / 6, lambda a: a * (a + 3).max(arb(0)).min(arb(6)) / 6
    ),
    "elu": Case(nn.elu, lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), lambda a: a if a > 0 else a.expm1()),
    "celu": Case(
        lambda x: nn.celu(x, _SLOPE),
        lambda x: np.where(x > 0, x, _SLOPE * np.expm1(np.minimum(x, 0) / _SLOPE)),
        lambda a: a if a > 0 else _SLOPE * (a / _SLOPE).expm1(),
    ),
    "leaky_relu": Case(
        lambda x: nn.leaky_relu(x, _SLOPE),
        lambda x: np.where(x > 0, x, _SLOPE * x),
        lambda a: a if a > 0 else a * _SLOPE,
    ),
    "relu6": Case(nn.relu6, lambda x: np.clip(x, 0, 6), lambda a: a.max(arb(0)).min(arb(6))),
    "hard_tanh": Case(nn.hard_tanh, lambda x: np.clip(x, -1, 1), lambda a: a.max(arb(-1)).min(arb(1))),
    "clip": Case(
        lambda x: jnp.clip(x, -0.5, 2.0), lambda x: np.clip(x, -0.5, 2), lambda a: a.max(arb(-0.5)).min(arb(2))
    ),
}


def _sample(dtype: Any) -> np.ndarray:
    """Every number of a short dtype; else some of every exponent, its ends too, and more where curves bend."""
    info, rng = ml_dtypes.finfo(dtype), np.random.default_rng(0)
    if info.bits == 16:
        every = np.arange(2**16, dtype=np.uint16).view(dtype)
        return every[np.isfinite(every) & (np.abs(every) >= info.tiny)]
    per, bends = (300, 20_000) if info.bits == 32 else (1, 100)
    exponents = np.arange(info.minexp, info.maxexp)[:, None]
    ends = np.array([1, 1 + info.eps, 2 - info.eps])
    mantissas = np.concatenate([np.tile(ends, (len(exponents), 1)), 1 + rng.random((len(exponents), per))], 1)
    sizes = np.ldexp(mantissas, exponents).astype(dtype).ravel()
    near = [rng.uniform(-size, size, bends) for size in (1, 1.1, 4, 10, 100)]
    return np.concatenate(
        [sizes[:: 1 if info.bits == 32 else 3], -sizes[:: 1 if info.bits == 32 else 3], *near]
    ).astype(dtype)


def _operation(f: Callable[[jax.Array], jax.Array], x: np.ndarray) -> Op:
    array = jnp.asarray(x)
    (op,) = record(f, (bounds.Interval(array, array),), functions.recognize).ops
    return op


def _measured(name: str, dtype: Any) -> tuple[float, float]:
    """The largest error of a function, as a part of what is assumed of it; and in units of roundoff of its value."""
    case, x = CASES[name], _sample(dtype)
    if np.dtype(dtype).itemsize == 8:
        x = x[np.abs(x) < 1e15]
    found = np.asarray(optimizing_jit(case.f)(x)).astype(np.float64)
    right, more = (
        _exactly(case.exact, x, found) if np.dtype(dtype).itemsize == 8 else (case.double(x.astype(np.float64)), 0)
    )
    here = np.isfinite(right) & np.isfinite(found)
    x, found, right = x[here], found[here], right[here]
    op, box = _operation(case.f, x), bounds.Interval(jnp.asarray(x), jnp.asarray(x))
    value = bounds.Interval(*[jnp.asarray(found.astype(dtype))] * 2)
    rule = rules.find(op)
    assumed = np.zeros(len(x))
    if rule.rounded:
        (error,) = rule.rounded(op, [box if operand in op.refs else operand for operand in op.operands], [value])
        assumed = np.asarray(rounding.largest(error)).astype(np.float64) / 2  # half is for the arithmetic of bounds
    off = np.abs(found - right) if np.ndim(more) == 0 else more[here]
    relative = np.maximum(off - rounding.tiny(dtype) / 8, 0) / (
        rounding.unit(dtype) * np.maximum(np.abs(right), 1e-320)
    )
    return float((off / np.where(off > 0, np.maximum(assumed, 1e-320), 1)).max()), float(np.nanmax(relative))


def _exactly(exact: Callable[[Any], Any], x: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values in ball arithmetic, and how far those found are from them."""
    right, off = np.full(len(x), np.nan), np.zeros(len(x))
    for i, (point, value) in enumerate(zip(x, found, strict=True)):
        if np.isfinite(value):
            true = exact(arb(float(point)))
            right[i], off[i] = float(true.mid()), float(abs(true - arb(float(value))).upper())
    return right, off


@pytest.mark.parametrize("name", CASES)
def test_functions_are_as_accurate_as_assumed(name: str) -> None:
    with np.errstate(all="ignore"):
        for dtype in (np.float32, ml_dtypes.bfloat16, np.float16):
            share, _ = _measured(name, dtype)
            assert share <= 1, dtype


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_functions_of_doubles_are_as_accurate_as_assumed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctx, "prec", 200)
    with np.errstate(all="ignore"):
        assert _measured(name, np.float64)[0] <= 1


if __name__ == "__main__":
    np.seterr(all="ignore")
    ctx.prec = 200
    jax.config.update("jax_enable_x64", True)
    for name in CASES:
        shares = [_measured(name, dtype) for dtype in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)]
        print(f"{name:16}", *(f"{units:12.4g} ({share:5.2f})" for share, units in shares))
