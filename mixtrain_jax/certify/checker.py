"""The independent check of certificates: hashes first, then every margin anew in NumPy and float64.

An accepted certificate means: network, image and label are to the bit those that it was made for, and this program,
which shares no code with `mixtrain_jax.bounds`, proved in real arithmetic that the margin holds on the whole ball.
What a network computes in floating point instead is covered by the sound bounds that certificates are made with, not
by this check.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

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

ACCEPTED = ""
CHANGED = "changed since it was written"
OTHER_PARAMS = "of other parameters"
OTHER_PROGRAM = "of another network"
OTHER_SHAPE = "of images of another shape"
OTHER_IMAGE = "of another image"
OTHER_LABEL = "of another label"
UNKNOWN_NORM = "of a norm that is not known"
UNKNOWN_METHOD = "by a method that is not known"
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
      indices: of the images, `[n]`.
      reasons: why each was rejected, "" where it was accepted, `[n]`.
      margins: the bounds that were found here, in float64, `[n]`; NaN where it did not come to that.
      versions: software whose version differs now from that which proved: name -> (then, now). No cause to reject.
    """

    indices: np.ndarray
    reasons: tuple[str, ...]
    margins: np.ndarray
    versions: dict[str, tuple[str, str]]

    @property
    def accepted(self) -> np.ndarray:
        """Which were accepted, bool `[n]`."""
        return np.array([reason == ACCEPTED for reason in self.reasons], bool)

    def counts(self) -> dict[str, int]:
        """How many were rejected for each reason, the most frequent first."""
        return dict(Counter(reason for reason in self.reasons if reason != ACCEPTED).most_common())


def verify(
    certificates: Certificates,
    apply: Callable[[Any, Any], Any],
    params: Any,
    split: Split,
    *,
    indices: Sequence[int] | None = None,
    poll: Poll = lambda what, done, total: None,
) -> Report:
    """Check certificates against a network and the images they are of.

    The margin `m` of a certificate is accepted where `floor <= m <= bound`, `bound` being what the same method gives
    here in float64, less its roundings. `floor` is what the method can be expected to reach in the float dtype of the
    network: `bound` less a few times the roundings that a sound bound allows for, and less what changes where a lower
    slope is chosen otherwise because both ends of a ReLU are about equally far from 0. A smaller margin is true, but it
    is not the method's.

    Where such a choice may have made the margin better than `bound`, lower slopes are optimised here until it is
    proved; so are they for `alpha_crown`, whose slopes are not recorded and whose floor is that of `crown`. Nothing is
    accepted that is not proved here.

    Args:
      certificates: as `read` or `certificates_of` give them.
      apply: `(params, images) -> logits`.
      params: its parameters.
      split: the images and labels, all of them.
      indices: of the images whose certificates are checked; all of them by default.
      poll: called with progress; whatever it raises ends the check.

    Returns:
      One reason, or none, for each certificate that was asked for.

    Raises:
      CertificateError: where the network does something that the check does not know or mixes the images of a batch,
        labels are no classes of it, or an index has no certificate.
    """
    split, header = split.floats(), certificates.header
    split = dataclasses.replace(split, images=split.images.astype(np.float32))
    whole = dict(zip((record.index for record in certificates.records), intact(certificates), strict=True))
    records = certificates.records if indices is None else _chosen(certificates, indices)
    program = None
    if header.shape == split.images.shape[1:]:
        program = read_program(apply, params, header.shape, np.float32)
        _check_network(apply, params, split)
    of_all = _reason_of_all(certificates, params, program)
    reasons = [of_all or _reason(record, split, whole[record.index]) for record in records]
    margins = np.full(len(records), np.nan)
    if program is not None and not of_all:
        names = split, header.domain, program
        todo = [i for i, reason in enumerate(reasons) if reason == ACCEPTED]
        done = 0
        for group in _groups(todo, records):
            found = _recomputed([records[i] for i in group], *names)
            for i, (margin, reason) in zip(group, found, strict=True):
                margins[i], reasons[i] = margin, reason
            done += len(group)
            poll("check certificates", done, len(todo))
    now = environment.versions(environment.PROOF)
    differ = {name: (then, now.get(name, "none")) for name, then in header.versions.items() if now.get(name) != then}
    return Report(np.array([record.index for record in records], int), tuple(reasons), margins, differ)


def _check_network(apply: Callable[[Any, Any], Any], params: Any, split: Split) -> None:
    try:
        with jax.default_matmul_precision("highest"):
            check_network(functools.partial(apply, params), split, min(max(len(split), 2), _BATCH))
    except BoundsError as error:
        raise CertificateError(f"These certificates cannot be checked. {error}") from error


def _chosen(certificates: Certificates, indices: Sequence[int]) -> list[Certificate]:
    by_index = {record.index: record for record in certificates.records}
    missing = [i for i in indices if i not in by_index]
    if missing:
        raise CertificateError(f"There is no certificate of image {missing[0]}.")
    return [by_index[i] for i in indices]


def _reason_of_all(certificates: Certificates, params: Any, program: Program | None) -> str:
    header = certificates.header
    if header.params_sha256 != fingerprint(params):
        return OTHER_PARAMS
    if program is None:
        return OTHER_SHAPE
    if header.program_sha256 != program.sha256:
        return OTHER_PROGRAM
    return ACCEPTED if header.norm == "linf" else UNKNOWN_NORM


def _reason(record: Certificate, split: Split, whole: bool) -> str:
    if record.index >= len(split) or record.image_sha256 != image_sha256(split.images[record.index]):
        return OTHER_IMAGE
    if record.label != split.labels[record.index]:
        return OTHER_LABEL
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


def _recomputed(
    records: Sequence[Certificate], split: Split, domain: tuple[float, float], program: Program
) -> list[tuple[float, str]]:
    """The bound of each certificate, all of one method, and the reason to reject it or none."""
    method = records[0].method
    places = [record.index for record in records]
    labels = split.labels[places]
    lower, upper = recompute.ball(split.images[places], np.array([record.eps for record in records]), domain)
    slopes, tighten = _METHODS[method]
    known = recompute.analyse(program, lower, upper, slopes=slopes, tighten=tighten)
    found = recompute.margins(program, known, labels, boxes_only=method == "ibp")
    results = []
    for i, record in enumerate(records):
        bound, floor, ceiling = (values[i].min() for values in found)
        ceiling = {"ibp": bound, "alpha_crown": np.inf}.get(method, ceiling)  # ibp has no slopes to choose
        if bound < record.margin <= ceiling:
            bound = max(bound, _optimised(record, split, domain, program))
        reason = OTHER_MARGIN if record.margin < floor else ACCEPTED
        results.append((float(bound), reason if bound >= record.margin > 0 else NOT_PROVED))
    return results


def _optimised(record: Certificate, split: Split, domain: tuple[float, float], program: Program) -> float:
    """The best bound that is known here, as far as the margin of a certificate asks for it."""
    lower, upper = recompute.ball(split.images[[record.index]], np.array([record.eps]), domain)
    known = recompute.analyse(program, lower, upper, tighten=_METHODS[record.method][1])
    labels = split.labels[[record.index]]
    return float(recompute.ascend(program, known, labels, _STEPS, record.margin).lower.min())
