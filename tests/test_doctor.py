import contextlib
import fcntl
import io
import json
import os
import shutil
import socket
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mixtrain_jax import __version__, cli, doctor
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.config import Config
from mixtrain_jax.doctor import examine, show
from mixtrain_jax.fingerprints import fingerprint, sha256_of_files

# Where a file is missing, tensorstore answers some reads after Orbax has closed the loop that they were asked from.

HOST = socket.gethostname()
IMAGES = 20
FILES = ("config.json", ".lock", "metrics.jsonl", "summary.json", "report.html", "certificates.npz", "postmortem.json")


def params(step):
    return {"dense": {"kernel": np.full((4, 3), step / 7, np.float32), "bias": np.zeros(3, np.float32)}}


def saved(step, best=0):
    tree = {"step": np.int64(step), "seconds": np.float64(step), "state": {"params": params(step)}}
    return tree | ({"best": {"step": np.int64(best), "params": params(best)}} if best else {})


def columns(clean=15, attacked=12, verified=9, by="ibp", n=IMAGES):
    """Columns that agree with each other: of the first images so many are clean, unbroken and proved."""
    number = np.arange(n)
    return {
        "labels": np.zeros(n, np.int32),
        "predictions": np.where(number < clean, 0, 1),
        "clean": number < clean,
        "attacked": number < attacked,
        "verified": number < verified,
        "margin": np.where(number < verified, 0.5, -0.5).astype(np.float32),
        "proved_by": np.where(number < verified, by, ""),
    }


def packed(arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def made(folder, steps=(10, 20), best=0):
    """The folder of a run that has ended; checkpoints of few and small leaves."""
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in steps:
            checkpoints.save(step, saved(step, best))
    summary = {
        **{"clean_accuracy": 15 / IMAGES, "attacked_accuracy": 12 / IMAGES, "verified_accuracy": 9 / IMAGES},
        **{"test_examples": IMAGES, "verified_by": {"ibp": 9}, "step": best or steps[-1]},
        **{"params_sha256": fingerprint(params(best or steps[-1])), "versions": {"mixtrain_jax": __version__}},
    }
    (folder / "config.json").write_text(json.dumps(Config().to_json()))
    (folder / ".lock").write_text(f"process 1 on {HOST}\n")
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (5, 10, 15, 20)))
    (folder / "report.html").write_text("<!doctype html>\n<html></html>\n")
    (folder / "certificates.npz").write_bytes(packed(columns()))
    summary["files_sha256"] = sha256_of_files({"certificates.npz": (folder / "certificates.npz").read_bytes()})
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine") / "run"
    made(folder)
    return folder


