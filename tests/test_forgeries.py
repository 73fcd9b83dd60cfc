"""Certificates made by a liar who knows the check, makes every SHA-256 again, and may choose the network: none holds.

A forgery is a file in which every certificate says something false or something else than the verifier asks for. The
verifier names the network, the images and the threat. Margins are forged as well as can be: they are the very bounds
that the check computes where it believes the lie.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax import certify
from mixtrain_jax.certify import Certificates, Threat, checker, program, recompute
from mixtrain_jax.certify import certificates as files
from mixtrain_jax.data import Split
from mixtrain_jax.errors import CertificateError

SHAPE, CLASSES, COUNT = (4, 4, 1), 3, 24
THREAT = Threat(0.05)


def net(p, x):
    return jax.nn.relu((x.reshape(len(x), -1) - 0.5) @ p["a"] + p["b"][None]) @ p["c"]


def other_mean(p, x):
    return net(p, x - 0.01)


def overflowing(p, x):
    return net(p, x) * 1e20 * 1e20


def cancelling(p, x):
    """In real arithmetic `net`, a million times smaller; in float32 nothing is left of it."""
    return (net(p, x) * 1e-6 + 1e4) - 1e4 + jnp.asarray([[0.0, 0.0, 1e-9]], jnp.float32)


def centered(p, x):
    return net(p, x - x.mean(0, keepdims=True))


def shared(p, x):
    return net(p, x) - net(p, x).sum(0, keepdims=True) * 0.5


def two_faced(p, x):
    return net(p, x) if len(x) == 1 else -net(p, x)


def shifted(p, x):
    return jnp.roll(net(p, x), 1, 0)


def random_params(seed):
    rng = np.random.default_rng(seed)
    shapes = {"a": (16, 8), "b": (8,), "c": (8, CLASSES)}
    return {name: (rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32) for name, shape in shapes.items()}


PARAMS = random_params(0)


class Case(NamedTuple):
    """A file, and what the verifier holds it against."""

    certificates: Certificates
    apply: Any = net
    params: Any = PARAMS
    split: Any = None
    threat: Threat = THREAT


@pytest.fixture(scope="module")
def honest():
    """Certificates of the images that IBP proves; every fourth image has a label that the network does not give it."""
    images = np.random.default_rng(1).uniform(0.1, 0.9, size=(COUNT, *SHAPE)).astype(np.float32)
    labels = np.asarray(net(PARAMS, images)).argmax(-1).astype(np.int32)
    labels[::4] = (labels[::4] + 1) % CLASSES
    split = Split(images, labels)
    logits_fn = functools.partial(net, PARAMS)
    methods = certify.methods(["ibp"])
    evaluation = certify.evaluate(jax.random.key(0), logits_fn, split, THREAT, attacks={}, methods=methods)
    assert 4 < evaluation.verified.sum() < evaluation.clean.sum() == COUNT - COUNT // 4
    return Case(certify.certificates_of(evaluation, net, PARAMS, split), split=split)


def wrong(case):
    """Indices of the images that the network gets wrong without any perturbation."""
    return np.flatnonzero(np.asarray(net(PARAMS, case.split.images)).argmax(-1) != case.split.labels)


def unproved(case):
    """Indices of images that the network gets right, but that are not proved."""
    return np.setdiff1d(np.arange(COUNT), [*wrong(case), *(record.index for record in case.certificates.records)])


def sealed(case, records, **changes):
    header = dataclasses.replace(case.certificates.header, **changes)
    return case._replace(certificates=Certificates(header, files.sealed(header, records)))


def forged(case, indices, believed=None, header=None, **changes):
    """Certificates of these images with the margins that a check would find which believed the lie.

    Args:
      case: what is held against them.
      indices: of the images.
      believed: the threat that a fooled check would compute with.
      header: entries of the header that lie.
      changes: entries of the certificates that lie.
    """
    threat = believed or case.threat
    read = program.read_program(case.apply, case.params, SHAPE, np.float32)
    read = dataclasses.replace(read, unit=recompute.UNIT, tiny=0.0)
    images, labels = case.split.images[indices], case.split.labels[indices]
    lower = np.maximum(images.astype(np.float64) - threat.eps, threat.domain[0])
    upper = np.minimum(images.astype(np.float64) + threat.eps, threat.domain[1])
    with mock.patch.object(recompute, "_ordered", lambda box: box), np.errstate(all="ignore"):
        known = recompute.analyse(read, lower, upper)
        bounds = recompute.margins(read, known, np.clip(labels, 0, CLASSES - 1), boxes_only=True).lower.min(-1)
    base = case.certificates.records[0]
    records = [
        dataclasses.replace(
            base,
            index=int(i),
            image_sha256=files.image_sha256(image),
            label=int(label),
            eps=threat.eps,
            method="ibp",
            margin=float(bound) * (1 - 1e-7) if bound > 0 else 1e-3,  # less the roundings
        )
        for i, image, label, bound in zip(indices, images, labels, bounds, strict=True)
    ]
    header = {"params_sha256": files.fingerprint(case.params), "program_sha256": read.sha256, **(header or {})}
    return sealed(case, [dataclasses.replace(record, **changes) for record in records], **header)


def of_domain(low, high, eps=THREAT.eps):
    """Domain and radius of the header made up, so that boxes are crossed or narrow."""

    def forge(case):
        return forged(case, wrong(case), Threat(eps, (low, high)), {"domain": (low, high)})

    return forge


def narrow_domain(case):
    """A domain that holds the image, and little more."""
    (index,) = unproved(case)[:1]
    image = case.split.images[index]
    domain = float(image.min()), float(image.max())
    return forged(case, [index], Threat(THREAT.eps, domain), {"domain": domain})


def of_records(change, **header):
    """All honest certificates, each changed."""
    return lambda case: sealed(case, [change(record, case) for record in case.certificates.records], **header)


def entry(**changes):
    return of_records(lambda record, case: dataclasses.replace(record, **changes))


def of_network(apply, params=PARAMS):
    """A network that the liar chose, at radius 0, with the labels that real arithmetic gives to each image alone."""
    alone = apply if apply in (overflowing, cancelling) else net

    def forge(case):
        read = program.read_program(alone, params, SHAPE, np.float32)
        with np.errstate(all="ignore"):
            logits = recompute.analyse(read, case.split.images, case.split.images).boxes[read.output]
            labels = (logits.lower + logits.upper)[:, 0].argmax(-1).astype(np.int32)
        case = case._replace(apply=alone, params=params, split=Split(case.split.images, labels))
        return forged(case, np.arange(COUNT), Threat(0.0))._replace(apply=apply, threat=Threat(0.0))

    return forge


def of_image(pixel):
    """A data set with a pixel that is no input."""

    def forge(case):
        images = case.split.images.copy()
        images[:, 0, 0, 0] = pixel
        return forged(case._replace(split=Split(images, case.split.labels)), unproved(case))

    return forge


def swapped(case):
    """The margin, the method and the hash of every certificate are those of the next one."""
    records = case.certificates.records
    names = ("image_sha256", "method", "margin", "label")
    lies = [{name: getattr(record, name) for name in names} for record in (*records[1:], records[0])]
    return sealed(case, [dataclasses.replace(r, **lie) for r, lie in zip(records, lies, strict=True)])


def merged(case):
    """Certificates of another network, true of that one, under the header of this one."""
    others = forged(case._replace(params=random_params(5)), unproved(case)).certificates.records
    return sealed(case, [dataclasses.replace(record, margin=0.5) for record in others])


def copied(case):
    """One true certificate, again and again under the indices of all images that are not proved."""
    record = case.certificates.records[0]
    return sealed(case, [dataclasses.replace(record, index=int(i)) for i in (*wrong(case), *unproved(case))])


def next_below(record, case):
    return dataclasses.replace(record, eps=float(np.nextafter(np.float32(record.eps), np.float32(0))))


FORGERIES = {
    # What the file says of the threat
    "a domain without the image": of_domain(5.0, 6.0),
    "a domain in the middle of the image": of_domain(0.4999, 0.5),
    "a domain far away and a huge radius": of_domain(11.0, 12.0, eps=10.0),
    "a domain that is NaN": of_records(lambda r, case: r, domain=(float("nan"), float("nan"))),
    "a domain that is reversed": of_records(lambda r, case: r, domain=(1.0, 0.0)),
    "a domain around one image": narrow_domain,
    "a wider domain": of_records(lambda r, case: r, domain=(-1.0, 1.0)),
    "half of the radius": lambda case: forged(case, unproved(case), Threat(THREAT.eps / 2)),
    "a radius of 0": lambda case: forged(case, unproved(case), Threat(0.0)),
    "a radius one float32 too small": of_records(next_below),
    "a negative radius": lambda case: forged(case, wrong(case), eps=-0.05),
    "a negative radius so large that boxes are crossed": lambda case: forged(case, wrong(case), eps=-10.0),
    "a radius that is NaN": entry(eps=float("nan")),
    "a radius that is infinite": entry(eps=float("inf")),
    "a radius without an end": entry(eps=1e299),
    "the l2 norm": of_records(lambda r, case: r, norm="l2"),
    # What it says of images and labels
    "images that are misclassified": lambda case: forged(case, wrong(case)),
    "images that are misclassified, with the least margin": lambda case: forged(case, wrong(case), margin=5e-324),
    "images that are misclassified, by optimised slopes": lambda case: forged(
        case, wrong(case), method="alpha_crown", margin=0.5
    ),
    "labels that the network gives": lambda case: forged(
        case._replace(split=Split(case.split.images, np.asarray(net(PARAMS, case.split.images)).argmax(-1))),
        wrong(case),
    )._replace(split=case.split),
    "labels that are no class": entry(label=CLASSES),
    "labels below 0": entry(label=-1),
    "a data set with labels that are no class": lambda case: forged(
        case._replace(split=Split(case.split.images, np.full(COUNT, CLASSES))), unproved(case)
    ),
    "images of nobody": entry(image_sha256="0" * 64),
    "images beyond the end": of_records(lambda r, case: dataclasses.replace(r, index=r.index + COUNT)),
    "images counted from the end": of_records(lambda r, case: dataclasses.replace(r, index=r.index - COUNT)),
    "one image under many indices": copied,
    "images in another order": swapped,
    "a data set with pixels outside the domain": of_image(1.5),
    "a data set with pixels that are NaN": of_image(np.nan),
    "images of another shape": of_records(lambda r, case: r, shape=(2, 8, 1)),
    # What it says of the network
    "parameters of the same shapes": lambda case: case._replace(params=random_params(7)),
    "parameters of the same shapes, and their hash": lambda case: sealed(
        case._replace(params=random_params(7)),
        case.certificates.records,
        params_sha256=files.fingerprint(random_params(7)),
    ),
    "other preprocessing": lambda case: case._replace(apply=other_mean),
    "certificates of two networks in one file": merged,
    "the header of another file": lambda case: case._replace(
        certificates=dataclasses.replace(
            case.certificates, header=dataclasses.replace(case.certificates.header, params_sha256="1" * 64)
        )
    ),
    "parameters that are NaN": of_network(net, {**PARAMS, "c": np.full((8, CLASSES), np.nan, np.float32)}),
    "parameters that are infinite": of_network(net, {**PARAMS, "b": np.full(8, np.inf, np.float32)}),
    "numbers that overflow float32": of_network(overflowing),
    "numbers that float32 rounds away": of_network(cancelling),
    "images less the mean of their batch": of_network(centered),
    "logits less those of the batch": of_network(shared),
    "logits that are negated in batches": of_network(two_faced),
    "logits of the image before": of_network(shifted),
    # What it says of the proof
    "a margin twice as large": of_records(lambda r, case: dataclasses.replace(r, margin=2 * r.margin)),
    "a margin half as large": of_records(lambda r, case: dataclasses.replace(r, margin=r.margin / 2)),
    "a margin that is NaN": entry(margin=float("nan")),
    "a margin that is infinite": entry(margin=float("inf")),
    "the least margin": entry(margin=5e-324),
    "a huge margin by optimised slopes": entry(method="alpha_crown", margin=1e30),
    "margins of another method": entry(method="crown"),
    "an unknown method": entry(method="IBP"),
    "no method": entry(method=""),
}


REFUSED_AT_ONCE = {  # because of the network or the data set
    "a data set with pixels that are NaN": "wants finite images; image 0 is not",
    "a data set with labels that are no class": "labels between 0 and 2, got 3",
    "images less the mean of their batch": "cannot be checked",
    "logits less those of the batch": "cannot be checked",
    "logits that are negated in batches": "cannot be checked",
    "logits of the image before": "cannot be checked",
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_no_forgery_is_accepted(honest, kind):
    case = FORGERIES[kind](honest)
    assert case.certificates.records
    arguments = case.certificates, case.apply, case.params, case.split, case.threat
    if kind in REFUSED_AT_ONCE:
        with pytest.raises(CertificateError, match=REFUSED_AT_ONCE[kind]):
            certify.verify(*arguments)
        return
    report = certify.verify(*arguments)
    assert report.accepted.sum() == report.verified == 0, report.reasons
    assert report.verified_accuracy == 0


def test_what_is_forged_from_is_accepted(honest):
    """So that the table shows what the lies are worth, not what the checker knows."""
    report = certify.verify(honest.certificates, net, PARAMS, honest.split, THREAT)
    assert report.accepted.all()
    assert (report.verified, report.images) == (len(honest.certificates.records), COUNT)
    assert report.verified_accuracy == len(honest.certificates.records) / COUNT


def test_a_larger_radius_proves_a_smaller_one(honest):
    report = certify.verify(honest.certificates, net, PARAMS, honest.split, Threat(0.01))
    assert report.accepted.all()
    assert report.threat.eps == 0.01


def test_the_accuracy_is_that_of_the_split_whatever_the_header_says(honest):
    header = dataclasses.replace(honest.certificates.header, images=1)
    certificates = Certificates(header, files.sealed(header, honest.certificates.records))
    report = certify.verify(certificates, net, PARAMS, honest.split, THREAT)
    assert (report.verified, report.images) == (len(certificates.records), COUNT)


def test_equal_images_count_once(honest):
    """In the certificates and in the split; an image that has two labels is two, as one of them is wrong."""
    record = honest.certificates.records[0]
    images, labels = (np.concatenate([x, x[[record.index] * 3]]) for x in (honest.split.images, honest.split.labels))
    labels[-1] = (labels[-1] + 1) % CLASSES
    again = [dataclasses.replace(record, index=COUNT + i) for i in range(3)]
    case = sealed(honest._replace(split=Split(images, labels)), [*honest.certificates.records, *again])
    report = certify.verify(case.certificates, net, PARAMS, case.split, THREAT)
    assert report.counts() == {checker.OTHER_LABEL: 1}
    assert report.accepted.sum() == len(honest.certificates.records) + 2
    assert (report.verified, report.images) == (len(honest.certificates.records), COUNT + 1)
    twice = certify.verify(case.certificates, net, PARAMS, case.split, THREAT, indices=[record.index] * 5)
    assert (len(twice.reasons), twice.verified) == (5, 1)


def test_a_certificate_that_was_not_sealed_is_told_though_another_of_its_index_was(honest):
    record = honest.certificates.records[0]
    certificates = sealed(honest, [record, record]).certificates
    unsealed = dataclasses.replace(certificates.records[0], eps=record.eps * 1.0001)
    certificates = dataclasses.replace(certificates, records=(unsealed, certificates.records[1]))
    report = certify.verify(certificates, net, PARAMS, honest.split, THREAT)
    assert report.reasons == (checker.CHANGED, checker.ACCEPTED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threat": Threat(0.05, norm="l2")}, "knows the l-infinity norm, got a threat of l2"),
        ({"split": Split(np.zeros((3, *SHAPE), np.float32), np.zeros(3, np.float32))}, "one integer label an image"),
        ({"split": Split(np.zeros((3, *SHAPE), np.float32), np.zeros(4, np.int32))}, "one integer label an image"),
        ({"apply": lambda p, x: net(p, x)[:, :1]}, "cannot be checked.*one logit"),
        ({"apply": lambda p, x: net(p, jnp.concatenate([x[:, :0], x], 1))}, "arrays without entries"),
    ],
)
def test_what_cannot_be_checked_is_one_clear_error(honest, changes, message):
    case = honest._replace(**changes)
    with pytest.raises(CertificateError, match=message):
        certify.verify(case.certificates, case.apply, case.params, case.split, case.threat)


@pytest.mark.parametrize(("eps", "image", "domain"), [(-0.1, 0.5, (0, 1)), (0.1, 2.0, (0, 1)), (0.1, np.nan, (0, 1))])
def test_no_ball_is_made_that_would_be_crossed(eps, image, domain):
    with pytest.raises(CertificateError, match="A ball wants"):
        recompute.ball(np.full((1, 2), image), np.array([eps]), domain)


def test_crossed_boxes_prove_nothing():
    read = program.read_program(net, PARAMS, SHAPE, np.float32)
    lower = np.full((1, *SHAPE), 0.6)
    known = recompute.analyse(read, lower, lower - 0.2)
    assert np.isnan(recompute.margins(read, known, np.array([0])).lower).all()
