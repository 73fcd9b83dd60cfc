"""Files that are not trusted as text, within a limit on their size."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from pathlib import Path

from mixtrain_jax.errors import QueryError, first_line

MAX_BYTES = 2**27


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file, unpacked where it is packed by gzip, whatever its name.

    Args:
      path: the file.
      max_bytes: of the file, and of what it unpacks to.

    Raises:
      QueryError: where it cannot be read, is damaged, or too large.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for its other end
            raise QueryError(f"{path} is not a regular file.")
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(max_bytes + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise QueryError(f"{path} is damaged: it begins as a gzip file, but {first_line(error)}.") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise QueryError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    if len(data) > max_bytes:
        raise QueryError(f"{path} has more than {max_bytes} bytes once unpacked, which is the limit.")
    return data


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The content of a file as text.

    Raises:
      QueryError: as `read_bytes` does, and where it is no text.
    """
    try:
        return read_bytes(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise QueryError(f"{path} is no text: byte {error.start} is not UTF-8.") from error