@pytest.fixture
def run(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def contents(folder):
    """All that there is, with its bytes where it has some."""
    paths = sorted(Path(folder).rglob("*"))
    return [(path, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in paths]


def told(folder, verdict):
    """Subjects and words of a verdict; looking twice tells the same, and leaves the folder as it was."""
    before = contents(folder)
    findings = examine(folder)
    assert contents(folder) == before
    return {subject: words for each, subject, words in findings if each == verdict}


def edited(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip_largest(folder):
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    for i in range(0, len(content), 16):
        content[i] ^= 1
    path.write_bytes(content)


def test_of_a_sound_run_everything_is_told_and_nothing_is_wrong(run, capsys):
    assert told(run, "fault") == told(run, "note") == {}
    found = told(run, "ok")
    assert found.keys() == {
        *("config.json", ".lock", "checkpoint 10", "checkpoint 20", "metrics.jsonl", "summary.json", "report.html"),
        *("certificates.npz", "certificates.npz, SHA-256", "disk"),
    }
    assert found["metrics.jsonl"] == "4 rows, to step 20."
    assert found["summary.json"] == "agrees with checkpoint 20 on the parameters (step 20, SHA-256)."
    assert found["certificates.npz"] == "of 20 images; agrees with summary.json."
    assert found["checkpoint 20"].startswith("whole; ")
    assert cli.main(["doctor", str(run)]) == 0
    printed = capsys.readouterr().out
    assert all(subject in printed for subject in found)


def test_the_best_state_is_the_one_that_is_compared(tmp_path):
    made(tmp_path, steps=(8,), best=4)
    assert told(tmp_path, "fault") == {}
    assert "(step 4, SHA-256)" in told(tmp_path, "ok")["summary.json"]


def test_what_is_no_run_is_a_fault(tmp_path, capsys):
    assert "is no folder" in told(tmp_path / "nothing", "fault")["folder"]
    assert cli.main(["doctor", str(tmp_path / "nothing")]) == 1
    assert "is no folder" in capsys.readouterr().out
    assert "this is no folder of a run" in told(tmp_path, "fault")["config.json"]


def test_a_run_in_progress_has_notes_but_no_fault(run):
    for name in ("summary.json", "report.html", "certificates.npz"):
        (run / name).unlink()
    shutil.copytree(run / "checkpoints" / "20", run / "checkpoints" / "30.orbax-checkpoint-tmp")
    (run / ".summary.json.tmp").write_text("{")
    with open(run / ".lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"process {os.getpid()} on {HOST}\n")
        lock.flush()
        found = told(run, "note")
        assert told(run, "fault") == {}
    assert f"held by process {os.getpid()} on {HOST}: a run is in progress" in found[".lock"]
    assert "the run has not ended" in found["summary.json"]
    assert "a crash left it" in found["checkpoints/30.orbax-checkpoint-tmp"]
    assert "a crash left it" in found[".summary.json.tmp"]


@pytest.mark.parametrize(
    ("holder", "held", "verdict", "words"),
    [
        ("process 1 on HOST", False, "ok", "free; what it says of process 1 on HOST is stale"),
        ("process 1 on elsewhere", False, "note", "process 1 on elsewhere held it last. Make sure"),
        ("process 1 on elsewhere", True, "note", "held by process 1 on elsewhere"),
        ("process GONE on HOST", True, "note", "held, but process GONE on HOST is gone"),
        ("", True, "note", "held by an unknown process"),
        ("process 99999999999999 on HOST", True, "note", "held by process 9999"),
    ],
)
def test_locks(run, holder, held, verdict, words):
    ended = subprocess.Popen(["true"])
    ended.wait()
    holder, words = (text.replace("HOST", HOST).replace("GONE", str(ended.pid)) for text in (holder, words))
    (run / ".lock").write_text(f"{holder}\n")
    with open(run / ".lock") as lock:
        if held:
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert words in told(run, verdict)[".lock"]


def test_a_damaged_checkpoint_is_told_with_the_one_that_is_whole(run):
    flip_largest(run / "checkpoints" / "20")
    (run / "damaged" / "15").mkdir(parents=True)
    found = told(run, "fault")
    assert found["checkpoint 20"].startswith("damaged (")
    assert "Runs pass over it; 10 is whole." in found["checkpoint 20"]
    assert "is of other parameters (step 20) than checkpoint 10 chooses (step 10)" in found["summary.json"]
    assert "holds 15" in told(run, "note")["damaged"]
    flip_largest(run / "checkpoints" / "10")
    assert "None is whole: delete the folder" in told(run, "fault")["checkpoint 10"]
    assert "cannot be checked" in told(run, "note")["summary.json"]


def test_a_leaf_that_differs_from_the_manifest_is_named(run):
    path = run / "checkpoints" / "20" / "manifest" / "metadata"
    manifest = json.loads(path.read_text())
    manifest["state.params.dense.bias"]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert "the leaf state.params.dense.bias does not match" in told(run, "fault")["checkpoint 20"]


def test_a_checkpoint_that_is_deleted_meanwhile_is_no_fault(run, monkeypatch):
    def read(folder, step):
        shutil.rmtree(folder / str(step))
        raise FileNotFoundError

    monkeypatch.setattr(doctor, "read", read)
    assert not any("checkpoint " in finding.subject for finding in examine(run))


def test_parameters_other_than_the_certified_ones_are_a_fault(run):
    edited(run / "summary.json", params_sha256="0" * 64)
    assert "is of other parameters" in told(run, "fault")["summary.json"]


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        ('{"step": 1}\n{"step": 2', "note", "its last line was cut short"),
        ('{"step": 1}\n{"st\n[]\n3\n{"a": 1}\n{"step": "x"}\n', "fault", "cannot be read in lines 2, 3, 4, 5, 6;"),
        ('{"step": 1}\n{\n{"step": 2}\n', "fault", "cannot be read in line 2;"),
        ('{"step": 1}\n{"step": 1}\n', "fault", "steps do not rise in line 2"),
        ('{"step": 5}\n{"step": 6}\n{"step": 3}\n{"step": 4}\n', "fault", "steps do not rise in line 3"),
        ("", "note", "no row yet"),
    ],
)
def test_rows_of_metrics(run, text, verdict, words):
    (run / "metrics.jsonl").write_text(text)
    assert words in told(run, verdict)["metrics.jsonl"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"verified": 10}, "verified"),
        ({"attacked": 11}, "attacked"),
        ({"clean": 14}, "clean"),
        ({"by": "crown"}, "verified_by"),
        ({"n": IMAGES + 1}, "test_examples"),
    ],
)
def test_certificates_that_disagree_with_the_summary_are_a_fault(run, changes, word):
    (run / "certificates.npz").write_bytes(packed(columns(**changes)))
    words = told(run, "fault")["certificates.npz"]
    assert "disagrees with summary.json on" in words
    assert word in words


