"""The experiments behind docs/results.md, as ordinary run folders that go on where they were stopped.

    python benchmarks/study.py subsampling --data digits --bounds ibp crown_ibp symbolic
    python benchmarks/study.py weights --data digits
    python benchmarks/study.py time --data digits
    python benchmarks/study.py subsampling --data mnist --bounds ibp --data-dir DIR

`subsampling` asks how few sound examples a step are enough: shares 1 to 1/16 of the batch at equal epochs, and again
with as many epochs as fit into the time that all examples take. `weights` compares dynamic weights with a sweep of
fixed ones. `time` compares what the trainers cost. Where steps are compared, what one costs is measured first, all in
turn within one process, and written to `steps.json`.

Runs land in OUT/STUDY-DATA/, or OUT/STUDY-DATA-LABEL/; `python benchmarks/results.py OUT/STUDY-DATA/*` puts them on the
page. A label tells a second study of the same data from the first, such as one of a larger budget:

    python benchmarks/study.py subsampling --data mnist --fields '{"training.epochs": 20}' --label long --data-dir DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mixtrain_jax import data, environment, experiment
from mixtrain_jax.config import Config, of_flags
from mixtrain_jax.report.display import Display

SHARES = (1, 2, 4, 8, 16)  # one example in so many
WEIGHTS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)  # of the robust loss in the whole
# Clean accuracies on training batches that a few epochs can reach.
TARGETS = {"digits": (0.98, 0.99, 0.995), "mnist": (0.95, 0.96, 0.97, 0.98), "cifar10": (0.4, 0.45, 0.5)}
TRAINERS: dict[str, dict[str, Any]] = {
    "standard": {"objective.name": "standard"},
    "pgd-7": {"objective.name": "pgd", "objective.steps": 7},
    "pgd-40": {"objective.name": "pgd", "objective.steps": 40},
    "robust": {"objective.name": "robust"},
    "mixtrain": {},
}
_QUICK = {
    **{"certify.attack_steps": 20, "certify.attack_restarts": 1, "certify.curve_examples": 0},
    **{"training.points": 5, "training.checkpoint_seconds": 60.0, "mixing.name": "convex", "mixing.share": 0.5},
}
_CONV = {
    **_QUICK,
    **{"model.name": "small", "optimizer.learning_rate": 2e-3, "optimizer.weight_decay": 1e-4, "training.epochs": 5},
    **{"data.holdout": 5000, "certify.bounds": ("ibp", "crown_ibp")},
}
BASE = {
    "digits": of_flags({**_QUICK, "model.width": 512, "training.epochs": 120}),
    "mnist": of_flags({**_CONV, "data.name": "mnist"}),
    "cifar10": of_flags({**_CONV, "data.name": "cifar10", "threat.eps": 2 / 255, "data.crop": 2, "data.flip": True}),
}


def costs(folder: Path, bound: str, configs: dict[str, Config], dataset: data.Dataset) -> dict[str, float]:
    """Seconds of a step of each config, measured together once and kept in `steps.json`."""
    path = folder / "steps.json"
    known = json.loads(path.read_text()) if path.exists() else {"device": environment.device()}
    if bound not in known:
        known[bound] = dict(zip(configs, experiment.step_seconds(list(configs.values()), dataset), strict=True))
        path.write_text(json.dumps(known, indent=1) + "\n")
    return known[bound]


def subsampling(base: Config, bounds: list[str], dataset: data.Dataset, folder: Path) -> dict[str, Config]:
    """Configs by name: every bound and share at equal epochs and at equal time."""
    configs = {}
    for bound in bounds:
        # A looser bound than that of training may prove nothing at all.
        tried = tuple(dict.fromkeys((*base.certify.bounds, bound)))
        own, n = of_flags({"objective.bound": bound, "certify.bounds": tried}, base), base.training.batch_size
        by_share = {str(s): of_flags({"objective.examples": n // s}, own) for s in SHARES}
        cost = costs(folder, bound, by_share, dataset)
        for share, config in by_share.items():
            configs[f"{bound}-{share}-epochs"] = config
            if share != "1":
                epochs = round(base.training.epochs * cost["1"] / cost[share])
                configs[f"{bound}-{share}-time"] = of_flags({"training.epochs": epochs}, config)
    return configs


def weights(base: Config, bounds: list[str], dataset: data.Dataset, folder: Path) -> dict[str, Config]:
    """Configs by name: fixed weights, and the two dynamic rules."""
    configs = {}
    for bound in bounds:
        few = of_flags({"objective.bound": bound, "objective.examples": base.training.batch_size // 8}, base)
        rules = {f"convex-{w}": {"mixing.name": "convex", "mixing.share": w} for w in WEIGHTS}
        targets = TARGETS[base.data.name]
        rules |= {f"constrained-{t}": {"mixing.name": "constrained", "mixing.target": t} for t in targets}
        rules["staircase"] = {"mixing.name": "staircase"}
        configs |= {f"{bound}-{name}": of_flags(values, few) for name, values in rules.items()}
    return configs


def trainers(base: Config, bounds: list[str], dataset: data.Dataset, folder: Path) -> dict[str, Config]:
    """Configs by name: every trainer for as many epochs, measured often enough to see when an accuracy is reached."""
    configs = {}
    for bound in bounds:
        k = base.training.batch_size // 8
        few = of_flags({"objective.bound": bound, "objective.examples": k, "training.points": 40}, base)
        named = {f"{bound}-{name}": _bounded(of_flags(values, few), bound) for name, values in TRAINERS.items()}
        costs(folder, bound, named, dataset)
        configs |= named
    return configs


def _bounded(config: Config, bound: str) -> Config:
    """The config with this bound, where its loss has one: a table that is named anew starts from its defaults."""
    return of_flags({"objective.bound": bound}, config) if "objective.bound" in config.flags() else config


STUDIES = {"subsampling": subsampling, "weights": weights, "time": trainers}


def main() -> None:
    """Run what is left of a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--data", choices=list(BASE), default="digits")
    parser.add_argument("--bounds", nargs="+", default=["ibp"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--fields", type=json.loads, default={}, help="JSON object of values to change, by their flags")
    parser.add_argument("--label", help="end of the folder's name")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    folder = arguments.out / "-".join(filter(None, (arguments.study, arguments.data, arguments.label)))
    folder.mkdir(parents=True, exist_ok=True)
    base = of_flags(arguments.fields, BASE[arguments.data])
    with Display() as display:
        dataset = data.load(base.data.name, arguments.data_dir, display.progress)
        configs = STUDIES[arguments.study](base, arguments.bounds, dataset, folder)
        experiment.study(configs, folder, display, seeds=arguments.seeds, dataset=dataset)


if __name__ == "__main__":
    main()
