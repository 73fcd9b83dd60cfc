"""The independent check of certificates: hashes first, then every margin anew in NumPy and float64.

Nothing that a file says is believed. The network, the images, their labels, the domain and the radius are those that
the check is told; a certificate has to be of them. An accepted one means: the image is in the domain, and this program,
which shares no code with `mixtrain_jax.bounds`, proved that the network gives every image of the ball and the domain
that label, in real arithmetic and as deployed: in its float dtype, with sums in any order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mixtrain_jax import environment
from mixtrain_jax.attacks import Poll
from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.certify import recompute
from mixtrain_jax.certify.certificates import Certificate, Certificates, image_sha256, intact
from mixtrain_jax.certify.network import check_network
from mixtrain_jax.certify.program import Program, read_program
from mixtrain_jax.data import Split
from mixtrain_jax.errors import CertificateError
from mixtrain_jax.fingerprints import fingerprint
from mixtrain_jax.threat import Threat

ACCEPTED = ""
CHANGED = "changed since it was written"
OTHER_PARAMS = "of other parameters"
OTHER_PROGRAM = "of another network"
OTHER_SHAPE = "of images of another shape"
OTHER_DOMAIN = "of another domain"
OTHER_IMAGE = "of another image"
OTHER_LABEL = "of another label"
OUTSIDE = "of an image outside the domain"
SMALLER_EPS = "of a smaller radius"
UNKNOWN_NORM = "of a norm that is not known"
UNKNOWN_METHOD = "by a method that is not known"
OVERFLOW = "of a network whose numbers may overflow"
NOT_PROVED = "margin not proved by the method"
OTHER_MARGIN = "margin smaller than the method's"

# How each method bounds: the slopes of its ReLUs, and whether boxes inside come from backward passes.
_METHODS = {
    "ibp": ("adaptive", False),
    "crown_ibp": ("adaptive", False),
    "symbolic": ("parallel", True),
    "crown": ("adaptive", True),
    "alpha_crown": ("adaptive", True),
}
_BATCH = 64  # images at a time, where one takes little
_STEPS = 100  # of gradient ascent, most


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each certificate, in the order in which they were checked.

    Attributes:
      threat: that they were checked for.
      indices: of the images, `[n]`.
      reasons: why each was rejected, "" where it was accepted, `[n]`.
      margins: the bounds that were found here, in float64, `[n]`; NaN where it did not come to that.
      verified: how many distinct images have a certificate that was accepted. Images count once that are equal, pixel
        by pixel and in their labels.
      images: how many distinct images the split has.
      versions: software whose version differs now from that which proved: name -> (then, now). No cause to reject.
    """

    threat: Threat
    indices: np.ndarray
    reasons: tuple[str, ...]
    margins: np.ndarray
    verified: int
    images: int
    versions: dict[str, tuple[str, str]]

    @property
    def accepted(self) -> np.ndarray:
        """Which were accepted, bool `[n]`."""
        return np.array([reason == ACCEPTED for reason in self.reasons], bool)

    @property
    def verified_accuracy(self) -> float:
        """Share of the distinct images of the split that are proved to be classified rightly on the whole ball."""
        return self.verified / self.images if self.images else 0.0

    def counts(self) -> dict[str, int]:
        """How many were rejected for each reason, the most frequent first."""
        return dict(Counter(reason for reason in self.reasons if reason != ACCEPTED).most_common())


