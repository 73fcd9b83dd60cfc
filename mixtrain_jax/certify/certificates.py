"""Certificates: what was proved of which image by which network, in a file that any program can read.

A file is JSON lines in UTF-8. The first line is the header: what all certificates share. Every further line is the
certificate of one image. Each ends with the SHA-256 of the header's text, a newline and its own text without that
entry, both written with sorted keys and without spaces: one certificate and the header stand for themselves.
The SHA-256 finds damage, not forgery: `verify` finds that, by proving everything anew, and by taking nothing that the
file says for true: images, labels, domain and radius are those that it is told.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixtrain_jax import environment
from mixtrain_jax.certify.complete import COMPLETE
from mixtrain_jax.certify.evaluation import Evaluation
from mixtrain_jax.certify.program import read_program
from mixtrain_jax.data import Split
from mixtrain_jax.errors import CertificateError
from mixtrain_jax.fingerprints import fingerprint, sha256

FORMAT, VERSION = "mixtrain_jax certificates", 1
_LARGEST = 2**30  # bytes of a file that is read: millions of certificates


@dataclasses.dataclass(frozen=True)
class Header:
    """What all certificates of a file share.

    Attributes:
      params_sha256: of the network's parameters, as `fingerprints.fingerprint` has it.
      program_sha256: of what the network computes and of all its constants, as `program.read_program` has it.
      norm: of the balls; `linf` is the one that is known.
      domain: lowest and highest pixel.
      shape: of an image.
      images: how many images were tried, the first ones of the split; those without a certificate were not proved.
      versions: of the software that proved.
    """

    params_sha256: str
    program_sha256: str
    norm: str
    domain: tuple[float, float]
    shape: tuple[int, ...]
    images: int
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Certificate:
    """For every `x` of the domain with `|x - image| <= eps` and `j != label`: `z_label - z_j >= margin > 0`.

    Attributes:
      index: of the image in its split.
      image_sha256: of the image's float32 pixels, little-endian, rows first.
      label: the class that is proved.
      eps: radius in pixel units, rounded up to a float32 number.
      method: the bound that proved it, a name of `certify.methods`.
      margin: the bound, a float32 number.
      sha256: of header and certificate; "" until `sealed`.
    """

    index: int
    image_sha256: str
    label: int
    eps: float
    method: str
    margin: float
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Certificates:
    """The header and the certificates of a file, in order of the images."""

    header: Header
    records: tuple[Certificate, ...]


def certificates_of(
    evaluation: Evaluation,
    apply: Callable[[Any, Any], Any],
    params: Any,
    split: Split,
) -> Certificates:
    """A certificate for every image that an evaluation verified by a bound, and none for the others.

    What took branch and bound has none: one bound over the whole ball does not prove it, and the check recomputes such.

    Args:
      evaluation: of the whole split.
      apply: `(params, images) -> logits`, the network that was evaluated.
      params: its parameters.
      split: the images and labels.

    Raises:
      CertificateError: where the norm is not l-infinity, the domain has no finite ends, the evaluation is of another
        number of images, or the network does something that the independent check does not know.
    """
    split = split.floats()
    threat, shape = evaluation.threat, split.images.shape[1:]
    if threat.norm != "linf":
        raise CertificateError(f"Certificates are of the l-infinity norm, the evaluation is of {threat.norm}.")
    if not np.isfinite(threat.domain).all():
        raise CertificateError(f"Certificates want a domain with finite ends, got {threat.domain}.")
    if len(evaluation.verified) != len(split):
        raise CertificateError(
            f"The evaluation is of {len(evaluation.verified)} images and the split of {len(split)}; give the same one."
        )
    header = Header(
        params_sha256=fingerprint(params),
        program_sha256=read_program(apply, params, shape, np.float32).sha256,
        norm="linf",
        domain=(float(threat.domain[0]), float(threat.domain[1])),
        shape=shape,
        images=len(split),
        versions=environment.versions(environment.PROOF),
    )
    eps = float(threat.radii(1)[0])
    records = [
        Certificate(
            index=int(i),
            image_sha256=image_sha256(split.images[i]),
            label=int(split.labels[i]),
            eps=eps,
            method=str(evaluation.proved_by[i]),
            margin=float(evaluation.margin[i]),
        )
        for i in np.flatnonzero(evaluation.verified & (evaluation.proved_by != COMPLETE))
    ]
    return Certificates(header, sealed(header, records))


def image_sha256(image: np.ndarray) -> str:
    """SHA-256 of float32 pixels, little-endian whatever the machine is."""
    return sha256(np.asarray(image, "<f4"))


def sealed(header: Header, records: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """The certificates with the SHA-256 that each ends with."""
    text = _header_text(header, len(records))
    return tuple(dataclasses.replace(record, sha256=_seal(text, record)) for record in records)


def intact(certificates: Certificates) -> list[bool]:
    """Whether each certificate, and the header, still are what the SHA-256 was made of."""
    text = _header_text(certificates.header, len(certificates.records))
    return [record.sha256 == _seal(text, record) for record in certificates.records]


def _seal(header: str, record: Certificate) -> str:
    return hashlib.sha256(f"{header}\n{_text(_entries(record))}".encode()).hexdigest()


def _entries(record: Certificate) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name != "sha256"}


def _header_text(header: Header, count: int) -> str:
    return _text({"format": FORMAT, "version": VERSION, "certificates": count, **vars(header)})


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def write(path: Path, certificates: Certificates) -> None:
    """Write a file of certificates, whole or not at all.

    Raises:
      CertificateError: where it cannot be written; an older one is untouched then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text(certificates))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CertificateError(f"Cannot write {path}: {error.strerror}.") from error


