import ast
import dataclasses
import functools
import hashlib
import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixtrain_jax as mt
from mixtrain_jax import certify, models
from mixtrain_jax.certify import Threat, checker, program, recompute
from mixtrain_jax.certify import certificates as files
from mixtrain_jax.data import Split
from mixtrain_jax.errors import CertificateError

PIXELS = (0.0, 1.0)
SIDE, CLASSES = 5, 4
THREAT = Threat(0.1, PIXELS)


def conv(x, kernel, stride=1, padding=1):
    pads = ((padding, padding),) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def bias(b):
    return b.reshape(1, 1, 1, -1)


def flat(x):
    return x.reshape(len(x), -1)


def mlp(p, x):
    x = jax.nn.relu(flat(x) @ p["a"] + p["b"][None])
    return jax.nn.relu(x @ p["c"]) @ p["d"] - p["e"][None]


def conv_net(p, x):
    x = (x - 0.4) / 0.3
    x = jax.nn.relu(conv(x, p["a"], 2) + bias(p["b"]))
    x = jnp.maximum(0.0, conv(x, p["c"], 1, 0) - bias(p["d"]))
    return flat(x) @ p["e"]


def residual(p, x):
    x = jax.nn.relu(conv(x, p["a"], 2))
    inner = jax.nn.relu(conv(x, p["b"]) + bias(p["c"]))
    x = jax.nn.relu(conv(inner, p["d"]) + conv(x, p["e"], 1, 0))
    return flat(x) @ p["f"]


def moves(p, x):
    """Every operation that the check knows and that the other networks lack."""
    x = jnp.transpose(x, (0, 2, 1, 3)) * p["a"][None, :, :, None]
    x = jnp.concatenate([x[:, ::2], jnp.flip(x, 1), 2 * jnp.ones((1, 1, SIDE, 1), x.dtype)], 1)
    x = jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=0.5)
    x = jax.nn.relu(jnp.squeeze(x, 3) - p["b"])
    x = x.sum(1)
    doubled = jnp.broadcast_to(x[:, None], (1, 2, x.shape[1])).reshape(1, -1)
    y = jax.checkpoint(lambda v: jax.nn.relu(-v + 0.3))(doubled)
    z = jnp.einsum("io,ni->no", p["c"], y) + (p["d"] @ doubled[0])[None]
    return z + z / 3


SHAPES = {
    mlp: {"a": (25, 8), "b": (8,), "c": (8, 6), "d": (6, 4), "e": (4,)},
    conv_net: {"a": (3, 3, 1, 3), "b": (3,), "c": (2, 2, 3, 4), "d": (4,), "e": (16, 4)},
    residual: {"a": (3, 3, 1, 2), "b": (3, 3, 2, 2), "c": (2,), "d": (3, 3, 2, 2), "e": (1, 1, 2, 2), "f": (18, 4)},
    moves: {"a": (5, 5), "b": (1, 10, 7), "c": (14, 4), "d": (4, 14)},
}
NETWORKS = pytest.mark.parametrize("apply", SHAPES, ids=lambda f: f.__name__)


