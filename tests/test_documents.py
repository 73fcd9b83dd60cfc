"""What the documents show runs as it is printed; what a wheel holds is enough to train."""

import json
import os
import re
import subprocess
import sys
import zipfile

import blocks
import program
import pytest
from experiments import options

DOCUMENTS = [program.ROOT / "README.md", *sorted((program.ROOT / "docs").glob("*.md"))]
BLOCKS = [(path.name, line) for path in DOCUMENTS for line, _ in blocks.blocks(path)]


@pytest.fixture(scope="module")
def errors():
    arguments = [sys.executable, blocks.__file__, *map(str, DOCUMENTS)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, env=program.environment())
    return {(name, line): error for name, line, error in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: ":".join(map(str, block)))
def test_a_python_block_runs_as_it_is_printed(block, errors):
    assert errors[block] == ""


def test_the_documents_show_python():
    names = {name for name, _ in BLOCKS}
    assert names >= {"README.md", "judge.md", "foreign-models.md", "cloud_tpu.md", "adding-a-rule.md"}


# --- the wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, check=True, cwd=program.ROOT, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        file.extractall(folder / "content")
    return folder / "content"


def test_the_configs_of_a_wheel_are_those_of_the_checkout(wheel):
    for path in (program.ROOT / "configs").iterdir():
        assert (wheel / "mixtrain_jax" / "configs" / path.name).read_bytes() == path.read_bytes()
    assert not (wheel / "configs").exists()


def test_a_wheel_trains_in_an_empty_folder(wheel, tmp_path):
    (points,) = wheel.glob("*.dist-info/entry_points.txt")
    module, function = re.search(r"^mixtrain = (\S+):(\S+)$", points.read_text(), re.MULTILINE).groups()
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); from {module} import {function}; {function}()"
    tiny = {"training.epochs": 1, "model.width": 4, "certify.attack_steps": 1, "certify.attack_restarts": 1}
    tiny |= {"training.points": 1}
    environment = {**program.environment(), "PYTHONPATH": str(wheel)}
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            code,
            "train",
            "digits",
            *options(tiny),
            "--certify.bounds",
            "ibp",
            "--certify.curve-examples",
            "0",
        ],
        **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("digits-")
    assert program.summary(run)["test_examples"] == 500
    assert os.listdir(tmp_path) == ["runs"]
