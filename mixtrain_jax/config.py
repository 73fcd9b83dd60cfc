"""An experiment as one frozen dataclass: defaults here, experiments in TOML files, overrides on the command line."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import reprlib
import sys
import tomllib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from mixtrain_jax.errors import ConfigError

# One source, in two places: a wheel has the experiments inside the package, a checkout beside it.
_HERE = Path(__file__).parent
FOLDER = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"

Bound = Literal["ibp", "crown_ibp", "symbolic", "crown", "alpha_crown"]


class Range(NamedTuple):
    """Lowest and highest value of a number, both allowed."""

    low: float
    high: float = sys.float_info.max


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. Every field can be set in a config file and on the command line.

    Raises:
      ConfigError: where a field has the wrong type or is out of range.
    """

    data: Literal[
        "digits", "mnist", "fashion_mnist", "cifar10", "svhn_cropped", "imagenet200", "imagenet200/train250"
    ] = "digits"
    """Data set: digits comes with the package, the others are prepared by TensorFlow Datasets; imagenet200/train250 has half of the training images."""  # noqa: E501  a line of help
    model: Literal["mlp", "small", "large", "resnet", "resnet_mixtrain", "resnet_imagenet"] = "mlp"
    """Network: one hidden layer; the paper's small, large and residual ones; its residual ones as the authors' code has them, for CIFAR-10 and for ImageNet-200."""  # noqa: E501  a line of help
    width: Annotated[int, Range(0, 65536)] = 0
    """Units of a hidden layer, 0 for the network's own number; 0 to 65536."""
    crop: Annotated[int, Range(0, 64)] = 0
    """Largest shift of a training image, in pixels; 0 to 64."""
    flip: bool = False
    """Mirror half of the training images, left to right."""
    trainer: Literal["standard", "pgd", "robust", "mixtrain"] = "mixtrain"
    """What is trained: standard, the clean loss alone; pgd, the loss at attacked images (adversarial training); robust, clean and sound loss of every example; mixtrain, clean loss of every example and sound loss of few."""  # noqa: E501  a line of help
    eps: Annotated[float, Range(0, 1)] = 0.1
    """Radius of the l-infinity ball that is certified, in pixel units; 0 to 1."""
    train_eps_ratio: Annotated[float, Range(0, 4)] = 1.0
    """Radius of the ball trained on, as a multiple of eps; 0 to 4."""
    ramp: Annotated[float, Range(0, 1)] = 0.33
    """Share of training over which the radius grows from 0; 0 to 1."""
    ramp_shape: Literal["linear", "smooth"] = "linear"
    """How it grows: linear; smooth, by the fourth power over the first quarter and linear from there, for deep networks, whose first interval bounds are wide at any radius."""  # noqa: E501  a line of help
    bound: Bound = "ibp"
    """Sound bounds that the robust loss is computed from."""
    robust_examples: Annotated[int, Range(1)] = 16
    """k: examples of a batch that carry the robust loss; 1 to batch_size."""
    robust_group: Annotated[int, Range(0, 10**6)] = 0
    """Examples whose robust loss is computed at a time, on each device: fewer take less memory; 0 for what is fast, on CPU a few, elsewhere all; 0 to 1000000."""  # noqa: E501  a line of help
    subsample: Literal["batch", "epoch"] = "batch"
    """Where the k examples come from: each step's own batch, or a subset of the training examples drawn each epoch."""
    replace: bool = False
    """Draw the k examples with replacement, as the authors of MixTrain do."""
    robust_probability: Annotated[float, Range(0, 1)] = 1.0
    """Share of the steps that have a robust loss (the authors' code: 0.8; 0 trains without any); 0 to 1."""
    mixing: Literal["authors", "constant", "schedule", "convex", "constrained", "mgda", "balanced"] = "constrained"
    """Rule that weighs the robust loss: authors, by their schedule; constant, by weight; schedule, rising to weight over the ramp; convex, by share; constrained, by the share that holds target; mgda, by the shortest convex combination of the gradients; balanced, by the inverse of their lengths."""  # noqa: E501  a line of help
    weight: Annotated[float, Range(0, 1000)] = 1.0
    """Weight of the robust loss, the clean loss weighing 1, for constant and schedule; 0 to 1000."""
    share: Annotated[float, Range(0, 1)] = 0.5
    """Share of the robust loss in the whole, for convex, and at the start of constrained; 0 to 1."""
    target: Annotated[float, Range(0, 1)] = 0.995
    """Clean accuracy that constrained holds; 0 to 1."""
    target_on: Literal["batches", "heldout"] = "batches"
    """Where that accuracy is taken: on training batches, or on them less their lead over the held-out examples."""
    mixing_learning_rate: Annotated[float, Range(0, 100)] = 0.2
    """Step of the optimizer that moves the share of constrained; 0 to 100."""
    train_attack_steps: Annotated[int, Range(1, 1000)] = 7
    """Steps of the attack in training, for the trainer pgd; 1 to 1000."""
    epochs: Annotated[int, Range(1, 10**6)] = 960
    """Passes over the training data; 1 to 1000000."""
    batch_size: Annotated[int, Range(1, 10**6)] = 128
    """n: examples a step; 1 to 1000000."""
    learning_rate: Annotated[float, Range(0, 10)] = 5e-3
    """Peak step of AdamW, falling to 0 by a cosine; 0 to 10."""
    warmup: Annotated[float, Range(0, 1)] = 0.0
    """Share of training over which the step of AdamW grows linearly from 0 to its peak; 0 to 1."""
    weight_decay: Annotated[float, Range(0, 10)] = 0.1
    """Decoupled weight decay of AdamW; 0 to 10."""
    clip: Annotated[float, Range(0)] = 10.0
    """Largest global norm of a gradient; at least 0."""
    bad_steps: Annotated[int, Range(0, 10**6)] = 5
    """Steps in a row whose loss or gradient may be NaN or infinite; each is skipped, and one more ends the run; 0 to 1000000."""  # noqa: E501  a line of help
    holdout: Annotated[int, Range(1)] = 50
    """Training examples that are held out and only measured on; at least 1."""
    measure: Annotated[int, Range(1)] = 1000
    """Held-out examples measured on while training, the first so many; at least 1."""
    choose: Literal["last", "best"] = "last"
    """State that is certified: the last, or the one that verified most held-out examples after the ramp."""
    certify: tuple[Bound, ...] = ("ibp", "crown_ibp", "symbolic", "crown")
    """Bounds tried in turn on the test set; an image is verified when one of them proves it."""
    attack_steps: Annotated[int, Range(1, 10000)] = 100
    """Steps of the PGD attack on the test set; 1 to 10000."""
    attack_restarts: Annotated[int, Range(1, 1000)] = 3
    """Starts of the PGD attack; 1 to 1000."""
    curve_examples: Annotated[int, Range(0)] = 500
    """Test images that the curve of accuracy against the radius is drawn from, the first so many, 0 for no curve; at least 0."""  # noqa: E501  a line of help
    compute: Literal["float32", "bfloat16"] = "float32"
    """Floats that the clean loss is computed in, and the attack of the trainer pgd; parameters, sound bounds and all that is measured stay float32."""  # noqa: E501  a line of help
    params: Literal["replicated", "fsdp"] = "replicated"
    """Where there are several devices: replicated, parameters and optimizer state whole on each; fsdp, their large arrays split among them."""  # noqa: E501  a line of help
    microbatches: Annotated[int, Range(0, 4096)] = 0
    """Parts of a batch whose gradients are summed in a fixed order, which gives the same parameters, bit for bit, on any number of devices; 0 for the fastest order, at most batch_size; 0 to 4096."""  # noqa: E501  a line of help
    points: Annotated[int, Range(1, 10**6)] = 40
    """How often training logs and measures on the held-out examples, over the whole run; 1 to 1000000."""
    steps_per_dispatch: Annotated[int, Range(1, 10**4)] = 1
    """Steps that are one compiled program, which saves the host's part of each; rows of the log, checkpoints and stops come at multiples of it; 1 to 10000."""  # noqa: E501  a line of help
    checkpoint_seconds: Annotated[float, Range(0)] = 10.0
    """Seconds between checkpoints, 0 for one every step, or every program of steps_per_dispatch; at least 0."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of the initial weights, the data order, the subsamples and the attack; 0 to 4294967295."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            _check(name, hint, getattr(self, name))
            if get_origin(hint) is Annotated:  # A whole number is a fine float, and the digest tells 10 from 10.0.
                object.__setattr__(self, name, get_args(hint)[0](getattr(self, name)))
        if self.robust_examples > self.batch_size:
            raise ConfigError(
                f"robust_examples must be at most batch_size (k of n), got {self.robust_examples} of {self.batch_size}."
            )
        if self.microbatches > self.batch_size:
            raise ConfigError(
                f"microbatches must be at most batch_size, got {self.microbatches} of {self.batch_size} examples."
            )
        if self.microbatches and self.params == "fsdp":
            raise ConfigError(
                "microbatches needs params = 'replicated': norms of split gradients are summed device by device."
            )
        if self.microbatches and self.steps_per_dispatch > 1:
            raise ConfigError(
                "microbatches needs steps_per_dispatch = 1: in a program of several steps, rounding depends on the "
                f"number of devices, got {self.steps_per_dispatch}."
            )
        if self.mixing == "constrained" and not 0 < self.share < 1:
            raise ConfigError(f"share must lie strictly between 0 and 1 for constrained mixing, got {self.share}.")
        if not self.certify:
            raise ConfigError("certify must name at least one bound.")

    def robust_count(self) -> int:
        """Examples of a step that carry the robust loss."""
        return self.robust_examples if self.trainer == "mixtrain" else self.batch_size

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, in order."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def digest(self) -> str:
        """Eight hexadecimal digits that tell one experiment from another."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()[:8]


