"""Training against the Euclidean norm."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import mixtrain_jax as mt
from mixtrain_jax import cli, data, losses
from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.config import of_flags
from mixtrain_jax.losses import Context
from mixtrain_jax.report.display import Display
from mixtrain_jax.threat import Threat
from mixtrain_jax.training.run import run

THREAT = Threat(0.3, norm="l2")


def context(eps):
    images = data.load("digits").test[:6].floats()
    w = jax.random.normal(jax.random.key(0), (64, 10))
    apply = lambda w, x: x.reshape(len(x), -1) @ w  # noqa: E731
    return Context(jax.random.key(1), apply, w, images.images, jnp.asarray(images.labels), jnp.float32(eps), THREAT)


def test_attacks_and_bounds_of_training_are_those_of_the_euclidean_ball():
    """Of a linear network every bound is exact: the margin less the radius times the length of its gradient."""
    given = context(0.2)
    found = given.attack(20)
    assert (np.linalg.norm((found - given.images).reshape(6, -1), axis=-1) <= 0.2 + 1e-5).all()
    margins, w = np.asarray(given.margins(jnp.asarray(given.images))), np.asarray(given.params)
    falls = np.stack([np.delete(np.linalg.norm(w - w[:, [y]], axis=0), y) for y in np.asarray(given.labels)])
    unbounded = given._replace(threat=Threat(0.3, (-9.0, 9.0), "l2"))
    loss = losses.Bounded("crown")(unbounded).loss
    np.testing.assert_allclose(loss, losses.robust_loss(jnp.asarray(margins - 0.2 * falls)), rtol=1e-4, atol=1e-4)


def test_a_box_of_sabr_is_of_the_other_norm():
    with pytest.raises(BoundsError, match="SABR wants the norm linf, whose balls are boxes, got l2"):
        losses.Sabr()(context(0.1))


def test_a_run_is_certified_and_judged_in_its_norm(tmp_path, capsys):
    values = {"threat.norm": "l2", "threat.eps": 0.3, "objective.bound": "crown_ibp", "model.width": 16}
    values |= {"training.epochs": 4, "data.holdout": 97, "training.points": 2, "certify.bounds": ("crown",)}
    values |= {"certify.attack_steps": 3, "certify.curve_examples": 0}
    with jax.numpy_dtype_promotion("standard"):  # which optax wants
        summary = run(of_flags(values), tmp_path / "run", Display(Console(file=io.StringIO(), width=200)))
    assert 0.05 < summary["verified_accuracy"] <= summary["attacked_accuracy"] <= summary["clean_accuracy"]
    assert "l2 eps 0.3" in (tmp_path / "run" / "report.html").read_text()
    assert mt.load_run(tmp_path / "run").threat == THREAT
    given = ["--attacks", "customary", "--certify", "crown", "--curve-examples", "0", "--examples", "30"]
    assert cli.main(["judge", str(tmp_path / "run"), *given, "--out", str(tmp_path / "judged")]) == 0
    assert "l2 eps 0.3" in capsys.readouterr().out
    assert cli.main(["judge", str(tmp_path / "run"), "--norm", "linf"]) == 2

    assert "was trained for the norm l2; say --eps for linf." in capsys.readouterr().err
