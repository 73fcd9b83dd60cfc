"""An experiment as a frozen dataclass of tables: defaults here, others in TOML files and on the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from mixtrain_jax import flat
from mixtrain_jax.bounds.methods import MethodName
from mixtrain_jax.errors import ConfigError
from mixtrain_jax.mixing import RULES, Mixing
from mixtrain_jax.objectives import RECIPES, Recipe
from mixtrain_jax.optimizers import OPTIMIZERS, RADII, SCHEDULES, Optimizer, Radius, Schedule
from mixtrain_jax.reparam import REPARAMS, Reparam
from mixtrain_jax.schema import Choice, Foreign, Range, changed, check, checked, differences, flatten, nearest

# One source, in two places: a wheel has the experiments inside the package, a checkout beside it.
_HERE = Path(__file__).parent
FOLDER = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"


@dataclasses.dataclass(frozen=True)
class Data:
    """What is trained on.

    Attributes:
      name: Data set: digits comes with the package, the others are prepared by TensorFlow Datasets;
        imagenet200/train250 has half of the training images.
      crop: Largest shift of a training image, in pixels; 0 to 64.
      flip: Mirror half of the training images, left to right.
      holdout: Training examples that are held out and only measured on; at least 1.
    """

    name: Literal[
        "digits", "mnist", "fashion_mnist", "cifar10", "svhn_cropped", "imagenet200", "imagenet200/train250"
    ] = "digits"
    crop: Annotated[int, Range(0, 64)] = 0
    flip: bool = False
    holdout: Annotated[int, Range(1)] = 50


@dataclasses.dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
      name: One hidden layer; the paper's small, large and residual ones; its residual ones as the authors' code has
        them, for CIFAR-10 and for ImageNet-200.
      width: Units of a hidden layer, 0 for the network's own number; 0 to 65536.
      members: Networks whose mean logits are the prediction; 1 to 1000.
    """

    name: Literal["mlp", "small", "large", "resnet", "resnet_mixtrain", "resnet_imagenet"] = "mlp"
    width: Annotated[int, Range(0, 65536)] = 0
    members: Annotated[int, Range(1, 1000)] = 1


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """What an attacker may do to an image of the domain.

    Attributes:
      eps: Radius that is certified, in pixel units, at most 1 for linf; 0 to 100.
      norm: Of the perturbation: linf, the largest change of a pixel; l2, the Euclidean length of all changes.
    """

    eps: Annotated[float, Range(0, 100)] = 0.1
    norm: Literal["linf", "l2"] = "linf"


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, on how many examples a step, and what is kept.

    Attributes:
      epochs: Passes over the training data; 1 to 1000000.
      batch_size: n: examples a step; 1 to 1000000.
      bad_steps: Steps in a row whose loss or gradient may be NaN or infinite; each is skipped, and one more ends the
        run; 0 to 1000000.
      measure: Held-out examples measured on while training, the first so many; at least 1.
      choose: State that is certified: the last, or the one that verified most held-out examples after the ramp.
      compute: Floats that losses without sound bounds are computed in; parameters, sound bounds and all that is
        measured stay float32.
      params: Where there are several devices: replicated, parameters and optimizer state whole on each; fsdp, their
        large arrays split among them.
      microbatches: Parts of a batch whose gradients are summed in a fixed order, which gives the same parameters, bit
        for bit, on any number of devices; 0 for the fastest order, at most batch_size; 0 to 4096.
      points: How often training logs and measures on the held-out examples, over the whole run; 1 to 1000000.
      steps_per_dispatch: Steps that are one compiled program, which saves the host's part of each; rows of the log,
        checkpoints and stops come at multiples of it; 1 to 10000.
      checkpoint_seconds: Seconds between checkpoints, 0 for one every step, or every program of steps_per_dispatch; at
        least 0.
    """

    epochs: Annotated[int, Range(1, 10**6)] = 960
    batch_size: Annotated[int, Range(1, 10**6)] = 128
    bad_steps: Annotated[int, Range(0, 10**6)] = 5
    measure: Annotated[int, Range(1)] = 1000
    choose: Literal["last", "best"] = "last"
    compute: Literal["float32", "bfloat16"] = "float32"
    params: Literal["replicated", "fsdp"] = "replicated"
    microbatches: Annotated[int, Range(0, 4096)] = 0
    points: Annotated[int, Range(1, 10**6)] = 40
    steps_per_dispatch: Annotated[int, Range(1, 10**4)] = 1
    checkpoint_seconds: Annotated[float, Range(0)] = 10.0


@dataclasses.dataclass(frozen=True)
class Certify:
    """What is tried on the test set.

    Attributes:
      bounds: Tried in turn; an image is verified when one of them proves it.
      attack_steps: Steps of the PGD attack; 1 to 10000.
      attack_restarts: Starts of the PGD attack; 1 to 1000.
      complete: Seconds of complete verification for each image that bounds and attack leave open, compilation apart; 0
        for none; at least 0.
      curve_examples: Test images that the curve of accuracy against the radius is drawn from, the first so many, 0 for
        no curve; at least 0.
    """

    bounds: tuple[MethodName, ...] = ("ibp", "crown_ibp", "symbolic", "crown")
    attack_steps: Annotated[int, Range(1, 10000)] = 100
    attack_restarts: Annotated[int, Range(1, 1000)] = 3
    complete: Annotated[float, Range(0)] = 0.0
    curve_examples: Annotated[int, Range(0)] = 500


CHOICES: dict[str, Choice] = {
    "reparam": REPARAMS,
    "objective": RECIPES,
    "mixing": RULES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "radius": RADII,
}
"""The tables that are chosen by name; every other one is of one kind."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment: every value of its tables can be set in a config file and on the command line.

    Attributes:
      data: What is trained on.
      model: The network.
      reparam: What its parameters are made of.
      threat: What an attacker may do to an image.
      objective: The loss that stands beside the clean one, and the examples that carry it.
      mixing: How the two are weighed.
      optimizer: What changes the parameters.
      schedule: How its learning rate moves.
      radius: How the radius that is trained on grows.
      training: How long, on how many examples a step, and what is kept.
      certify: What is tried on the test set.
      seed: Seed of the initial weights, the data order, the subsamples and the attack; 0 to 4294967295.

    Raises:
      ConfigError: where a value has the wrong type or is out of range, or two do not fit together.
    """

    data: Data = Data()
    model: Model = Model()
    reparam: Reparam = REPARAMS.members["plain"]
    threat: Perturbation = Perturbation()
    objective: Recipe = RECIPES.members["mixtrain"]
    mixing: Mixing = RULES.members["constrained"]
    optimizer: Optimizer = OPTIMIZERS.members["adamw"]
    schedule: Schedule = SCHEDULES.members["cosine"]
    radius: Radius = RADII.members["linear"]
    training: Training = Training()
    certify: Certify = Certify()
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if dataclasses.is_dataclass(value := getattr(self, field.name)):
                object.__setattr__(self, field.name, checked(value, field.name))
            elif field.name != "seed":
                raise ConfigError(f"{field.name} must be a table, got {value!r}.")
        check("seed", get_type_hints(type(self), include_extras=True)["seed"], self.seed)
        self._refuse_misfits(self.training)

    def _refuse_misfits(self, training: Training) -> None:
        if not isinstance(self.objective, Foreign) and self.objective.examples > training.batch_size:
            raise ConfigError(
                "objective.examples must be at most training.batch_size (k of n), "
                f"got {self.objective.examples} of {training.batch_size}."
            )
        if self.threat.norm == "linf" and self.threat.eps > 1:
            raise ConfigError(f"threat.eps must be a number, 0 to 1, for the norm linf; got {self.threat.eps:g}.")
        if training.microbatches > training.batch_size:
            raise ConfigError(
                "training.microbatches must be at most training.batch_size, "
                f"got {training.microbatches} of {training.batch_size} examples."
            )
        if training.microbatches and training.params == "fsdp":
            raise ConfigError(
                "training.microbatches needs training.params = 'replicated': norms of split gradients are summed "
                "device by device."
            )
        if training.microbatches and training.steps_per_dispatch > 1:
            raise ConfigError(
                "training.microbatches needs training.steps_per_dispatch = 1: in a program of several steps, rounding "
                f"depends on the number of devices, got {training.steps_per_dispatch}."
            )
        if not self.certify.bounds:
            raise ConfigError("certify.bounds must name at least one bound.")

    def name_of(self, table: str) -> str:
        """The name of a table that is chosen by name: one of `CHOICES`."""
        return CHOICES[table].name_of(getattr(self, table))

    def flags(self) -> dict[str, Any]:
        """The values by their flags on the command line, as JSON values."""
        flags: dict[str, Any] = {}
        for table, values in self.to_json().items():
            flags |= (
                {f"{table}.{name}": value for name, value in values.items()} if table != "seed" else {table: values}
            )
        return flags

    def to_json(self) -> dict[str, Any]:
        """The tables as JSON values, in order."""
        return json.loads(json.dumps(self._tables(lambda name, table: flatten(table))))

    def digest(self) -> str:
        """Eight hexadecimal digits that tell one experiment from another: of the values that are not the defaults."""
        default = Config()

        def unusual(name: str, table: Any) -> dict[str, Any]:
            choice = CHOICES.get(name)
            return differences(table, choice.named(name, self.name_of(name)) if choice else getattr(default, name))

        usual = default._tables(lambda name, table: {})
        tables = self._tables(unusual) | {"seed": self.seed}
        found = {name: value for name, value in tables.items() if value != usual[name]}
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:8]

    def _tables(self, values: Callable[[str, Any], dict[str, Any]]) -> dict[str, Any]:
        """The name of each table, where it has one, and values of it."""
        found = {}
        for field in dataclasses.fields(self):
            table, named = getattr(self, field.name), field.name in CHOICES
            if dataclasses.is_dataclass(table):
                found[field.name] = ({"name": self.name_of(field.name)} if named else {}) | values(field.name, table)
            else:
                found[field.name] = table
        return found


def of_tables(values: Mapping[str, Any], base: Config | None = None, *, imports: bool = True) -> Config:
    """A config of tables, as TOML and JSON have them.

    Args:
      values: the tables; one with a `name` starts from the defaults of that name.
      base: has what they leave out; by default the defaults.
      imports: whether classes that are named by their import path are imported, which runs their code.

    Raises:
      ConfigError: where a table or a field is unknown, of the wrong type or out of range.
    """
    base = base or Config()
    known, tables = [field.name for field in dataclasses.fields(Config)], {}
    for table, given in values.items():
        if table not in known:
            flag = flat.FLAGS.get(table)
            raise ConfigError(
                f"unknown field '{table}'{f'; it is {flag} now.' if flag else nearest(table, known) or '.'}"
            )
        if table == "seed":
            tables[table] = given
            continue
        if not isinstance(given, Mapping):
            raise ConfigError(f"{table} must be a table, got {given!r}.")
        given, start = dict(given), getattr(base, table)
        name = given.get("name")
        if table in CHOICES and isinstance(name, str) and ":" in name and not imports:
            tables[table] = Foreign(given.pop("name"), given)
            continue
        if table in CHOICES and "name" in given:
            start = CHOICES[table].named(table, given.pop("name"))
        tables[table] = changed(start, given, table)
    return dataclasses.replace(base, **tables)


def of_flags(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """A config of values by their flags: `of_flags({"objective.name": "pgd", "training.epochs": 3, "seed": 1})`.

    Raises:
      ConfigError: as `of_tables`.
    """
    tables: dict[str, Any] = {}
    for flag, value in values.items():
        table, dot, name = flag.partition(".")
        if dot:
            tables.setdefault(table, {})[name] = value
        else:
            tables[table] = value
    return of_tables(tables, base)


def load(name: str, folder: Path = FOLDER) -> Config:
    """Read the experiment `name` from `folder/name.toml`, or from a path that ends in `.toml`.

    Raises:
      ConfigError: where there is no such experiment, the file is no TOML, or a field is unknown, of the wrong type or
        out of range; an unknown name comes with the nearest known one, a file of version 0.1 with its new form.
    """
    known = available(folder)
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not (os.path.isfile(path) if name.endswith(".toml") else name in known):
        raise ConfigError(
            f"There is no config '{name}'{nearest(name, known) or '.'} Known: {', '.join(known) or 'none'}."
        )
    try:
        values = tomllib.loads(path.read_text())
    except ValueError as error:  # of TOML, of its encoding, or a number of thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if flat.is_flat(values):
        raise ConfigError(f"{path} has the form of version 0.1. The same experiment today:\n\n{flat.as_toml(values)}")
    return _named(values, path)


def of_run(path: Path) -> Config:
    """Read the `config.json` of a run folder, one of version 0.1 too; nothing that it names is imported.

    Raises:
      ConfigError: where there is none, or it is damaged or of another version of this package.
    """
    try:
        values = json.loads((path / "config.json").read_text())
    except OSError as error:
        raise ConfigError(f"{path} is no run folder: its config.json cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ConfigError(f"{path / 'config.json'} is damaged: it is no JSON object.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path / 'config.json'} is damaged: it is no JSON object.")
    return _named(flat.tables(values) if flat.is_flat(values) else values, path / "config.json", imports=False)


def _named(values: dict[str, Any], path: Path, *, imports: bool = True) -> Config:
    try:
        return of_tables(values, imports=imports)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def available(folder: Path = FOLDER) -> list[str]:
    """Names of the experiments in a folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))