def flipped(name, places, changed=lambda x: ~x):
    arrays = columns()
    arrays[name][places] = changed(arrays[name][places])
    return arrays


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (flipped("verified", [8, 9]), "2 images are verified without a method, or not verified in spite of one"),
        (flipped("verified", [8, 9]), "2 images are verified without a margin above 0, or not verified above it"),
        (flipped("verified", [16]), "1 images are verified but broken by the attack"),
        (flipped("attacked", [11, 16]), "1 images are unbroken but misclassified"),
        (flipped("clean", [10, 17]), "2 images are clean with another prediction, or not clean with the label"),
        (flipped("margin", [3], lambda x: -x), "1 images are verified without a margin above 0"),
        (flipped("margin", [3], lambda x: x * np.nan), "1 images are verified without a margin above 0"),
        (flipped("predictions", [3, 4], lambda x: x + 1), "2 images are clean with another prediction"),
        (flipped("proved_by", [12], lambda x: "ibp"), "1 images are verified without a method, or not verified"),
        ({**columns(), "labels": np.zeros(IMAGES + 1)}, "its columns are not of one length"),
        ({**columns(), "verified": np.zeros((IMAGES, 1))}, "its columns are not of one length"),
    ],
)
def test_columns_that_contradict_each_other_are_a_fault(run, arrays, words):
    """Whatever the counts are, and the hash."""
    (run / "certificates.npz").write_bytes(packed(arrays))
    edited(run / "summary.json", files_sha256=sha256_of_files({"certificates.npz": packed(arrays)}))
    assert words in told(run, "fault")["certificates.npz"]


def test_twenty_verdicts_that_are_flipped_with_all_that_depends_on_them_are_a_fault(run):
    """Every column agrees and so does every count, but it is not the file that the run wrote."""
    arrays = {name: column[::-1].copy() for name, column in columns().items()}
    (run / "certificates.npz").write_bytes(packed(arrays))
    assert "is not that of the file that was written" in told(run, "fault")["certificates.npz, SHA-256"]


def test_of_a_run_of_an_earlier_version_it_is_told_what_is_not_covered(run):
    summary = json.loads((run / "summary.json").read_text())
    del summary["files_sha256"]
    (run / "summary.json").write_text(json.dumps(summary))
    assert told(run, "fault") == {}
    assert "changes that leave the counts alone cannot be seen" in told(run, "note")["certificates.npz, SHA-256"]
    assert "agrees with summary.json" in told(run, "ok")["certificates.npz"]
    older = {name: column for name, column in columns().items() if name not in ("margin", "predictions")}
    (run / "certificates.npz").write_bytes(packed(older))
    assert told(run, "fault") == {}
    notes = [words for verdict, name, words in examine(run) if (verdict, name) == ("note", "certificates.npz")]
    assert "of an earlier version, without predictions, margin" in notes[0]
    del older["proved_by"]
    (run / "certificates.npz").write_bytes(packed(older))
    assert "lacks proved_by" in told(run, "fault")["certificates.npz"]


