"""The program as its users start it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from compiling import FLAGS

ROOT = Path(__file__).parent.parent
LIMIT = 900  # seconds: a guard against what hangs, generous to a process that gets a small share of one core
_DISTURBING = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "XLA_FLAGS")


def environment(devices=1):
    kept = {name: value for name, value in os.environ.items() if name not in _DISTURBING}
    return {
        **kept,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        # Compiling takes longer than all that runs.
        "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def start(*arguments, cwd=ROOT, devices=1, program=ROOT / "train.py", more=None):
    return subprocess.Popen(
        [sys.executable, str(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(devices) | (more or {}),
        cwd=cwd,
    )


def start_two(*arguments, **options):
    """Two processes that find each other on this machine, with two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    hosts = ["--coordinator", f"localhost:{port}", "--processes", 2, "--process"]
    return [start(*arguments, *hosts, number, devices=2, **options) for number in range(2)]


def run(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
