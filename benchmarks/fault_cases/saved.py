"""Damaged and foreign checkpoints, and what a crash left beside them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixtrain_jax import checkpoints
from mixtrain_jax.fingerprints import by_name, fingerprint

from .trials import Trial, flipped, judged, pick, spawned

STEPS = (1, 2, 3)


def state(step: int, width: int = 20, tx: optax.GradientTransformation | None = None) -> dict[str, Any]:
    """What a checkpoint of a small network holds: the numbers of another step are others."""
    rng = np.random.default_rng(step)
    params = {
        "first": {"kernel": jnp.asarray(rng.normal(size=(16, width)), jnp.float32), "bias": jnp.zeros(width)},
        "last": {"kernel": jnp.asarray(rng.normal(size=(width, 10)), jnp.float32), "bias": jnp.full(10, step / 3)},
    }
    optimizer = (tx or optax.adam(1e-3)).init(params)
    moved = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), optimizer)
    return {"step": np.int64(step), "params": params, "optimizer": moved, "draw": jnp.uint32([1, 2])}


def saved(folder: Path) -> Path:
    """A folder with three checkpoints."""
    with checkpoints.Checkpoints(folder) as found:
        for step in STEPS:
            found.save(step, state(step))
    return folder


def files(folder: Path) -> list[Path]:
    """All files below a folder, in an order that does not depend on the random names of data files."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(paths, key=lambda path: (path.parent, path.stat().st_size, path.read_bytes()))


def restores(folder: Path, damaged: int | None = None) -> str:
    """Judge what is restored: the newest step that is whole, bitwise, with a word of every one that was passed over.

    Args:
      folder: of the checkpoints.
      damaged: the one step that was damaged, if any; harmless damage is passed as well.
    """
    notes: list[str] = []
    found = checkpoints.Checkpoints(folder).restore(state(0), notes.append)
    if found is None:
        return "found no checkpoint"
    step = int(found["step"])
    if step not in STEPS or fingerprint(found) != fingerprint(state(step)):
        return f"restored wrong numbers as step {step}"
    if step == STEPS[-1]:
        sound = [note for note in notes if any(note.startswith(f"checkpoint {step} ") for step in STEPS)]
        return f"passed over a sound step: {sound}" if sound else ""
    expected = STEPS[-2] if damaged == STEPS[-1] else STEPS[-1]
    if step != expected:
        return f"restored step {step}, expected {expected}"
    return "" if any(f"checkpoint {STEPS[-1]} is damaged" in note for note in notes) else f"says only {notes}"


def flips(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F1: one bit of one file of one step."""
    pristine = saved(tmp / "pristine")
    for number, draw in spawned(rng, count):
        step = STEPS[-1] if draw.random() < 0.8 else int(pick(draw, STEPS[:-1]))
        found = files(pristine / str(step))
        sizes = np.array([path.stat().st_size for path in found])  # a bit is as likely as any other
        path = found[draw.choice(len(found), p=sizes / sizes.sum())].relative_to(pristine)

        def act(number: int = number, draw: np.random.Generator = draw, path: Path = path, step: int = step) -> str:
            folder = Path(shutil.copytree(pristine, tmp / str(number) / "checkpoints"))
            (folder / path).write_bytes(flipped((folder / path).read_bytes(), draw))
            found = restores(folder, step)
            shutil.rmtree(folder.parent)
            return found

        yield Trial(f"a bit of {path}", act)


def truncate(path: Path) -> None:
    """Keep the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path: Path) -> None:
    """As many zeros."""
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path) -> None:
    """The file of the step before, which gets this one."""
    parts = list(path.parts)
    at = max(i for i, part in enumerate(parts) if part == str(STEPS[-1]))
    other = Path(*parts[:at], str(STEPS[-2]), *parts[at + 1 :])
    if not other.exists():  # data files have random names
        return path.unlink()
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def whole_swap(folder: Path) -> None:
    """Two steps under each other's numbers."""
    last, before = folder / str(STEPS[-1]), folder / str(STEPS[-2])
    last.rename(folder / "aside")
    before.rename(last)
    (folder / "aside").rename(before)


def stale_manifest(folder: Path) -> None:
    """The hashes of the step before."""
    manifest = folder / str(STEPS[-1]) / "manifest"
    shutil.rmtree(manifest)
    shutil.copytree(folder / str(STEPS[-2]) / "manifest", manifest)


