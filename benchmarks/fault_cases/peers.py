"""The same damage done to what others write and read, for the counts beside ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from mixtrain_jax.fingerprints import by_name, manifest

from .saved import files, state, truncate, zero
from .trials import Trial, flipped, pick, spawned


def orbax_flips(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """One bit of one file of a checkpoint that Orbax alone writes and reads."""
    pristine = _saved(tmp)
    found = files(pristine)
    sizes = np.array([path.stat().st_size for path in found])
    for number, draw in spawned(rng, count):
        path = found[draw.choice(len(found), p=sizes / sizes.sum())].relative_to(pristine)

        def damage(path: Path, draw: np.random.Generator = draw) -> None:
            path.write_bytes(flipped(path.read_bytes(), draw))

        yield _trial(pristine, tmp / str(number), path, f"a bit of {path}", damage)


def orbax_files(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """A file of such a checkpoint that is cut short, deleted or zeroed."""
    pristine = _saved(tmp)
    hows: dict[str, Callable[[Path], object]] = {"cut": truncate, "deleted": Path.unlink, "zeroed": zero}
    for number, draw in spawned(rng, count):
        how, path = pick(draw, sorted(hows)), pick(draw, files(pristine)).relative_to(pristine)
        yield _trial(pristine, tmp / str(number), path, f"{path} {how}", hows[str(how)])


def _saved(tmp: Path) -> Path:
    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp / "pristine", _leaves())
    return tmp / "pristine"


def _leaves() -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in by_name(state(3)).items()}


def _trial(pristine: Path, folder: Path, path: Path, what: str, damage: Callable[[Path], object]) -> Trial:
    """Passes where the right numbers come back or any error does."""

    def act() -> str:
        shutil.copytree(pristine, folder)
        damage(folder / path)
        try:
            with ocp.StandardCheckpointer() as reader:
                found = reader.restore(folder)
        except Exception:
            return ""
        finally:
            shutil.rmtree(folder)
        return "" if manifest(found) == manifest(_leaves()) else "restored wrong numbers without a word"

    return Trial(what, act)