def text(certificates: Certificates) -> str:
    """The content of a file of certificates."""
    lines = [_header_text(certificates.header, len(certificates.records))]
    lines += [_text({**_entries(record), "sha256": record.sha256}) for record in certificates.records]
    return "".join(f"{line}\n" for line in lines)


def read(path: Path) -> Certificates:
    """Read a file of certificates and check that it is whole and well formed; `verify` checks what it says.

    Raises:
      CertificateError: where the file cannot be read, is none of certificates, is of a later version, is cut short or
        larger than 1 GB, or has an entry that is missing, unknown or of the wrong type or range; it names the line.
    """
    try:
        if path.exists() and not path.is_file():  # a device may have no end, and a pipe may keep us waiting
            raise CertificateError(f"Cannot read certificates from {path}: it is no file.")
        if (size := path.stat().st_size) > _LARGEST:
            raise CertificateError(f"Cannot read certificates from {path}: {size} bytes, at most {_LARGEST} are read.")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # ValueError: of the encoding, or a NUL in the name
        raise CertificateError(f"Cannot read certificates from {path}: {error}.") from error
    entries = [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    if not entries or entries[0].get("format") != FORMAT:
        raise CertificateError(f"{path} is no file of certificates: its first line does not say so.")
    first = entries[0]
    if first.get("version") != VERSION:
        raise CertificateError(
            f"{path} has certificates of version {first.get('version')!r}, and this program reads version {VERSION}."
        )
    _check(first, _HEADER, f"{path}, line 1")
    for number, entry in enumerate(entries[1:], 2):
        _check(entry, _RECORD, f"{path}, line {number}")
    if len(entries) - 1 != first["certificates"]:
        raise CertificateError(
            f"{path} should hold {first['certificates']} certificates and holds {len(entries) - 1}: it is damaged."
        )
    indices = [entry["index"] for entry in entries[1:]]
    if len(set(indices)) < len(indices):
        raise CertificateError(f"{path} has two certificates of one image.")
    header = Header(
        params_sha256=first["params_sha256"],
        program_sha256=first["program_sha256"],
        norm=first["norm"],
        domain=(first["domain"][0], first["domain"][1]),
        shape=tuple(first["shape"]),
        images=first["images"],
        versions=first["versions"],
    )
    return Certificates(header, tuple(Certificate(**entry) for entry in entries[1:]))


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise CertificateError(f"{where} is damaged: it is no JSON object.") from error
    if not isinstance(entry, dict):
        raise CertificateError(f"{where} is damaged: it is no JSON object.")
    return entry


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def _is_count(x: Any) -> bool:
    return type(x) is int and 0 <= x < 2**53


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and abs(x) < 1e300  # NaN is not


def _is_hash(x: Any) -> bool:
    return isinstance(x, str) and len(x) == 64 and set(x) <= set("0123456789abcdef")


def _is_domain(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and all(map(_is_number, x)) and x[0] < x[1]


def _is_shape(x: Any) -> bool:
    return isinstance(x, list) and all(map(_is_count, x))


def _is_versions(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(version, str) for version in x.values())


_Kinds = dict[str, tuple[Callable[[Any], bool], str]]
_WORD = (lambda x: isinstance(x, str), "a string")
_COUNT = (_is_count, "an integer from 0")
_HASH = (_is_hash, "64 hexadecimal digits")
_HEADER: _Kinds = {
    "format": _WORD,
    "version": _COUNT,
    "certificates": _COUNT,
    "params_sha256": _HASH,
    "program_sha256": _HASH,
    "norm": _WORD,
    "domain": (_is_domain, "two numbers, the lower one first"),
    "shape": (_is_shape, "a list of integers"),
    "images": _COUNT,
    "versions": (_is_versions, "an object of strings"),
}
_RECORD: _Kinds = {
    "index": _COUNT,
    "image_sha256": _HASH,
    "label": _COUNT,
    "eps": (lambda x: _is_number(x) and x >= 0, "a finite number from 0"),
    "method": _WORD,
    "margin": (lambda x: _is_number(x) and x > 0, "a finite number above 0"),
    "sha256": _HASH,
}


def _check(entry: dict[str, Any], kinds: _Kinds, where: str) -> None:
    for name in (*kinds, *entry):
        if name not in kinds:
            raise CertificateError(f"{where} has an entry {name!r} that is not expected.")
        if name not in entry:
            raise CertificateError(f"{where} has no entry {name!r}.")
        good, what = kinds[name]
        if not good(entry[name]):
            raise CertificateError(f"{where}: {name} should be {what}, got {str(entry[name])[:80]!r}.")