def test_a_judgement_is_examined_too(tmp_path):
    files = {"adversarial.npz": b"points", "certificates.jsonl": "{}"}
    record = {"clean_accuracy": 0.9, "attacked_accuracy": 0.8, "verified_accuracy": 0.7}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "judgement.json").write_text(json.dumps({**record, "files_sha256": sha256_of_files(files)}))
    assert told(tmp_path, "fault") == told(tmp_path, "note") == {}
    assert told(tmp_path, "ok").keys() == {"judgement.json", *(f"{name}, SHA-256" for name in files)}
    (tmp_path / "adversarial.npz").write_bytes(b"pointz")
    (tmp_path / "certificates.jsonl").unlink()
    found = told(tmp_path, "fault")
    assert found["adversarial.npz, SHA-256"] == "is not that of the file that was written. Judge again."
    assert found["certificates.jsonl, SHA-256"] == "of a file that is missing. Judge again."
    (tmp_path / "judgement.json").write_text(json.dumps(record))
    assert "there is none" in told(tmp_path, "note")["adversarial.npz, SHA-256"]
    edited(tmp_path / "judgement.json", verified_accuracy=0.85)
    assert "contradicts itself" in told(tmp_path, "fault")["judgement.json"]
    (tmp_path / "judgement.json").write_text("[")
    assert "is no JSON object" in told(tmp_path, "fault")["judgement.json"]


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(run, monkeypatch):
    monkeypatch.setattr(doctor, "_LARGEST", 10**6)
    with zipfile.ZipFile(run / "certificates.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("labels.npy", bytes(10**7))
    assert "unpacks to more than 1.0 MB" in told(run, "fault")["certificates.npz"]
    (run / "metrics.jsonl").write_bytes(bytes(10**6 + 1))
    assert "is larger than 1.0 MB" in told(run, "fault")["metrics.jsonl"]


def test_certificates_with_a_damaged_header_are_a_fault(run):
    path = run / "certificates.npz"
    buffer = io.BytesIO()
    with np.load(path) as arrays:
        np.savez(buffer, **arrays)
    header = b"'shape': (%d,)" % IMAGES
    assert header in buffer.getvalue()
    path.write_bytes(buffer.getvalue())
    edited(run / "summary.json", files_sha256=sha256_of_files({path.name: buffer.getvalue()}))
    assert "certificates.npz" in told(run, "ok")
    path.write_bytes(buffer.getvalue().replace(header, b"'shape': (9,) "))
    assert "does not match its checksum" in told(run, "fault")["certificates.npz"]


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "\0"], ids=["cut", "list", "deep", "nul"])
def test_a_damaged_summary_is_told_once(run, content):
    (run / "summary.json").write_text(content)
    words = "is no JSON object. Delete it and run the same command again to certify anew."
    assert told(run, "fault") == {"summary.json": words}
    assert told(run, "ok")["certificates.npz"] == "whole; of 20 images."


def test_a_curve_of_odd_columns_is_a_fault(run):
    curve = {key: [0.0, 0.5] for key in ("eps", "clean", "attacked", "verified")}
    (run / "curve.json").write_text(json.dumps({**curve, "radius": [0.1]}))
    assert told(run, "ok")["curve.json"] == "accuracies at 2 radii."
    (run / "curve.json").write_text(json.dumps({**curve, "clean": [0.0], "radius": [0.1]}))
    assert "its columns differ in length" in told(run, "fault")["curve.json"]
    (run / "curve.json").write_text("{")
    assert "is damaged" in told(run, "fault")["curve.json"]