def random_params(apply, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = SHAPES[apply]
    return {
        name: (rng.normal(size=s) * (1.5 / max(1, np.prod(s[:-1])) ** 0.5 if len(s) > 1 else 0.2)).astype(dtype)
        for name, s in shapes.items()
    }


def random_images(n, dtype=np.float32):
    return np.random.default_rng(1).uniform(size=(n, SIDE, SIDE, 1)).astype(dtype)


def read_program(apply, params, dtype=np.float32):
    return program.read_program(apply, params, (SIDE, SIDE, 1), dtype)


def in_real_arithmetic(read):
    """The program of a network that is deployed without roundings, but for those of float64."""
    return dataclasses.replace(read, unit=recompute.UNIT, tiny=0.0)


def logits_of(apply, params):
    """Of many images, for networks of one as well."""
    return jax.vmap(lambda x: apply(params, x[None])[0])


def labelled(apply, params, n=24):
    """Images with the classes that the network gives them, but for some."""
    images = random_images(n)
    labels = np.asarray(apply(params, images)).argmax(-1).astype(np.int32)
    labels[::6] = (labels[::6] + 1) % CLASSES
    return Split(images, labels)


@pytest.fixture(scope="module")
def made():
    """A network, the smallest margins of all images by several methods, and certificates by the first that proves."""
    params, eps, methods = random_params(mlp, seed=3), 0.1, ("ibp", "crown_ibp", "crown")
    split, n = labelled(mlp, params), 24
    ball = mt.linf_ball(jnp.asarray(split.images), eps, PIXELS)
    logits_fn, labels = functools.partial(mlp, params), jnp.asarray(split.labels)
    margins = {
        name: np.asarray(jax.jit(mt.margins(method, logits_fn))(ball, labels).min(-1))
        for name, method in certify.methods(methods).items()
    }
    margin, proved_by = np.full(n, -np.inf), np.full(n, "", dtype=object)
    for name in methods:
        todo = proved_by == ""
        margin[todo] = np.maximum(margin, margins[name])[todo]
        proved_by[todo & (margins[name] > 0)] = name
    verified, clean = proved_by != "", np.arange(n) % 6 != 0
    evaluation = certify.Evaluation(
        threat=Threat(eps, PIXELS),
        seconds={},
        predictions=split.labels,
        clean=clean,
        attacked=clean,
        verified=verified,
        margin=margin,
        proved_by=proved_by.astype(str),
        broken_by=np.full(n, ""),
        adversarial=split.images,
        seen_as=split.labels,
    )
    certificates = certify.certificates_of(evaluation, mlp, params, split)
    return SimpleNamespace(
        params=params, split=split, evaluation=evaluation, certificates=certificates, margins=margins
    )


def resealed(certificates, header=None, **changes):
    """Certificates changed by someone who makes their SHA-256 again; the first one gets the changes."""
    header = header or certificates.header
    first = dataclasses.replace(certificates.records[0], **changes)
    return certify.Certificates(header, files.sealed(header, (first, *certificates.records[1:])))


def first_reason(certificates, made, **replaced):
    known = {"params": made.params, "split": made.split, "threat": THREAT, **replaced}
    indices = [certificates.records[0].index]
    (reason,) = certify.verify(
        certificates, mlp, known["params"], known["split"], known["threat"], indices=indices
    ).reasons
    return reason


# Bounds in float64


@pytest.mark.parametrize(
    ("apply", "method"),
    [
        *((apply, method) for apply in (mlp, conv_net, residual) for method in ("ibp", "crown_ibp", "crown")),
        *((mlp, "symbolic"), (moves, "crown")),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_bounds_are_those_of_the_library_in_float64(x64, apply, method):
    params, images = random_params(apply, np.float64), random_images(3, np.float64)
    read, labels, eps = read_program(apply, params, np.float64), np.array([0, 1, 3]), 0.2 if apply is moves else 0.05
    lower, upper = recompute.ball(images, np.full(3, eps), PIXELS)
    slopes, tighten = checker._METHODS[method]
    known = recompute.analyse(read, lower, upper, slopes=slopes, tighten=tighten)
    found = recompute.margins(read, known, labels, boxes_only=method == "ibp").lower
    bound = mt.margins(getattr(mt, method), logits_of(apply, params))
    expected = jax.jit(bound)(mt.linf_ball(jnp.asarray(images), eps, PIXELS), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0)
    assert sum(lines.unstable.sum() for lines in known.lines.values()) > 5


@NETWORKS
def test_bounds_hold_at_corners_and_inside(x64, apply):
    params, images, eps = random_params(apply, np.float64), random_images(2, np.float64), 0.1
    read, labels = read_program(apply, params, np.float64), np.array([2, 1])
    lower, upper = recompute.ball(images, np.full(2, eps), PIXELS)
    rng = np.random.default_rng(0)
    where = rng.uniform(size=(4000, *images.shape[1:]))
    where[:2000] = where[:2000].round()
    points = lower[:, None] + where * (upper - lower)[:, None]
    logits = np.asarray(logits_of(apply, params)(points.reshape(-1, *images.shape[1:]))).reshape(2, 4000, CLASSES)
    for i, label in enumerate(labels):
        smallest = np.delete(logits[i, :, [label]].T - logits[i], label, 1).min(0)
        for slopes, tighten in (("adaptive", False), ("adaptive", True), ("parallel", True)):
            known = recompute.analyse(read, lower[[i]], upper[[i]], slopes=slopes, tighten=tighten)
            bounds = [recompute.margins(read, known, labels[[i]], boxes_only=only).lower[0] for only in (True, False)]
            bounds.append(recompute.ascend(read, known, labels[[i]], 5, np.inf).lower[0])
            assert (bounds[0] <= bounds[1]).all()
            assert (bounds[1] <= bounds[2]).all()
            assert (bounds[2] <= smallest).all()


@NETWORKS
def test_programs_compute_what_the_network_does_and_transpose_it(x64, apply):
    params, images = random_params(apply, np.float64), random_images(4, np.float64)
    read, rng = read_program(apply, params, np.float64), np.random.default_rng(2)
    values = [images[:, None]]
    for step in read.steps:
        inputs = [values[x] for x in step.inputs]
        if step.linear is None:
            values.append(np.maximum(inputs[0], 0))
            continue
        out, g = step.linear(inputs, False), rng.normal(size=(4, *step.shape))
        pulled = step.transpose(g)
        np.testing.assert_allclose(
            (out * g).sum(), sum((a * b).sum() for a, b in zip(inputs, pulled, strict=True)), atol=1e-9
        )
        one = [np.where(np.arange(x[0].size).reshape(1, *x.shape[1:]) == 3, -1.0, 0.0) for x in inputs]
        np.testing.assert_allclose(
            step.linear([-x for x in one[:1]] + [0 * x for x in one[1:]], True),
            np.abs(step.linear(one[:1] + [0 * x for x in one[1:]], False)),
        )
        values.append(out + (0 if step.offset is None else step.offset))
    np.testing.assert_allclose(values[read.output][:, 0], logits_of(apply, params)(images), atol=1e-12)


def test_bounds_of_a_linear_network_are_below_the_exact_rational_ones():
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(30, 3)) * 10.0 ** rng.integers(-6, 7, (30, 3))).astype(np.float32)
    images = rng.uniform(size=(1, 30)).astype(np.float32)
    eps = np.array([np.float32(0.1)])
    read = in_real_arithmetic(program.read_program(lambda p, x: x @ p, w, (30,), np.float32))
    lower, upper = recompute.ball(images, eps, (-10.0, 10.0))
    found = recompute.margins(read, recompute.analyse(read, lower, upper), np.array([1])).lower[0]
    for margin, other in zip(found, (0, 2), strict=True):
        rows = [Fraction(float(a)) - Fraction(float(b)) for a, b in zip(w[:, 1], w[:, other], strict=True)]
        exact = sum(
            r * Fraction(float(x)) - abs(r) * Fraction(float(eps[0])) for r, x in zip(rows, images[0], strict=True)
        )
        assert Fraction(float(margin)) <= exact
        assert float(exact) - margin < 1e-12 * float(sum(map(abs, rows)))


def test_balls_hold_all_of_what_they_are_said_to():
    images = np.array([[1.0, 0.3, 2.0**-30, 0.75]], np.float32)
    eps = np.array([1e-12])
    lower, upper = recompute.ball(images, eps, PIXELS)
    for x, low, high in zip(images[0], lower[0], upper[0], strict=True):
        assert Fraction(float(low)) <= max(Fraction(0), Fraction(float(x)) - Fraction(1e-12))
        assert Fraction(float(high)) >= min(Fraction(1), Fraction(float(x)) + Fraction(1e-12))
    lower, upper = recompute.ball(images, np.array([0.25]), PIXELS)
    np.testing.assert_array_equal(lower, [[0.75, np.float64(np.float32(0.3)) - 0.25, 0, 0.5]])
    np.testing.assert_array_equal(upper, [[1, np.float64(np.float32(0.3)) + 0.25, 0.25 + 2.0**-30, 1]])


def test_the_gradient_of_the_slopes_is_that_of_the_bound():
    read = read_program(residual, random_params(residual))
    images, labels = random_images(1), np.array([1])
    known = recompute.analyse(read, *recompute.ball(images, np.array([0.1]), PIXELS), tighten=True)
    seeds = {read.output: recompute.specification(read, labels)}
    rng = np.random.default_rng(0)
    slopes = {
        n: np.where(lines.unstable[:, None], rng.uniform(size=(1, 3, *lines.slope.shape[1:])), lines.slope[:, None])
        for n, lines in known.lines.items()
    }
    keep = {}
    here = recompute.pull(read, known, seeds, slopes=slopes, keep=keep).lower
    gradients = recompute._gradient(read, known, slopes, keep)
    tried = 0
    for n, gradient in gradients.items():
        for place in np.argwhere(np.abs(gradient[0]) > 1e-3)[:8]:
            place, row = (0, *place), place[0]
            moved = {k: v.copy() for k, v in slopes.items()}
            moved[n][place] += 1e-7
            change = recompute.pull(read, known, seeds, slopes=moved).lower - here
            np.testing.assert_allclose(change[0, row] / 1e-7, gradient[place], rtol=1e-4, atol=1e-6)
            tried += 1
    assert tried > 10


def test_the_check_shares_no_code_with_the_bounds():
    folder = Path(certify.__file__).parent
    for name in ("program", "recompute"):
        tree = ast.parse((folder / f"{name}.py").read_text())
        ours = {
            node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "mixtrain" in node.module
        }
        assert ours <= {"mixtrain_jax.errors", "mixtrain_jax.certify.program"}


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda p, x: jnp.tanh(flat(x)), "primitive tanh"),
        (lambda p, x: flat(x) * flat(x), "primitive mul of two values"),
        (lambda p, x: flat(x) @ jnp.exp(p["a"]), "primitive exp of constants"),
        (lambda p, x: jnp.maximum(flat(x), 1.0), "primitive max of anything but one value and 0"),
        (lambda p, x: flat(x).astype(jnp.bfloat16), "primitive convert_element_type of bfloat16"),
        (lambda p, x: x, r"makes logits \[n, classes\]"),
    ],
)
def test_networks_that_are_not_known_are_named(f, message):
    with pytest.raises(CertificateError, match=message):
        read_program(f, random_params(mlp))


