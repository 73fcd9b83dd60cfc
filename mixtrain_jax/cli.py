"""Command lines: arguments in, exit code out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mixtrain_jax import config as config_lib
from mixtrain_jax.config import Config
from mixtrain_jax.errors import MixtrainError

_EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 usage, 3 not finite, 75 preempted and saved, 130 interrupted."


def train(arguments: Sequence[str], configs: Path) -> int:
    """Parse `[NAME] --field value ...`, run the experiment, and return the exit code.

    Args:
      arguments: the command line after the program's name.
      configs: folder of the experiments.
    """
    try:
        config, workdir, data_dir = parse(list(arguments), configs)
        # Not before the arguments are known to be good: these imports take seconds.
        from mixtrain_jax.report.display import Display
        from mixtrain_jax.training.run import run

        with Display() as display:
            run(config, workdir, display, data_dir)
    except MixtrainError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: list[str], configs: Path) -> tuple[Config, Path, Path | None]:
    """The experiment, its folder, `runs/NAME-DIGEST` unless `--workdir` says otherwise, and `--data-dir`.

    Raises:
      ConfigError: where NAME, a field of its file or a value is wrong.
      SystemExit: with 0 after `--help`, 2 after an error of the command line, which is printed.
    """
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "digits"
    known = ", ".join(config_lib.available(configs))
    defaults = config_lib.load(name, configs)

    def command(
        config: Annotated[Config, tyro.conf.arg(name="")] = defaults,
        workdir: Path | None = None,
        data_dir: Path | None = None,
    ) -> tuple[Config, Path | None, Path | None]:
        """Train a network, and prove how robust it is.

        Args:
          config: The experiment.
          workdir: Folder of the run; the same command goes on where it stopped. By default runs/NAME-DIGEST, the digest
            being that of the config.
          data_dir: Folder of the data sets that TensorFlow Datasets prepared. By default that in the environment
            variable TFDS_DATA_DIR, else ~/tensorflow_datasets.
        """
        return config, workdir, data_dir

    config, workdir, data_dir = tyro.cli(
        command,
        prog=f"{Path(sys.argv[0]).name} [NAME]",
        description=(
            "Train a network, and prove how robust it is.\n\n"
            f"NAME is an experiment in {configs.name}/ ({known}) or a path to a .toml file; 'digits' by default. "
            f"Every field of it can be overridden. {_EXIT_CODES}"
        ),
        args=arguments,
        config=(tyro.conf.FlagConversionOff,),
    )
    return config, workdir or Path("runs") / f"{Path(name).name.removesuffix('.toml')}-{config.digest()}", data_dir
