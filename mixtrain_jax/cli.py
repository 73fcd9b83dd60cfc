"""Command lines: arguments in, exit code out."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mixtrain_jax import __version__, flat, schema
from mixtrain_jax import config as config_lib
from mixtrain_jax.bounds import BoundsError
from mixtrain_jax.bounds.methods import MethodName
from mixtrain_jax.config import CHOICES, Config
from mixtrain_jax.errors import ConfigError, MixtrainError

Hosts = tuple[str | None, int | None, int | None]  # coordinator, processes, process
_USAGE = """usage: mixtrain COMMAND ...

Neural networks whose robustness is proved.

  train                train a network, and prove how robust it is
  judge                robust accuracy of any model, from both sides
  verify-certificate   recompute what a file of certificates says
  verify               answer a query in VNN-LIB: sat, unsat, or why not
  supports             what of VNN-LIB and ONNX is supported, or whether a file is
  report               draw the report of a finished run anew
  doctor               what is wrong with the folder of a run, and what to do

mixtrain COMMAND --help explains a command."""
_EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 usage, 3 not finite, 75 preempted and saved, 130 interrupted."


def main(arguments: Sequence[str]) -> int:
    """The `mixtrain` command: hand the arguments to the command that comes first among them; the exit code."""
    name, *rest = list(arguments) or ["--help"]
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "train": train,
        "judge": judge,
        "verify-certificate": verify_certificate,
        "verify": verify,
        "supports": supports,
        "report": report,
        "doctor": doctor,
    }
    if name in commands:
        return commands[name](rest)
    if name == "--version":
        print(f"mixtrain_jax {__version__}")
        return 0
    if name == "--name":
        print("mixtrain_jax")
        return 0
    if name in ("-h", "--help"):
        print(_USAGE)
        return 0
    close = difflib.get_close_matches(name, commands, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    print(f"Unknown command '{name}'.{hint}\n\n{_USAGE}", file=sys.stderr)
    return 2


def run() -> None:
    """The `mixtrain` command as a program."""
    sys.exit(main(sys.argv[1:]))


def train(arguments: Sequence[str], configs: Path = config_lib.FOLDER) -> int:
    """Parse `[NAME] --field value ...`, run the experiment, and return the exit code.

    Args:
      arguments: the command line after the program's name.
      configs: folder of the experiments; by default those of the package.
    """

    def act() -> int:
        config, workdir, data_dir, hosts, profile = parse(list(arguments), configs)
        # Not before the arguments are known to be good: these imports take seconds.
        from mixtrain_jax import parallel
        from mixtrain_jax.compilation import keep_compiled
        from mixtrain_jax.report.display import Display
        from mixtrain_jax.training.run import run

        first = parallel.initialize(*hosts)
        keep_compiled()
        with Display(quiet=not first) as display:
            run(config, workdir, display, data_dir, profile=profile)
        return 0

    return _guarded(act)


def judge(arguments: Sequence[str]) -> int:
    """Parse `MODEL --option value ...`, judge the model, and return the exit code."""

    def command(
        model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
        data: str | None = None,
        eps: float | None = None,
        norm: Literal["linf", "l2"] | None = None,
        examples: int = 1000,
        attacks: Literal["customary", "quick", "strong"] = "strong",
        certify: tuple[MethodName, ...] = ("ibp", "symbolic", "crown", "alpha_crown"),
        skip_proved: bool = False,
        complete: float | None = None,
        curve_examples: int = 100,
        batch_size: int = 128,
        seed: int = 0,
        out: Path | None = None,
        data_dir: Path | None = None,
        params: Path | None = None,
        per_example: bool = False,
        output: str | None = None,
    ) -> int:
        """Robust accuracy of any model, from both sides: what is proved, and what withstands the strongest attacks.

        Args:
          model: A run folder, FILE.onnx, or package.module:attribute, which runs the code of that module.
          data: Data set whose test images are used; by default that of the run.
          eps: Radius in pixel units; by default that of the run.
          norm: linf, the largest change of a pixel, or l2, the Euclidean length of all changes; by default that of the
            run, else linf.
          examples: How many of the first test images; 0 for all.
          attacks: customary, PGD-20 alone; quick, the strong ones with short budgets; strong, PGD-20, the standard
            ensemble with its published budgets, and the interval attack.
          certify: Bounds, cheapest first, each on what is still open.
          skip_proved: Whether the attacks after PGD-20 skip what the first bound proves: the same numbers, many times
            faster for a network that is mostly proved, but fewer proofs that were held against an attack.
          complete: Seconds of branch and bound for each image that is still neither proved nor broken then.
          curve_examples: Of how many of the first images the accuracies are measured over a range of radii.
          batch_size: Images on the device at a time.
          seed: Of the attacks.
          out: Folder of the report; by default judgements/NAME-NORM-EPS.
          data_dir: Folder of the data sets that TensorFlow Datasets prepared. By default that in the environment
            variable TFDS_DATA_DIR, else ~/tensorflow_datasets.
          params: File of the parameters of an imported model, .npz or .msgpack.
          per_example: Whether an imported model takes one image, not a batch.
          output: Name of the output that holds the logits, where an ONNX file has several.
        """
        from mixtrain_jax import judging  # takes seconds
        from mixtrain_jax.compilation import keep_compiled
        from mixtrain_jax.report.display import Display

        keep_compiled()
        source = judging.Source(model, data, data_dir, params, per_example, output)
        with Display() as display:
            judging.judge(
                source,
                display,
                eps=eps,
                norm=norm,
                examples=examples,
                attacks=attacks,
                certify=certify,
                skip_proved=skip_proved,
                complete=complete,
                curve_examples=curve_examples,
                batch_size=batch_size,
                seed=seed,
                out=out,
            )
        return 0

    return _guarded(lambda: _cli(command, "mixtrain judge", arguments))


def verify_certificate(arguments: Sequence[str]) -> int:
    """Parse `FILE --model MODEL ...`, recompute the certificates, and return the exit code."""

    def command(
        file: Annotated[Path, tyro.conf.Positional],
        model: str,
        data: str | None = None,
        eps: float | None = None,
        examples: int = 0,
        data_dir: Path | None = None,
        params: Path | None = None,
        per_example: bool = False,
        output: str | None = None,
    ) -> int:
        """Recompute certificates in float64, by code that shares nothing with what made them.

        Nothing that the file says is believed: images, labels and domain are those of the data set, and the radius is
        that of the command. Exit code 0 where every certificate holds, 1 where one does not.

        Args:
          file: The certificates.
          model: The model they are of, as for judge.
          data: Data set of the images; by default that of the run.
          eps: Radius in pixel units that the certificates should prove; by default that of the run. Those of a smaller
            radius are rejected, those of a larger one prove it.
          examples: Of how many of the first test images; 0 for all. The verified accuracy is that of these.
          data_dir: As for judge.
          params: As for judge.
          per_example: As for judge.
          output: As for judge.
        """
        from mixtrain_jax import judging  # takes seconds
        from mixtrain_jax.report.display import Display

        with Display() as display:
            source = judging.Source(model, data, data_dir, params, per_example, output)
            return 0 if judging.verify(file, source, display, eps=eps, examples=examples) else 1

    return _guarded(lambda: _cli(command, "mixtrain verify-certificate", arguments))


def verify(arguments: Sequence[str]) -> int:
    """Parse `QUERY --network NAME=FILE ...`, answer the query or a file of them, and return the exit code."""

    def command(
        files: Annotated[tuple[Path, ...], tyro.conf.Positional],
        network: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
        timeout: float | None = None,
        batch: Path | None = None,
        results: Path | None = None,
        memory: int | None = None,
        seed: int = 0,
    ) -> int:
        """Is there an input, within the bounds of a query, for which the query's assertions hold?

        The first line of the output is sat, unsat, timed-out or unknown; an assignment follows after sat. Why a query
        stays open is told on standard error.

        Args:
          files: The query, QUERY.vnnlib, in VNN-LIB 1.0 or 2.0, packed by gzip or not. Or NETWORK.onnx, then the query.
          network: NAME=FILE.onnx, the file of a network by its name in the query; of a query of version 1.0 FILE.onnx.
          timeout: Seconds, 60 by default, for a query. In a batch it replaces those of every instance, and compilation,
            once for each kind of network and query, comes on top.
          batch: File of instances, one network, query and seconds a row. All are answered by one process.
          results: File of the result in the competition's form; of a batch a folder for a file of each instance and a
            table, results.csv. Instances that are in the table already are left out.
          memory: Bytes that a search may take, about; by default there is no limit.
          seed: Of the search for counterexamples.
        """
        from mixtrain_jax.queries import command as queries  # takes seconds

        options = queries.Options(timeout, results, memory, seed)
        return queries.batch(batch, files, options) if batch else queries.single(files, network, options)

    return _guarded(lambda: _cli(command, "mixtrain verify", arguments))


def supports(arguments: Sequence[str]) -> int:
    """Parse `FILE` or `--CAPABILITY`, tell what is supported, and return the exit code."""

    def act() -> int:
        from mixtrain_jax.queries import command as queries  # takes seconds

        return queries.supports(arguments)

    return _guarded(act)


def report(arguments: Sequence[str]) -> int:
    """Parse `RUN`, draw its report anew, and return the exit code."""

    def command(run: Annotated[Path, tyro.conf.Positional], data_dir: Path | None = None) -> int:
        """Draw the report of a finished run anew, from the records in its folder: nothing is trained or certified.

        Args:
          run: The folder.
          data_dir: As for judge.
        """
        from mixtrain_jax.report.display import Display
        from mixtrain_jax.training.records import redraw  # takes seconds

        with Display() as display:
            redraw(run, display, data_dir)
        return 0

    return _guarded(lambda: _cli(command, "mixtrain report", arguments))


def doctor(arguments: Sequence[str]) -> int:
    """Parse `RUN`, look at the folder of the run, and return the exit code."""

    def command(run: Annotated[Path, tyro.conf.Positional]) -> int:
        """What is wrong with the folder of a run or a judgement, and what to do. Nothing in it is changed.

        Exit code 0 where nothing is wrong, 1 where something is.

        Args:
          run: The folder.
        """
        from rich.console import Console

        from mixtrain_jax.doctor import examine, show  # takes seconds

        findings = examine(run)
        show(Console(highlight=False), run, findings)
        return int(any(finding.verdict == "fault" for finding in findings))

    return _guarded(lambda: _cli(command, "mixtrain doctor", arguments))


def _cli(command: Callable[..., int], program: str, arguments: Sequence[str]) -> int:
    return tyro.cli(command, prog=program, args=list(arguments), config=(tyro.conf.FlagConversionOff,))


def _guarded(act: Callable[[], int]) -> int:
    """What `act` returns, or the exit code of the error that it raises, whose message is printed."""
    try:
        return act()
    except (MixtrainError, BoundsError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: Stopped by Ctrl-C.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write must not fail again
        return 1


def parse(arguments: list[str], configs: Path) -> tuple[Config, Path, Path | None, Hosts, bool]:
    """The experiment, its folder, `runs/NAME-DIGEST` unless `--workdir` says otherwise, and the other options.

    Raises:
      ConfigError: where NAME, a field of its file or a value is wrong.
      SystemExit: with 0 after `--help`, 2 after an error of the command line, which is printed.
    """
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "digits"
    known = ", ".join(config_lib.available(configs))
    defaults, tables = _command_line(config_lib.load(name, configs), arguments)

    def command(
        config: Annotated[Any, tyro.conf.arg(name="")] = tables,
        workdir: Path | None = None,
        data_dir: Path | None = None,
        coordinator: str | None = None,
        processes: int | None = None,
        process: int | None = None,
        profile: bool = False,
    ) -> tuple[Any, Path | None, Path | None, Hosts, bool]:
        """Train a network, and prove how robust it is.

        Args:
          config: The experiment.
          workdir: Folder of the run; the same command goes on where it stopped. By default runs/NAME-DIGEST, the digest
            being that of the config.
          data_dir: Folder of the data sets that TensorFlow Datasets prepared. By default that in the environment
            variable TFDS_DATA_DIR, else ~/tensorflow_datasets.
          coordinator: HOST:PORT of process 0, where the same command runs on several hosts, once in each process. Not
            needed where they find each other: Slurm, Open MPI 4, TPU, indexed jobs of Kubernetes, Ray.
          processes: How many processes there are.
          process: Number of this process, from 0 on.
          profile: Trace some twenty steps before training starts, into the folder profile of the run.
        """
        return config, workdir, data_dir, (coordinator, processes, process), profile

    given, workdir, data_dir, hosts, profile = tyro.cli(
        command,
        prog=f"{Path(sys.argv[0]).name} [NAME]",
        description=(
            "Train a network, and prove how robust it is.\n\n"
            f"NAME is an experiment in {configs.name}/ ({known}) or a path to a .toml file; 'digits' by default. "
            f"Every value of its tables can be overridden. {_EXIT_CODES}"
        ),
        args=arguments,
        config=(tyro.conf.FlagConversionOff,),
    )
    config = config_lib.of_tables(dataclasses.asdict(given), defaults)
    workdir = workdir or Path("runs") / f"{Path(name).name.removesuffix('.toml')}-{config.digest()}"
    return config, workdir, data_dir, hosts, profile


def _command_line(config: Config, arguments: list[str]) -> tuple[Config, Any]:
    """The config with the tables that the arguments choose, and a dataclass of its values, for options and their help.

    Raises:
      ConfigError: where there is no table of a name, or where a flag is one of version 0.1.
    """
    chosen: dict[str, dict[str, str]] = {}
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = argument.partition("=")
        field = flag.removeprefix("--").replace("-", "_")
        if flag != field and field in flat.FLAGS:
            raise ConfigError(f"There is no option {flag}; it is --{flat.FLAGS[field].replace('_', '-')} now.")
        if field in {f"{table}.name" for table in CHOICES}:
            chosen[field.removesuffix(".name")] = {"name": value if equals else following}
    config = config_lib.of_tables(chosen, config)
    tables = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    made = [
        (name, _options(config, name, table) if dataclasses.is_dataclass(table) else table) for name, table in tables
    ]
    help_of = schema.documentation(config)
    fields = [(name, _described(type(x), help_of[name]), x) for name, x in made]
    return config, dataclasses.make_dataclass("Tables", fields, frozen=True)()


def _options(config: Config, name: str, table: Any) -> Any:
    """A dataclass of the values of a table, its name first where it has one."""
    fields: list[tuple[str, Any, Any]] = []
    if choice := CHOICES.get(name):
        words = f"Which one: {', '.join(choice.members)}, or package.module:Class, a dataclass of your own."
        fields = [("name", _described(str, words), config.name_of(name))]
    documented = schema.documentation(table)
    for field, hint in schema.hints(table).items():
        fields.append((field, _described(hint, documented.get(field, "")), schema.flatten(table)[field]))
    return dataclasses.make_dataclass(name.title(), fields, frozen=True)()


def _described(kind: Any, text: str) -> Any:
    return Annotated[kind, tyro.conf.arg(help=text)]