# Certificates


def test_every_verified_image_gets_a_certificate_that_is_accepted(made):
    evaluation, split = made.evaluation, made.split
    assert set(evaluation.proved_by) == {"", "ibp", "crown_ibp", "crown"}
    assert 5 < evaluation.verified.sum() < evaluation.clean.sum()
    records = made.certificates.records
    assert [record.index for record in records] == list(np.flatnonzero(evaluation.verified))
    for record in records:
        assert record.label == split.labels[record.index]
        assert record.method == evaluation.proved_by[record.index]
        assert record.margin == evaluation.margin[record.index] > 0
        assert record.eps == np.float32(0.1)
    assert made.certificates.header.images == len(split)
    seen = []
    report = certify.verify(
        made.certificates, mlp, made.params, split, THREAT, poll=lambda what, done, total: seen.append((done, total))
    )
    assert report.counts() == {}
    assert report.accepted.all()
    assert (report.margins >= [record.margin for record in records]).all()
    assert report.versions == {}
    assert seen[-1] == (len(records), len(records))


@pytest.mark.parametrize(("apply", "methods"), [(conv_net, ("ibp", "crown_ibp")), (residual, ("crown",))])
def test_what_an_evaluation_of_convolutions_proves_is_accepted(apply, methods):
    params = random_params(apply)
    split = labelled(apply, params)
    evaluation = certify.evaluate(
        *(jax.random.key(0), functools.partial(apply, params), split, Threat(0.02, PIXELS)),
        attacks={},
        methods=certify.methods(methods),
        batch_size=24,
    )
    assert set(methods) <= set(evaluation.proved_by)
    certificates = certify.certificates_of(evaluation, apply, params, split)
    report = certify.verify(certificates, apply, params, split, Threat(0.02, PIXELS))
    assert report.accepted.all()
    assert len(report.reasons) == evaluation.verified.sum() > 5


