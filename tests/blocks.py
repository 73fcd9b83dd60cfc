"""Runs the Python blocks of documents, each as a program of its own would: `python blocks.py DOCUMENT ...`.

They share a process, for the sake of time, but neither names nor folder. For each a JSON line is printed: where it is,
and the error that ended it, if any.
"""

import contextlib
import json
import os
import re
import sys
import tempfile
import traceback
import types
from pathlib import Path


def blocks(path):
    """The lines at which Python blocks of a document begin, and their text."""
    text = path.read_text()
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start(1)) + 1, found[1]


def stand_in_for_ray():
    """Ray starts a worker on each host; here it is called."""

    class Trainer:
        def __init__(self, worker, scaling_config):
            self.fit = worker

    names = {"ray.train": {"ScalingConfig": dict}, "ray.train.v2.jax": {"JaxTrainer": Trainer}}
    for name in ("ray", "ray.train", "ray.train.v2", "ray.train.v2.jax"):
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(names.get(name, {}))


def run(path, line, text):
    """The traceback of a block, "" where it ends well."""
    code = compile("\n" * (line - 1) + text, str(path), "exec")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                exec(code, {"__name__": "__main__"})
        except BaseException:  # a block may leave by sys.exit
            return traceback.format_exc()
    return ""


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    stand_in_for_ray()
    for path in map(Path, sys.argv[1:]):
        for line, text in blocks(path):
            print(json.dumps([path.name, line, run(path, line, text)]), flush=True)
