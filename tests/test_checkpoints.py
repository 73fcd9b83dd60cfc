import asyncio
import gc
import itertools
import json
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixtrain_jax import checkpoints
from mixtrain_jax.checkpoints import Checkpoints, load
from mixtrain_jax.errors import CheckpointError
from mixtrain_jax.fingerprints import fingerprint, manifest


class Moments(NamedTuple):
    count: jax.Array
    mean: dict


class State(NamedTuple):
    step: np.ndarray
    seconds: np.ndarray
    params: dict
    moments: tuple
    nothing: tuple


def state(step, seed=0):
    rng = np.random.default_rng([seed, step])
    weights = {"dense": {"kernel": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32), "bias": jnp.zeros(30)}}
    odd = jnp.asarray([np.nan, np.inf, -0.0, 1e-42, 1 / 3], jnp.float32)
    moments = Moments(jnp.int32(step), jax.tree.map(lambda x: x * 0.5, weights))
    return State(np.int64(step), np.float64(step / 3), {**weights, "odd": odd}, (moments, jnp.int32([1, 2])), ())


def blank():
    return jax.tree.map(lambda x: x * 0, state(0))


def bits(tree):
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    return structure, [(x.shape, str(x.dtype), x.tobytes()) for x in arrays], [isinstance(x, jax.Array) for x in leaves]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine") / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (1, 2, 3):
        save(checkpoints, step, state(step))
    return folder


@pytest.fixture
def three(pristine, folder):
    """A copy of a folder with the checkpoints of steps 1, 2 and 3."""
    shutil.copytree(pristine, folder)
    return folder


def save(checkpoints, step, tree):
    checkpoints.save(step, tree)
    checkpoints.wait()


def restored(folder, target=None):
    notes = []
    return Checkpoints(folder).restore(blank() if target is None else target, notes.append), notes


def files(folder, step):
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def delete(path):
    path.unlink()


DAMAGES = [flip, truncate, zero, delete]


def damage(folder, step):
    flip(max(files(folder, step), key=lambda path: path.stat().st_size))


def test_round_trip_is_bitwise(folder):
    saved = state(7)
    save(Checkpoints(folder), 7, saved)
    found, notes = restored(folder)
    assert bits(found) == bits(saved)
    assert notes == []


def test_the_newest_is_restored(three):
    assert bits(restored(three)[0]) == bits(state(3))


def test_an_empty_folder_restores_nothing(folder):
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest() is None
    assert checkpoints.restore(blank(), pytest.fail) is None


def test_saving_a_step_again_does_nothing(folder):
    checkpoints = Checkpoints(folder)
    save(checkpoints, 2, state(2))
    save(checkpoints, 2, state(2, seed=1))
    assert bits(restored(folder)[0]) == bits(state(2))


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_so_many_are_kept(folder, keep):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in range(1, 6):
        save(checkpoints, step, state(step))
    assert sorted(int(path.name) for path in folder.iterdir()) == list(range(6 - keep, 6))
    assert checkpoints.latest() == 5


def test_a_step_after_a_restart_is_saved_and_counted_with_the_older_ones(three):
    checkpoints = Checkpoints(three)
    save(checkpoints, 4, state(4))
    assert sorted(int(path.name) for path in three.iterdir()) == [2, 3, 4]
    assert bits(restored(three)[0]) == bits(state(4))


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_of_any_file_is_noticed_or_harmless(pristine, tmp_path, how):
    """A file that nothing is read from may be damaged; whatever is restored was saved, bit by bit."""
    fallen_back = []
    for i, path in enumerate(files(pristine, 3)):
        folder = tmp_path / str(i) / "checkpoints"
        shutil.copytree(pristine, folder)
        how(folder / path.relative_to(pristine))
        found, notes = restored(folder)
        if notes:
            fallen_back.append(path)
            assert bits(found) == bits(state(2))
            assert len(notes) == 1
        else:
            assert bits(found) == bits(state(3))
    assert max(files(pristine, 3), key=lambda path: path.stat().st_size) in fallen_back
    assert pristine / "3" / "manifest" / "metadata" in fallen_back


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_falls_back_tells_and_moves_aside(three, how):
    how(max(files(three, 3), key=lambda path: path.stat().st_size))
    checkpoints, notes = Checkpoints(three), []
    assert bits(checkpoints.restore(blank(), notes.append)) == bits(state(2))
    (note,) = notes
    assert note.startswith("checkpoint 3 is damaged (")
    assert note.endswith("going on from step 2")
    moved = three.parent / "damaged" / "3"
    assert str(moved) in note
    assert moved.is_dir()
    assert not (three / "3").exists()
    assert checkpoints.latest() == 2
    save(checkpoints, 3, state(3, seed=1))
    assert bits(checkpoints.restore(blank(), pytest.fail)) == bits(state(3, seed=1))
    assert bits(restored(three)[0]) == bits(state(3, seed=1))


