"""The program as its users start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from compiling import FLAGS

ROOT = Path(__file__).parent.parent
_DISTURBING = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "XLA_FLAGS")


def environment():
    kept = {name: value for name, value in os.environ.items() if name not in _DISTURBING}
    return {
        **kept,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": FLAGS,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def start(*arguments, cwd=ROOT):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=cwd,
    )


def run(*arguments, cwd=ROOT):
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