@pytest.mark.parametrize("name", ["report.html", "certificates.npz"])
def test_an_ended_run_without_its_results_is_a_fault(run, name):
    (run / name).unlink()
    assert "is missing, though the run has ended" in told(run, "fault")[name]


def test_a_config_of_another_version_is_told(run):
    edited(run / "config.json", training={"bad_steps": -1})
    assert "training.bad_steps must be a number" in told(run, "fault")["config.json"]
    config = Config().to_json()
    del config["training"]["bad_steps"]
    (run / "config.json").write_text(json.dumps(config))
    assert "defaults are taken for training.bad_steps" in told(run, "note")["config.json"]
    (run / "config.json").write_text(json.dumps({**config, "novel": 1}))
    assert "unknown field 'novel'" in told(run, "fault")["config.json"]


def test_a_post_mortem_is_a_fault_until_a_later_attempt_has_come_further(run):
    (run / "postmortem.json").write_text(json.dumps({"step": 25, "skipped_in_a_row": 6, "try": "Lower it."}))
    assert told(run, "fault") == {}
    assert "A later attempt has come further" in told(run, "note")["postmortem.json"]
    for name in ("summary.json", "report.html", "certificates.npz"):
        (run / name).unlink()
    words = told(run, "fault")["postmortem.json"]
    assert words == "training ended at step 25, not finite 6 times in a row. Lower it."
    edited(run / "postmortem.json", step=15)
    assert told(run, "fault") == {}


def test_too_little_space_is_a_fault_while_the_run_goes_on(run, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "1.0 KB free; a checkpoint takes" in told(run, "note")["disk"]
    (run / "summary.json").unlink()
    assert "Free some space" in told(run, "fault")["disk"]


def garbage(path, kind, content):
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    match kind:
        case "bytes":
            path.write_bytes(content)
        case "folder":
            (path / "within").mkdir(parents=True)
        case "loop":
            path.symlink_to(path.name)
        case "device":
            path.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(path)
        case "deep":
            path.write_bytes(b"[" * 100_000)


KINDS = st.sampled_from(["bytes", "folder", "loop", "device", "pipe", "deep", "missing", "as it is"])
NAMES = st.sampled_from((*FILES, "checkpoints", "checkpoints/20", "checkpoints/20/manifest/metadata", "damaged"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["step", "try", "a"]), inner),
    max_leaves=5,
)
CONTENTS = st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode())


@settings(max_examples=40)
@given(st.dictionaries(NAMES, st.tuples(KINDS, CONTENTS), max_size=5), st.binary(min_size=1, max_size=8))
def test_garbage_is_told_and_never_raises(pristine, tmp_path_factory, places, odd):
    folder = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("garbage") / "run"))
    for name, (kind, content) in places.items():
        if (folder / name).parent.is_dir() and kind != "as it is":
            garbage(folder / name, kind, content)
    with contextlib.suppress(OSError, ValueError):  # not every name can be one
        open(os.path.join(os.fsencode(folder), odd), "wb").close()
    before = sorted(map(str, folder.rglob("*")))
    findings = examine(folder)
    assert sorted(map(str, folder.rglob("*"))) == before
    assert {finding.verdict for finding in findings} <= {"ok", "note", "fault"}
    bad = {name for name, (kind, _) in places.items() if kind in ("folder", "loop", "device", "pipe", "deep")}
    faults = {finding.subject for finding in findings if finding.verdict == "fault"}
    assert bad & {"config.json", "metrics.jsonl", "report.html", "certificates.npz", "postmortem.json"} <= faults
    if bad & {"checkpoints/20", "checkpoints/20/manifest/metadata"} and "checkpoints" not in places:
        assert "checkpoint 20" in faults
    console = Console(file=io.StringIO(), width=20)
    show(console, folder, findings)
    console.file.getvalue().encode()


@pytest.mark.parametrize(
    "numbers", [{"clean_accuracy": "x"}, {"versions": 3}, {"verified_by": []}, {"test_examples": []}]
)
def test_a_summary_of_odd_values_is_a_fault(run, numbers):
    edited(run / "summary.json", **numbers)
    assert told(run, "fault")