def test_leaves_that_fail_beside_the_first_leave_no_tracebacks(three, monkeypatch, caplog, capfd):
    """Orbax closes its event loop at the first error, whatever else has failed by then or is under way."""
    told = []

    async def fail():
        raise ValueError("a leaf is damaged")

    async def later(loop):
        done = loop.create_future()
        threading.Timer(0.2, lambda: told.append(loop.call_soon_threadsafe(done.set_result, None))).start()
        await done

    def read(path, step):
        loop = asyncio.new_event_loop()
        try:
            tasks = [loop.create_task(each) for each in (fail(), fail(), later(loop))]
            loop.run_until_complete(tasks[0])
        finally:
            loop.close()

    monkeypatch.setattr(checkpoints, "_read", read)
    with pytest.raises(CheckpointError, match="step 3: a leaf is damaged"):
        restored(three)
    gc.collect()
    assert len(told) == 3  # one for each checkpoint, while its loop was open
    assert [record.getMessage() for record in caplog.records] == []
    assert capfd.readouterr().err == ""


def test_leaves_that_are_missing_are_told_once(tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as kept:
        kept.save(1, {"step": np.int64(1), **{f"w{i}": np.full((99, 9), i) for i in range(8)}})
    for path in (folder / "1" / "state").glob("**/d/*"):
        path.unlink()
    with pytest.raises(CheckpointError):
        checkpoints.read(folder, 1)
    gc.collect()
    assert capfd.readouterr().err == ""


def test_every_flipped_bit_of_the_data_is_noticed(pristine, tmp_path):
    largest = max(files(pristine, 3), key=lambda path: path.stat().st_size)
    for i, place in enumerate(np.linspace(0, largest.stat().st_size - 1, 12).astype(int)):
        folder = tmp_path / str(i) / "checkpoints"
        shutil.copytree(pristine, folder)
        path = folder / largest.relative_to(pristine)
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        found, notes = restored(folder)
        assert bits(found) == bits(state(2 if notes else 3))


def test_two_damaged_ones_fall_back_twice(three):
    damage(three, 3)
    damage(three, 2)
    found, notes = restored(three)
    assert bits(found) == bits(state(1))
    assert [note.split(" is damaged")[0] for note in notes] == ["checkpoint 3", "checkpoint 2"]


def test_an_older_damaged_one_is_no_matter(three):
    damage(three, 2)
    found, notes = restored(three)
    assert bits(found) == bits(state(3))
    assert notes == []


def test_a_step_damaged_twice_is_moved_where_the_note_says(three):
    for _ in range(2):
        damage(three, 3)
        checkpoints, notes = Checkpoints(three), []
        checkpoints.restore(blank(), notes.append)
        save(checkpoints, 3, state(3))
    moved = sorted((three.parent / "damaged").iterdir())
    assert len(moved) == 2
    place = notes[0].split("moved to ")[1].split(", going on")[0]
    assert place == str(moved[1])


def test_all_damaged_says_what_to_do(three):
    for step in (1, 2, 3):
        damage(three, step)
    with pytest.raises(
        CheckpointError, match=r"All checkpoints in .* are damaged \(step 3: .*Delete the folder"
    ) as caught:
        restored(three)
    assert caught.value.exit_code == 1
    assert sorted(path.name for path in three.iterdir()) == ["1", "2", "3"]


def test_swapped_steps_are_noticed(three):
    (three / "3").rename(three / "x")
    (three / "2").rename(three / "3")
    (three / "x").rename(three / "2")
    found, notes = restored(three)
    assert bits(found) == bits(state(1))
    assert len(notes) == 2


def test_a_manifest_of_another_step_is_noticed(three):
    shutil.copytree(three / "2" / "manifest", three / "3" / "manifest", dirs_exist_ok=True)
    found, notes = restored(three)
    assert bits(found) == bits(state(2))
    assert "does not match its SHA-256 manifest" in notes[0]


def test_an_empty_step_folder_is_passed_over(three):
    (three / "9").mkdir()
    found, notes = restored(three)
    assert bits(found) == bits(state(3))
    assert len(notes) <= 1


@pytest.mark.parametrize("name", ["9.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-1700000000000"])
def test_what_a_crash_in_mid_save_left_does_not_block(three, name):
    shutil.copytree(three / "3", three / name)
    (three / name / "_CHECKPOINT_METADATA").unlink()
    checkpoints = Checkpoints(three)
    assert checkpoints.latest() == 3
    assert bits(checkpoints.restore(blank(), pytest.fail)) == bits(state(3))
    save(checkpoints, 9, state(9))
    assert bits(restored(three)[0]) == bits(state(9))


@pytest.mark.parametrize("wait", [True, False])
def test_a_kill_at_any_moment_of_saving_leaves_whole_checkpoints(tmp_path, wait):
    """What is told as saved is there; what is told as under way comes after one that is."""
    code = textwrap.dedent(
        f"""
        import sys, itertools
        from pathlib import Path
        import numpy as np
        from mixtrain_jax.checkpoints import Checkpoints
        checkpoints = Checkpoints(Path(sys.argv[1]))
        for step in itertools.count(1):
            checkpoints.save(step, {{"step": np.int64(step), "x": np.full((200, 100), step, np.float32)}})
            {wait} and checkpoints.wait()
            print(step, flush=True)
        """
    )
    target = {"step": np.int64(0), "x": np.zeros((200, 100), np.float32)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for line in itertools.islice(process.stdout, 5):
        told = int(line)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(np.random.default_rng(wait).uniform(0, 0.1))
    process.kill()
    told = max([told, *map(int, process.stdout.read().split())])
    process.wait()
    process.stdout.close()
    found, notes = restored(tmp_path, target)
    assert notes == []
    assert found["step"] in ((told, told + 1) if wait else (told - 1, told, told + 1))
    assert (found["x"] == found["step"]).all()


def test_what_is_saved_is_what_was_there_at_the_call(folder, monkeypatch):
    """A save is held back until its arrays have changed, NumPy ones in place, those of jax by donation."""
    checkpoints, write, go = Checkpoints(folder), Checkpoints._write, threading.Event()
    monkeypatch.setattr(Checkpoints, "_write", lambda *args: (go.wait(60), write(*args)))
    tree = {"step": np.int64(5), "here": np.arange(1000.0), "there": jnp.arange(1000, dtype=jnp.float32)}
    checkpoints.save(5, tree)
    tree["here"] *= -1
    changed = jax.jit(lambda x: -x - 1, donate_argnums=0)(tree["there"]).block_until_ready()
    go.set()
    checkpoints.wait()
    target = {"step": np.int64(0), "here": np.zeros(1000), "there": jnp.zeros(1000)}
    found, _ = restored(folder, target)
    np.testing.assert_array_equal(found["here"], np.arange(1000))
    np.testing.assert_array_equal(found["there"], np.arange(1000))
    np.testing.assert_array_equal(changed, -np.arange(1000) - 1)


def test_saving_does_not_wait_but_for_the_save_before(folder, monkeypatch):
    checkpoints, write, go, order = Checkpoints(folder), Checkpoints._write, threading.Event(), []

    def slow(*args):
        order.append(f"{args[1]} begins")
        go.wait(60)
        write(*args)
        order.append(f"{args[1]} is whole")

    monkeypatch.setattr(Checkpoints, "_write", slow)
    checkpoints.save(1, state(1))
    order.append("trained on")
    go.set()
    checkpoints.save(2, state(2))
    assert checkpoints.latest() == 2
    assert order.index("trained on") < order.index("1 is whole") < order.index("2 begins")
    with checkpoints:
        checkpoints.save(3, state(3))
    assert order[-1] == "3 is whole"
    assert bits(restored(folder)[0]) == bits(state(3))


@pytest.mark.parametrize("then", ["save", "wait", "restore"])
def test_an_error_of_a_save_comes_with_the_next_call_and_only_once(three, monkeypatch, then):
    checkpoints = Checkpoints(three)
    whole = checkpoints._manager.save
    monkeypatch.setattr(checkpoints._manager, "save", lambda *_, **__: 1 / 0)
    checkpoints.save(4, state(4))
    assert checkpoints.latest() == 3
    monkeypatch.setattr(checkpoints._manager, "save", whole)
    calls = {
        "save": lambda: checkpoints.save(5, state(5)),
        "wait": checkpoints.wait,
        "restore": lambda: checkpoints.restore(blank(), pytest.fail),
    }
    with pytest.raises(CheckpointError, match=r"of step 4 in .* \(step 3 is whole\).*Cause: division by zero"):
        calls[then]()
    save(checkpoints, 6, state(6))
    assert bits(restored(three)[0]) == bits(state(6))


def test_a_folder_that_is_removed_is_made_again(three):
    checkpoints = Checkpoints(three)
    shutil.rmtree(three.parent)
    save(checkpoints, 4, state(4))
    assert bits(restored(three)[0]) == bits(state(4))


def test_a_leaf_of_another_shape_is_named(three):
    target = blank()._replace(params={**blank().params, "odd": jnp.zeros(6)})
    with pytest.raises(
        CheckpointError, match=r"params\.odd is float32\[5\], expected float32\[6\]; it belongs to another"
    ):
        restored(three, target)


def test_a_leaf_of_another_dtype_is_named(three):
    with pytest.raises(CheckpointError, match=r"the leaf seconds is float64\[\], expected float32\[\]"):
        restored(three, blank()._replace(seconds=np.float32(0)))


def test_a_missing_leaf_is_named(three):
    target = blank()._replace(params={**blank().params, "more": jnp.zeros(2)})
    with pytest.raises(CheckpointError, match=r"step 3 has no leaf params\.more; it belongs to another"):
        restored(three, target)


def test_an_extra_leaf_is_named(three):
    params = {name: leaf for name, leaf in blank().params.items() if name != "odd"}
    with pytest.raises(CheckpointError, match=r"step 3 has a leaf params\.odd that is not expected"):
        restored(three, blank()._replace(params=params))


def test_a_part_is_restored_where_it_is_asked_for(three):
    target = blank()._replace(moments=None, seconds=None)
    found = load(three, target, pytest.fail)
    assert bits(found) == bits(state(3)._replace(moments=None, seconds=None))
    with pytest.raises(CheckpointError, match=r"has a leaf moments\.\S+ that is not expected"):
        restored(three, target)
    damage(three, 3)  # what is not asked for must be whole too
    notes = []
    before = sorted(three.iterdir())
    assert load(three, target, notes.append).step == 2
    assert len(notes) == 1
    assert sorted(three.iterdir()) == before


def test_a_checkpoint_of_another_network_is_left_where_it_is(three):
    with pytest.raises(CheckpointError):
        restored(three, blank()._replace(seconds=np.float32(0)))
    assert bits(restored(three)[0]) == bits(state(3))


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="Cannot keep checkpoints in"):
        Checkpoints(tmp_path / "checkpoints")


def test_a_full_disk_is_an_error_and_the_earlier_checkpoint_stays(three):
    """A limit on the size of files stands for the full disk: writes fail half-way."""
    code = textwrap.dedent(
        f"""
        import sys, resource
        from pathlib import Path
        import numpy as np
        from mixtrain_jax.checkpoints import Checkpoints
        from mixtrain_jax.errors import CheckpointError
        noise = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)
        tree = {{"step": np.int64(4), **{{f"noise {{i}}": noise + i for i in range(8)}}}}
        checkpoints = Checkpoints(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, {resource.RLIM_INFINITY}))
        checkpoints.save(4, tree)
        try:
            checkpoints.wait()
        except CheckpointError as error:
            print(error)
        print(checkpoints.latest())
        resource.setrlimit(resource.RLIMIT_FSIZE, ({resource.RLIM_INFINITY}, {resource.RLIM_INFINITY}))
        if len(sys.argv) > 2:
            checkpoints.save(4, tree)
            checkpoints.wait()
            print(checkpoints.latest())
        """
    )
    command = [sys.executable, "-c", code, str(three)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    message, latest = done.stdout.splitlines()
    assert message.startswith(f"Could not save the checkpoint of step 4 in {three} (step 3 is whole). Free some space")
    assert latest == "3"
    assert bits(restored(three)[0]) == bits(state(3))
    done = subprocess.run([*command, "again"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "4"
    like = {"step": np.int64(0), **{f"noise {i}": np.zeros((300, 300), np.float32) for i in range(8)}}
    assert int(restored(three, like)[0]["step"]) == 4


def test_manifest_tells_shape_dtype_and_bytes_apart():
    base = np.arange(6, dtype=np.int32)
    others = [base.reshape(2, 3), base.view(np.float32), base + 1, base[::-1]]
    assert all(manifest({"a": other}) != manifest({"a": base}) for other in others)
    assert manifest({"a": base.copy()}) == manifest({"a": base})
    assert json.loads(json.dumps(manifest({"a": base}))) == manifest({"a": base})


def test_fingerprint_depends_on_every_bit_and_name():
    assert fingerprint(state(1)) == fingerprint(state(1))
    negative_zero = state(1)._replace(seconds=np.float64(-0.0))
    assert fingerprint(negative_zero) != fingerprint(state(1)._replace(seconds=np.float64(0.0)))
    assert fingerprint({"a": np.ones(2)}) != fingerprint({"b": np.ones(2)})