def test_every_margin_of_a_method_lies_between_floor_and_bound(made):
    """Of all images, proved or not; and the floor is not far."""
    split, eps = made.split, np.full(len(made.split), np.float32(0.1))
    read = read_program(mlp, made.params)
    for method, margins in made.margins.items():
        slopes, tighten = checker._METHODS[method]
        known = recompute.analyse(read, *recompute.ball(split.images, eps, PIXELS), slopes=slopes, tighten=tighten)
        found = recompute.margins(read, known, split.labels, boxes_only=method == "ibp")
        assert (margins <= found.lower.min(-1)).all()
        assert (margins >= found.floor.min(-1)).all()
        assert np.median((found.lower.min(-1) - margins) / (found.lower.min(-1) - found.floor.min(-1))) > 0.1


def test_slopes_that_were_optimised_are_accepted_where_they_prove_it(made):
    """The margin of an alpha_crown certificate is reached by slopes that are optimised here, or it is not accepted."""
    read, header = read_program(mlp, made.params), made.certificates.header
    record = made.certificates.records[0]
    lower, upper = recompute.ball(made.split.images[[record.index]], np.array([0.1]), PIXELS)
    known = recompute.analyse(read, lower, upper, tighten=True)
    labels = made.split.labels[[record.index]]
    crown = recompute.margins(read, known, labels).lower.min()
    best = recompute.ascend(read, known, labels, checker._STEPS, np.inf).lower.min()
    assert best > crown + 1e-3
    for method, margin, reason in (
        ("alpha_crown", (crown + best) / 2, checker.ACCEPTED),
        ("crown", (crown + best) / 2, checker.NOT_PROVED),
        ("alpha_crown", best + 1e-2, checker.NOT_PROVED),
        ("alpha_crown", crown / 2, checker.OTHER_MARGIN),
    ):
        changed = dataclasses.replace(record, method=method, margin=margin, eps=0.1)
        certificates = certify.Certificates(header, files.sealed(header, [changed]))
        assert first_reason(certificates, made) == reason