def broken_files(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F2: files of the newest step that are cut short, deleted, zeroed or of the step before; in random order."""
    pristine = saved(tmp / "pristine")
    ways = (truncate, Path.unlink, zero, swap)
    pairs = list(itertools.product(files(pristine / str(STEPS[-1])), ways))
    order = [pairs[i] for i in rng.permutation(len(pairs))]
    plans: list[tuple[str, Callable[[Path], object]]] = [
        ("a stale manifest", stale_manifest),
        ("two steps swapped", whole_swap),
    ]
    for path, way in order:
        relative = path.relative_to(pristine)
        plans.append((f"{way.__name__} {relative}", lambda folder, at=relative, way=way: way(folder / at)))
    for number, (what, damage) in enumerate(plans[:count]):

        def act(number: int = number, what: str = what, damage: Callable[[Path], object] = damage) -> str:
            folder = Path(shutil.copytree(pristine, tmp / str(number) / "checkpoints"))
            damage(folder)
            if "swap" in what:  # both steps are damaged, or one that other files make up for
                return _right_or_told(folder)
            return restores(folder, STEPS[-1])

        yield Trial(what, act)


def _right_or_told(folder: Path) -> str:
    def right(found: Any) -> bool:
        step = int(found["step"])
        return step in STEPS and fingerprint(found) == fingerprint(state(step))

    return judged(
        lambda: checkpoints.Checkpoints(folder).restore(state(0), lambda note: None),
        right,
        [str(folder)],
    )


def leftovers(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F10: what a crash in mid-save or a slow file system leaves in the folder."""
    pristine = saved(tmp / "pristine")
    names = ("4.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-17", "tmp", ".4.tmp", "4.orbax-checkpoint-tmp-0/state")
    late = ("4", "4/state", "4/manifest")  # only some of a step is there yet
    for number, draw in spawned(rng, count):
        name = (names + late)[number % len(names + late)]
        filled = bool(draw.integers(2))

        def act(number: int = number, name: str = name, filled: bool = filled) -> str:
            folder = Path(shutil.copytree(pristine, tmp / str(number) / "checkpoints"))
            (folder / name).mkdir(parents=True)
            if filled:
                (folder / name / "part").write_bytes(b"\0" * 100)
            if wrong := restores(folder):
                return wrong
            with checkpoints.Checkpoints(folder) as found:
                found.save(4, state(4))
                found.wait()
            again = checkpoints.Checkpoints(folder).restore(state(0), lambda note: None)
            if again is None or fingerprint(again) != fingerprint(state(4)):
                return "a step saved afterwards is not restored"
            return ""

        yield Trial(f"left {name}{', with a file' if filled else ''}", act)


def foreign(rng: np.random.Generator, count: int, tmp: Path) -> Iterator[Trial]:
    """F15: the checkpoint of another width, depth, dtype, optimizer or kind of key."""
    folder = saved(tmp / "checkpoints")
    names = sorted(by_name(state(0)))
    for number, draw in spawned(rng, count):
        kind = ("width", "optimizer", "key", "dtype", "shape", "missing", "extra", "renamed")[number % 8]
        leaf = str(pick(draw, names))

        def act(kind: str = kind, leaf: str = leaf, draw: np.random.Generator = draw) -> str:
            target, word = other_target(kind, leaf, draw)
            before = sorted(folder.rglob("*"))
            wrong = judged(
                lambda: checkpoints.Checkpoints(folder).restore(target, lambda note: None), None, [word, str(folder)]
            )
            return wrong or ("" if sorted(folder.rglob("*")) == before else "changed the folder")

        yield Trial(f"another {kind}, of {leaf}", act)


def other_target(kind: str, leaf: str, rng: np.random.Generator) -> tuple[Any, str]:
    """A target that the checkpoint does not fit, and a word that the error must say."""
    target = state(0)
    match kind:
        case "width":
            return state(0, width=int(pick(rng, (1, 19, 21, 40)))), "first."
        case "optimizer":
            return state(
                0, tx=pick(rng, (optax.sgd(0.1, momentum=0.9), optax.sgd(0.1), optax.adafactor()))
            ), "optimizer"
        case "key":
            return {**target, "draw": jax.random.key(0)}, "draw"
        case "missing":
            params = {"last": target["params"]["last"]}
            return {**target, "params": params}, "params.first"
        case "extra":
            return {**target, "params": {**target["params"], "more": jnp.zeros(3)}}, "params.more"
        case "renamed":
            params = {"First": target["params"]["first"], "last": target["params"]["last"]}
            return {**target, "params": params}, "params."

    def change(path: Any, value: Any) -> Any:
        if jax.tree_util.keystr(path, simple=True, separator=".") != leaf:
            return value
        if kind == "shape":
            return jnp.zeros((*value.shape, 1), value.dtype)
        other = np.float16 if value.dtype != np.float16 else np.float32
        return np.zeros(value.shape, other) if rng.integers(2) else jnp.zeros(value.shape, jnp.bfloat16)

    return jax.tree.map_with_path(change, target), leaf