def verify(
    certificates: Certificates,
    apply: Callable[[Any, Any], Any],
    params: Any,
    split: Split,
    threat: Threat,
    *,
    indices: Sequence[int] | None = None,
    poll: Poll = lambda what, done, total: None,
) -> Report:
    """Check that certificates prove a network robust to a threat on images of a split.

    A certificate is of the threat where its domain is the same, and its radius is no smaller: it then proves the
    margin on a ball that holds the threat's.

    The margin `m` of a certificate is accepted where `floor <= m <= bound`, `bound` being what the same method gives
    here in float64, less its roundings and those of the network as deployed. `floor` is what the method can be expected
    to reach in the float dtype of the network: `bound` less a few times the roundings that a sound bound allows for,
    and less what changes where a lower slope is chosen otherwise because both ends of a ReLU are about equally far from
    0. A smaller margin is true, but it is not the method's.

    Where such a choice may have made the margin better than `bound`, lower slopes are optimised here until it is
    proved; so are they for `alpha_crown`, whose slopes are not recorded and whose floor is that of `crown`. Nothing is
    accepted that is not proved here.

    Args:
      certificates: as `read` or `certificates_of` give them.
      apply: `(params, images) -> logits`.
      params: its parameters.
      split: the images and labels, all of those that count for the accuracy.
      threat: what the network should withstand, in the l-infinity norm.
      indices: of the images whose certificates are checked; all of them by default.
      poll: called with progress; whatever it raises ends the check.

    Returns:
      One reason, or none, for each certificate that was asked for, and how many images of the split they prove.

    Raises:
      CertificateError: where the network does something that the check does not know or mixes the images of a batch,
        the split is not of images and labels that are classes of the network, an index has no certificate, or the
        threat is of another norm.
    """
    if threat.norm != "linf":
        raise CertificateError(f"The check of certificates knows the l-infinity norm, got a threat of {threat.norm}.")
    split, header = _as_deployed(split), certificates.header
    records, whole = _chosen(certificates, indices)
    program = None
    if header.shape == split.images.shape[1:]:
        with _quiet():
            _check_network(apply, params, split)
            program = read_program(apply, params, header.shape, np.float32)
    of_all = _reason_of_all(certificates, params, program, threat)
    subject = _Subject(program, split, [image_sha256(image) for image in split.images], threat)
    reasons = [of_all or _reason(*pair, subject) for pair in zip(records, whole, strict=True)]
    margins = np.full(len(records), np.nan)
    todo = [i for i, reason in enumerate(reasons) if reason == ACCEPTED]
    done = 0
    for group in _groups(todo, records):
        with _quiet():
            found = _recomputed([records[i] for i in group], subject)
        for i, (margin, reason) in zip(group, found, strict=True):
            margins[i], reasons[i] = margin, reason
        done += len(group)
        poll("check certificates", done, len(todo))
    now = environment.versions(environment.PROOF)
    differ = {name: (then, now.get(name, "none")) for name, then in header.versions.items() if now.get(name) != then}
    examples = list(zip(subject.hashes, split.labels.tolist(), strict=True))
    accepted = {examples[record.index] for record, reason in zip(records, reasons, strict=True) if reason == ACCEPTED}
    places = np.array([record.index for record in records], int)
    return Report(threat, places, tuple(reasons), margins, len(accepted), len(set(examples)), differ)


class _Subject(NamedTuple):
    """What certificates are held against."""

    program: Program | None  # None where images of the split are of another shape
    split: Split  # float32
    hashes: list[str]  # of its images
    threat: Threat


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """No warning of numbers that are not finite, which forgers and bad networks bring: they prove nothing."""
    return np.errstate(all="ignore")


def _as_deployed(split: Split) -> Split:
    """The split with float32 images.

    Raises:
      CertificateError: where it has not one integer label an image, or a pixel that is no number.
    """
    split = split.floats()
    if split.images.shape[:1] != split.labels.shape or not np.issubdtype(split.labels.dtype, np.integer):
        raise CertificateError(
            f"The check of certificates wants one integer label an image, got {split.labels.dtype}"
            f"{list(split.labels.shape)} for images {list(split.images.shape)}."
        )
    with _quiet():
        images = split.images.astype(np.float32)
    if (bad := np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))).size:
        raise CertificateError(f"The check of certificates wants finite images; image {bad[0]} is not.")
    return dataclasses.replace(split, images=images)


def _check_network(apply: Callable[[Any, Any], Any], params: Any, split: Split) -> None:
    try:
        with jax.default_matmul_precision("highest"):
            check_network(functools.partial(apply, params), split, min(max(len(split), 2), _BATCH))
    except BoundsError as error:
        raise CertificateError(f"These certificates cannot be checked. {error}") from error