@pytest.mark.parametrize("name", SHAPES[mlp])
def test_one_bit_of_a_parameter_is_noticed(made, name):
    params = {key: value.copy() for key, value in made.params.items()}
    params[name].view(np.uint32).reshape(-1)[3] ^= 1
    report = certify.verify(made.certificates, mlp, params, made.split, THREAT)
    assert report.counts() == {checker.OTHER_PARAMS: len(made.certificates.records)}


def test_parameters_that_the_network_does_not_use_count_too(made):
    assert first_reason(made.certificates, made, params={**made.params, "more": np.zeros(1)}) == checker.OTHER_PARAMS


@pytest.mark.parametrize(
    "other",
    [
        lambda p, x: mlp(p, x) + 1e-7,
        lambda p, x: mlp(p, x * 1.0),
        lambda p, x: jax.nn.relu(jax.nn.relu(flat(x) @ p["a"]) @ p["c"]) @ p["d"] - p["e"][None],
        lambda p, x: mlp({**p, "e": p["e"][::-1]}, x),
    ],
)
def test_another_network_of_the_same_parameters_is_noticed(made, other):
    report = certify.verify(made.certificates, other, made.params, made.split, THREAT)
    assert report.counts() == {checker.OTHER_PROGRAM: len(made.certificates.records)}


def test_how_a_network_is_written_down_does_not_matter(made):
    same = jax.jit(lambda p, x: jax.checkpoint(mlp)(p, x.reshape(x.shape)))
    assert read_program(same, made.params).sha256 == made.certificates.header.program_sha256
    assert read_program(mlp, jax.device_put(made.params)).sha256 == made.certificates.header.program_sha256


def test_one_bit_of_a_pixel_is_noticed_and_of_no_other_image(made):
    images = made.split.images.copy()
    index = made.certificates.records[1].index
    images[index].view(np.uint32)[2, 2] ^= 1
    report = certify.verify(made.certificates, mlp, made.params, Split(images, made.split.labels), THREAT)
    assert report.counts() == {checker.OTHER_IMAGE: 1}
    assert not report.accepted[1]
    assert np.isnan(report.margins[1])


def test_other_images_and_labels_are_noticed(made):
    split, index = made.split, made.certificates.records[0].index
    labels = split.labels.copy()
    labels[index] = (labels[index] + 1) % CLASSES
    assert first_reason(made.certificates, made, split=Split(split.images, labels)) == checker.OTHER_LABEL
    assert first_reason(made.certificates, made, split=split[:index]) == checker.OTHER_IMAGE
    bigger = Split(np.zeros((40, 6, 5, 1), np.float32), np.zeros(40, np.int32))
    assert first_reason(made.certificates, made, split=bigger) == checker.OTHER_SHAPE


def test_integer_pixels_are_those_that_they_stand_for(made):
    images = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 1)).astype(np.uint8)
    labels = np.asarray(mlp(made.params, images.astype(np.float32) / 255)).argmax(-1).astype(np.int32)
    split = Split(images, labels)
    read = read_program(mlp, made.params)
    known = recompute.analyse(read, *recompute.ball(split.floats().images, np.full(8, 0.01), PIXELS))
    found = recompute.margins(read, known, labels, boxes_only=True).lower.min(-1)
    evaluation = dataclasses.replace(
        made.evaluation,
        threat=Threat(0.01, PIXELS),
        verified=found > 0.01,
        margin=found - 1e-6,
        proved_by=np.full(8, "ibp"),
    )
    certificates = certify.certificates_of(evaluation, mlp, made.params, split)
    assert certify.verify(certificates, mlp, made.params, split, Threat(0.01, PIXELS)).accepted.sum() > 4
    assert certify.verify(certificates, mlp, made.params, split.floats(), Threat(0.01, PIXELS)).accepted.all()


