"""A bound that is NaN is reported: the operation, the user's line and the box that it got."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import jit

import mixtrain_jax as mt
from mixtrain_jax import certify, data


def _logits(x: jax.Array) -> jax.Array:
    scores = jnp.sqrt(x - 0.5)  # NaN where x is below
    return jax.nn.relu(scores @ jnp.eye(2) + 1)


LINE = rf"'sqrt', .*box \[-0\.1, 0\.1[0-9]*\]\. It comes from {__file__}:16.*\(_logits\)"


@pytest.mark.parametrize("method", [mt.ibp, mt.crown])
def test_outside_jit_it_is_an_error(method: mt.bounds.Method) -> None:
    ball = mt.linf_ball(jnp.array([[0.9, 0.9], [0.5, 0.5]]), 0.1)
    for bound in (method(_logits), lambda b: mt.margins(method, _logits)(b, jnp.array([0, 1]))):
        with pytest.raises(mt.BoundsError, match=LINE):
            bound(ball)
    with pytest.raises(mt.BoundsError, match=r"example 1 are NaN \(1 of 2 are\)"):
        mt.margins(method, _logits)(ball, jnp.array([0, 1]))


def test_inside_jit_it_proves_nothing_and_can_be_asked_for() -> None:
    ball = mt.linf_ball(jnp.array([[0.9, 0.9], [0.5, 0.5]]), 0.1)
    found = jit(lambda b: (mt.margins(mt.ibp, _logits)(b, jnp.array([0, 1])), mt.ibp(_logits).undefined(b)))(ball)
    assert np.isnan(found[0]).ravel().tolist() == [False, True]
    assert [op.operation for op in found[1] if op.here] == ["sqrt"]
    assert "smaller ball" in mt.bounds.explain(found[1])


def test_weights_that_are_nan_are_named() -> None:
    weights = jnp.full((2, 2), jnp.nan)
    with pytest.raises(mt.BoundsError, match="'dot_general', of which an exact operand, such as weights, is NaN"):
        mt.ibp(lambda x: jax.nn.relu(x @ weights))(mt.linf_ball(jnp.ones(2), 0.1))


def test_the_judge_names_it() -> None:
    images = np.array([[0.9, 0.8], [0.5, 0.6], [0.8, 0.9]], np.float32)
    split = data.Split(images, np.array([0, 1, 1], np.int32))
    found = certify.judge(
        lambda params, x: jnp.where(jnp.isnan(_logits(x)), x, _logits(x)) * params,
        jnp.ones(()),
        split,
        certify.Threat(0.05),
        attacks={},
        methods={"ibp": mt.ibp},
        layer_examples=0,
    )
    (said,) = [warning for warning in found.warnings if "no bound" in warning]
    assert "1 of 3 images have no bound" in said
    assert "of image 1" in said
    assert "'sqrt'" in said
    assert f"{__file__}:16" in said