def _chosen(certificates: Certificates, indices: Sequence[int] | None) -> tuple[list[Certificate], list[bool]]:
    """The certificates of these images, and whether each still is what it was sealed as."""
    pairs = list(zip(certificates.records, intact(certificates), strict=True))
    if indices is not None:
        by_index = {pair[0].index: pair for pair in pairs}
        if missing := [i for i in indices if i not in by_index]:
            raise CertificateError(f"There is no certificate of image {missing[0]}.")
        pairs = [by_index[i] for i in indices]
    return [record for record, _ in pairs], [whole for _, whole in pairs]


def _reason_of_all(certificates: Certificates, params: Any, program: Program | None, threat: Threat) -> str:
    header = certificates.header
    if header.params_sha256 != fingerprint(params):
        return OTHER_PARAMS
    if program is None:
        return OTHER_SHAPE
    if header.program_sha256 != program.sha256:
        return OTHER_PROGRAM
    if header.norm != threat.norm:
        return UNKNOWN_NORM
    return ACCEPTED if tuple(header.domain) == tuple(threat.domain) else OTHER_DOMAIN


def _reason(record: Certificate, whole: bool, subject: _Subject) -> str:
    split, hashes, threat = subject.split, subject.hashes, subject.threat
    if not 0 <= record.index < len(split) or record.image_sha256 != hashes[record.index]:
        return OTHER_IMAGE
    if record.label != split.labels[record.index]:
        return OTHER_LABEL
    low, high = recompute.float_domain(threat.domain, np.float32)
    image = split.images[record.index]
    if not ((image >= low) & (image <= high)).all():  # NaN is not
        return OUTSIDE
    if not threat.eps <= record.eps < np.inf:
        return SMALLER_EPS
    if record.method not in _METHODS:
        return UNKNOWN_METHOD
    return ACCEPTED if whole else CHANGED


def _groups(todo: Sequence[int], records: Sequence[Certificate]) -> list[list[int]]:
    """Certificates that are bounded together: many of one method that takes little, one of another."""
    groups = []
    for method, (_, tighten) in _METHODS.items():
        mine = [i for i in todo if records[i].method == method]
        size = 1 if tighten else _BATCH
        groups += [mine[start : start + size] for start in range(0, len(mine), size)]
    return groups


def _recomputed(records: Sequence[Certificate], subject: _Subject) -> list[tuple[float, str]]:
    """The bound of each certificate, all of one method, and the reason to reject it or none."""
    method, program = records[0].method, subject.program
    assert program is not None
    slopes, tighten = _METHODS[method]
    known = recompute.analyse(program, *_ball(records, subject), slopes=slopes, tighten=tighten)
    labels = subject.split.labels[[record.index for record in records]]
    found = recompute.margins(program, known, labels, boxes_only=method == "ibp")
    results = []
    for i, record in enumerate(records):
        bound, floor, ceiling = (values[i].min() for values in found)
        ceiling = {"ibp": bound, "alpha_crown": np.inf}.get(method, ceiling)  # ibp has no slopes to choose
        if bound < record.margin <= ceiling:
            bound = max(bound, _optimised(record, subject))
        results.append((float(bound), _verdict(record, bound, floor, known.largest[i] <= program.largest)))
    return results


def _verdict(record: Certificate, bound: float, floor: float, finite: bool) -> str:
    if not finite:  # or NaN
        return OVERFLOW
    if not bound >= record.margin > 0:
        return NOT_PROVED
    return OTHER_MARGIN if record.margin < floor else ACCEPTED


def _optimised(record: Certificate, subject: _Subject) -> float:
    """The best bound that is known here, as far as the margin of a certificate asks for it."""
    assert subject.program is not None
    known = recompute.analyse(subject.program, *_ball([record], subject), tighten=_METHODS[record.method][1])
    labels = subject.split.labels[[record.index]]
    return float(recompute.ascend(subject.program, known, labels, _STEPS, record.margin).lower.min())


def _ball(records: Sequence[Certificate], subject: _Subject) -> tuple[np.ndarray, np.ndarray]:
    domain = recompute.float_domain(subject.threat.domain, np.float32)
    images = subject.split.images[[record.index for record in records]]
    return recompute.ball(images, np.array([record.eps for record in records], np.float64), domain)