CHANGES = {
    "eps by a bit": lambda r: {"eps": float(np.nextafter(np.float32(r.eps), np.float32(1)))},
    "eps": lambda r: {"eps": r.eps * 1.1},
    "margin up by a bit": lambda r: {"margin": float(np.nextafter(np.float32(r.margin), np.float32(1e9)))},
    "margin down by a bit": lambda r: {"margin": float(np.nextafter(np.float32(r.margin), np.float32(0)))},
    "method": lambda r: {"method": "crown" if r.method == "ibp" else "ibp"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_certificate_is_noticed(made, change):
    record = made.certificates.records[0]
    changed = dataclasses.replace(record, **CHANGES[change](record))
    certificates = certify.Certificates(made.certificates.header, (changed, *made.certificates.records[1:]))
    report = certify.verify(certificates, mlp, made.params, made.split, THREAT)
    assert report.counts() == {checker.CHANGED: 1}
    assert not report.accepted[0]


@pytest.mark.parametrize(
    "change", [{"domain": (0.0, 2.0)}, {"images": 3}, {"versions": {"jax": "0"}}, {"shape": (5, 5, 1, 1)}]
)
def test_any_change_of_the_header_is_noticed(made, change):
    header = dataclasses.replace(made.certificates.header, **change)
    reason = first_reason(dataclasses.replace(made.certificates, header=header), made)
    assert reason == {"shape": checker.OTHER_SHAPE, "domain": checker.OTHER_DOMAIN}.get(*change, checker.CHANGED)


def of_method(made, method):
    """The certificates, one by the method first."""
    records = sorted(made.certificates.records, key=lambda r: r.method != method)
    assert records[0].method == method
    return certify.Certificates(made.certificates.header, tuple(records))


@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: {}, checker.ACCEPTED),
        (lambda r: {"label": (r.label + 1) % CLASSES}, checker.OTHER_LABEL),
        (lambda r: {"image_sha256": "0" * 64}, checker.OTHER_IMAGE),
        (lambda r: {"index": 10**6}, checker.OTHER_IMAGE),
        (lambda r: {"eps": r.eps * 1.1}, checker.NOT_PROVED),
        (lambda r: {"eps": r.eps * 0.9}, checker.SMALLER_EPS),
        (lambda r: {"margin": r.margin + 0.01}, checker.NOT_PROVED),
        (lambda r: {"margin": r.margin - 0.01}, checker.OTHER_MARGIN),
        (lambda r: {"margin": 1e6}, checker.NOT_PROVED),
        (lambda r: {"margin": float("nan")}, checker.NOT_PROVED),
        (lambda r: {"method": "ibp" if r.method != "ibp" else "crown"}, None),
        (lambda r: {"method": "magic"}, checker.UNKNOWN_METHOD),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_forged_certificate_is_found_by_proving_anew(made, method, change, reason):
    certificates = of_method(made, method)
    record = max((r for r in certificates.records if r.method == method), key=lambda r: r.margin)
    assert record.margin > 0.02
    certificates = certify.Certificates(certificates.header, (record,))
    if reason is None:  # the cheaper method proves less, the dearer one more
        reason = checker.OTHER_MARGIN if method == "ibp" else checker.NOT_PROVED
    assert first_reason(resealed(certificates, **change(record)), made) == reason


def test_a_forged_header_is_found(made):
    header = dataclasses.replace(made.certificates.header, norm="l2")
    assert first_reason(resealed(made.certificates, header), made) == checker.UNKNOWN_NORM
    wide = dataclasses.replace(made.certificates.header, domain=(-9.0, 9.0))
    assert first_reason(resealed(made.certificates, wide), made) == checker.OTHER_DOMAIN


def test_the_margin_of_an_unverifiable_image_is_not_accepted(made):
    """An image that the network itself gets wrong, by every method, with a margin as small as you like."""
    index = int(np.flatnonzero(~made.evaluation.clean)[0])
    record = dataclasses.replace(
        made.certificates.records[0],
        index=index,
        image_sha256=files.image_sha256(made.split.images[index]),
        label=int(made.split.labels[index]),
        margin=1e-30,
    )
    header = made.certificates.header
    for method in checker._METHODS:
        forged = dataclasses.replace(record, method=method)
        certificates = certify.Certificates(header, files.sealed(header, [forged]))
        report = certify.verify(certificates, mlp, made.params, made.split, THREAT)
        assert report.reasons == (checker.NOT_PROVED,)
        assert report.margins[0] < 0


def test_other_versions_are_told_and_accepted(made):
    then = {**made.certificates.header.versions, "jax": "0.1", "python": "2.7"}
    header = dataclasses.replace(made.certificates.header, versions=then)
    certificates = certify.Certificates(header, files.sealed(header, made.certificates.records))
    report = certify.verify(certificates, mlp, made.params, made.split, THREAT, indices=[certificates.records[0].index])
    assert report.accepted.all()
    assert set(report.versions) == {"jax", "python"}
    assert report.versions["jax"] == ("0.1", jax.__version__)


def test_some_certificates_can_be_checked_and_none_that_is_not_there(made):
    indices = [record.index for record in made.certificates.records[2:0:-1]]
    report = certify.verify(made.certificates, mlp, made.params, made.split, THREAT, indices=indices)
    np.testing.assert_array_equal(report.indices, indices)
    assert report.accepted.all()
    with pytest.raises(CertificateError, match="no certificate of image 0"):
        certify.verify(made.certificates, mlp, made.params, made.split, THREAT, indices=[0])


def test_equally_far_ends_may_choose_either_slope():
    """Where both ends of a ReLU are equally far from 0, rounding decides on its slope, and margins differ widely."""

    def apply(p, x):
        hidden = jax.nn.relu(x @ p + jnp.array([[-0.5, 1.0]], x.dtype))  # the second one is always active
        return hidden @ jnp.array([[1.0, 0.0], [0.0, 1.0]], x.dtype)

    read = program.read_program(apply, np.array([[1.0, 1.0]], np.float32), (1,), np.float32)

    def bound(x):
        ball = recompute.ball(np.array([[x]], np.float32), np.array([0.25]), PIXELS)
        return [
            float(values[0, 0]) for values in recompute.margins(read, recompute.analyse(read, *ball), np.array([0]))
        ]

    # relu(x - 0.5) - (x + 1) is at least -1.5 by slope 1 and -1.75 by slope 0.
    lower, floor, ceiling = bound(0.5 + 2.0**-23)
    np.testing.assert_allclose(lower, -1.5, atol=1e-6)
    assert floor < -1.75 + 1e-3
    lower, floor, ceiling = bound(0.5)
    np.testing.assert_allclose(lower, -1.75, atol=1e-6)
    assert ceiling > -1.5
    lower, floor, ceiling = bound(0.51)
    np.testing.assert_allclose(lower, -1.5, atol=1e-6)
    assert ceiling - floor < 1e-4


# Files


def test_files_are_read_as_they_were_written(made, tmp_path):
    path = tmp_path / "certificates.jsonl"
    path.write_text("older")
    certify.write(path, made.certificates)
    assert certify.read(path) == made.certificates
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == files.text(certify.read(path))
    first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    assert first["format"] == "mixtrain_jax certificates"
    assert first["certificates"] == len(rest)


def test_no_certificate_at_all_is_a_file_too(made, tmp_path):
    nothing = dataclasses.replace(made.evaluation, verified=np.zeros_like(made.evaluation.verified))
    certificates = certify.certificates_of(nothing, mlp, made.params, made.split)
    certify.write(tmp_path / "none", certificates)
    report = certify.verify(certify.read(tmp_path / "none"), mlp, made.params, made.split, THREAT)
    assert len(report.accepted) == 0
    assert report.counts() == {}


def test_the_sha256_of_a_certificate_is_that_of_two_lines_of_text(made):
    header, line = files.text(made.certificates).splitlines()[:2]
    entries = json.loads(line)
    stated = entries.pop("sha256")
    again = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    assert stated == hashlib.sha256(f"{header}\n{again}".encode()).hexdigest()


def test_ten_thousand_certificates_are_a_few_megabytes(made, tmp_path):
    header = dataclasses.replace(made.certificates.header, images=10_000)
    records = [dataclasses.replace(made.certificates.records[0], index=i) for i in range(10_000)]
    certificates = certify.Certificates(header, files.sealed(header, records))
    path = tmp_path / "many"
    certify.write(path, certificates)
    assert path.stat().st_size < 4e6
    assert certify.read(path) == certificates
    assert all(files.intact(certificates))


def changed_line(number, **changes):
    def change(lines):
        entry = json.loads(lines[number])
        for name, value in changes.items():
            if value is None:
                del entry[name]
            else:
                entry[name] = value
        lines[number] = json.dumps(entry)
        return lines

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [], "is no file of certificates"),
        (lambda lines: ["{}"], "is no file of certificates"),
        (lambda lines: ['{"params": 1}', *lines[1:]], "is no file of certificates"),
        (lambda lines: ["PK\x03\x04"], "line 1 is damaged"),
        (lambda lines: ["[1, 2]"], "line 1 is damaged"),
        (lambda lines: lines[:-1], r"should hold \d+ certificates and holds \d+"),
        (lambda lines: [*lines[:2], lines[2][:-30]], "line 3 is damaged"),
        (lambda lines: [*lines[:2], lines[2].replace('"label"', '"index"'), *lines[3:]], "line 3 is damaged"),
        (lambda lines: [lines[0], lines[1], lines[1], *lines[3:]], "two certificates of one image"),
        (changed_line(0, version=2), "version 2, and this program reads version 1"),
        (changed_line(0, version=True), None),
        (changed_line(0, norm=None), "line 1 has no entry 'norm'"),
        (changed_line(0, more=1), "line 1 has an entry 'more'"),
        (changed_line(0, domain=[1, 0]), "domain should be two numbers"),
        (changed_line(0, domain=[0, 10**400]), "domain should be two numbers"),
        (changed_line(0, shape=[5, -1]), "shape should be"),
        (changed_line(0, versions={"jax": 1}), "versions should be"),
        (changed_line(1, label=None), "line 2 has no entry 'label'"),
        (changed_line(1, label="3"), "label should be an integer from 0, got '3'"),
        (changed_line(1, label=1.0), "label should be an integer"),
        (changed_line(1, index=-1), "index should be an integer"),
        (changed_line(1, index=True), "index should be an integer"),
        (changed_line(1, margin=float("nan")), "margin should be a finite number above 0, got 'nan'"),
        (changed_line(1, margin=float("inf")), "margin should be a finite number above 0"),
        (changed_line(1, margin=0), "margin should be a finite number above 0"),
        (changed_line(1, eps=-0.1), "eps should be a finite number from 0, got '-0.1'"),
        (changed_line(1, image_sha256="abc"), "image_sha256 should be 64 hexadecimal digits"),
        (changed_line(1, method=["crown"]), "method should be a string"),
    ],
)
def test_damaged_and_foreign_files_are_one_clear_error(made, tmp_path, damage, message):
    path = tmp_path / "certificates.jsonl"
    path.write_text("\n".join(damage(files.text(made.certificates).splitlines())))
    with pytest.raises(CertificateError, match=message):
        certify.read(path)


