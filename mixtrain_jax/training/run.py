"""One run from its config to its report."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mixtrain_jax import data, parallel
from mixtrain_jax.checkpoints import Checkpoints
from mixtrain_jax.config import Config
from mixtrain_jax.errors import ConfigError
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.build import prepare
from mixtrain_jax.training.finish import finish
from mixtrain_jax.training.loop import train
from mixtrain_jax.training.rundir import RunDir
from mixtrain_jax.training.signals import Stop


def run(
    config: Config, workdir: Path, display: Display, data_dir: Path | None = None, *, profile: bool = False
) -> dict[str, Any]:
    """Train, certify and report; go on where an earlier run of the same config in the same folder stopped.

    Args:
      config: the experiment.
      workdir: folder of the run, created if needed.
      display: shows what happens.
      data_dir: folder of prepared data sets, as for `data.load`.
      profile: whether to trace some steps first, into the folder `profile` of the run.

    Returns:
      What is written to `summary.json`.

    Raises:
      MixtrainError: one of its kinds, each with the exit code of the command line; the message says what to do.
    """
    folder = RunDir(workdir)
    with contextlib.ExitStack() as held, Stop() as stop:
        parallel.on_process_zero(lambda: held.enter_context(folder.opened(config)))
        refuse_another_config(config)
        summary = parallel.broadcast_from_zero(folder.summary)
        if summary is None:
            setup = parallel.all_or_raise(
                lambda: prepare(config, data.load(config.data.name, data_dir, display.progress))
            )
            checkpoints = parallel.on_process_zero(lambda: held.enter_context(Checkpoints(folder.checkpoints)))
            saved = train(setup, folder, checkpoints, stop, display, profile=profile)
            summary = finish(setup, saved, folder, stop, display)
        else:
            display.note("This run has ended already; choose another --workdir to run it again.")
    display.summary(summary)
    display.note(f"Report: {folder.path / 'report.html'}")
    return summary


def refuse_another_config(config: Config) -> None:
    """Hold all processes to the config of the first.

    Raises:
      ConfigError: (in all processes) where one has another.
    """
    first = parallel.broadcast_from_zero(config.flags)

    def compare() -> None:
        mine = config.flags()
        if differ := [name for name in mine if mine[name] != first[name]]:
            raise ConfigError(f"The processes of this run were given different configs ({', '.join(differ)} differ).")

    parallel.all_or_raise(compare)