def load(name: str, folder: Path = FOLDER) -> Config:
    """Read the experiment `name` from `folder/name.toml`, or from a path that ends in `.toml`.

    Raises:
      ConfigError: where there is no such experiment, the file is no TOML, or a field is unknown, of the wrong type or
        out of range; an unknown name comes with the nearest known one.
    """
    known = available(folder)
    path = Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    if not (os.path.isfile(path) if name.endswith(".toml") else name in known):
        raise ConfigError(
            f"There is no config '{name}'{_nearest(name, known) or '.'} Known: {', '.join(known) or 'none'}."
        )
    try:
        values = tomllib.loads(path.read_text())
    except ValueError as error:  # of TOML, of its encoding, or a number of thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return _of_values(values, path)


def of_run(path: Path) -> Config:
    """Read the `config.json` of a run folder.

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
    return _of_values(values, path / "config.json")


def _of_values(values: dict[str, Any], path: Path) -> Config:
    fields = [field.name for field in dataclasses.fields(Config)]
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{path}: unknown field '{key}'{_nearest(key, fields) or '.'}")
        values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return Config(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def available(folder: Path = FOLDER) -> list[str]:
    """Names of the experiments in a folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def _check(name: str, hint: Any, value: Any) -> None:
    """Hold a value to its annotated type and range."""
    if get_origin(hint) is Annotated:
        kind, bounds = get_args(hint)
        _check(name, kind, value)
        if not bounds.low <= value <= bounds.high:
            unlimited = bounds.high == sys.float_info.max
            limits = f"at least {bounds.low} and finite" if unlimited else f"{bounds.low} to {bounds.high}"
            raise ConfigError(f"{name} must be a number, {limits}; got {reprlib.repr(value)}.")
    elif get_origin(hint) is Literal:
        if value not in get_args(hint):
            known = [str(x) for x in get_args(hint)]
            raise ConfigError(
                f"{name} must be one of {', '.join(known)}, got '{value}'{_nearest(str(value), known) or '.'}"
            )
    elif get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f"{name} must be a list, got {value!r}.")
        for item in value:
            _check(name, get_args(hint)[0], item)
    else:
        accepted = {float: (float, int), int: int, bool: bool, str: str}[hint]
        if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
            raise ConfigError(f"{name} must be of type {_word(hint)}, got {value!r}.")


def _word(hint: type | types.GenericAlias) -> str:
    return getattr(hint, "__name__", str(hint))