def test_files_that_are_no_text_or_not_there_are_one_clear_error(tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(b"\x93NUMPY\x01\x00\xff\xfe")
    for missing in (path, tmp_path / "nothing", tmp_path):
        with pytest.raises(CertificateError, match="Cannot read certificates from"):
            certify.read(missing)
    with pytest.raises(CertificateError, match="null byte"):
        certify.read(tmp_path / "a\0b")
    with pytest.raises(CertificateError, match="it is no file"):  # reading it would never end
        certify.read(Path("/dev/zero"))
    with open(path, "wb") as file:
        file.truncate(2**30 + 1)  # takes no space
    with pytest.raises(CertificateError, match="1073741825 bytes, at most 1073741824 are read"):
        certify.read(path)
    with pytest.raises(CertificateError, match="Cannot write"):
        certify.write(tmp_path / "no" / "folder", SimpleNamespace(header=_header(), records=()))


def _header():
    return certify.Header("0" * 64, "0" * 64, "linf", PIXELS, (5,), 0, {})


@pytest.mark.parametrize("name", models.MODELS)
def test_all_networks_of_the_package_are_known(name):
    side = 32 if name == "resnet_imagenet" else 8
    network = models.build(name, classes=3, width=4, normalization=((0.5,), (0.2,)))
    shape = (side, side, 1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (rng.normal(size=x.shape) / max(1, np.prod(x.shape[:-1])) ** 0.5).astype(np.float32),
        jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), np.float32)),
    )
    read = in_real_arithmetic(program.read_program(network.apply, params, shape, np.float32))
    image = np.random.default_rng(0).uniform(size=(1, *shape))
    known = recompute.analyse(read, image, image)
    logits = known.boxes[read.output]
    np.testing.assert_allclose(logits.lower[0], network.apply(params, image.astype(np.float32)), rtol=1e-3, atol=1e-3)
    # A box of one point is as wide as the roundings of float64, which every layer multiplies by some ten to a hundred.
    assert 0 < (logits.upper - logits.lower).max() < 1e-4 * np.abs(logits.lower).max()
