"""Our runs beside what was published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from results_page.numbers import NONE, accuracies, brief, by_name, seconds, table
from results_page.records import Record


class Anchor(NamedTuple):
    """A row: what the paper and others published, verified accuracy in %."""

    data: str
    model: str
    eps: float
    paper: str = NONE
    beside: str = NONE  # the best of others in the paper's own table
    best: str = NONE  # known today


_MNIST_1 = ("97.8, IBP and CROWN-IBP", "98.22, SABR")
_MNIST_3 = ("93.0, CROWN-IBP", "93.99, IBP with a clean share, tuned")
_CIFAR_2 = ("60.5, COLT", "64.61, MTL-IBP, tuned on the test set; 64.44, SABR")
_CIFAR_8 = (NONE, "39.96, SortNet; 35.74, MTL-IBP")
_FIRST = "60.1 of the first 1,000 images; its released weights 64.2 of all 10,000, 68.9 with bounds intersected"
ANCHORS = (
    Anchor("mnist", "small", 0.1, "97.1", *_MNIST_1),
    Anchor("mnist", "small", 0.3, _FIRST, *_MNIST_3),
    Anchor("mnist", "large", 0.1, NONE, *_MNIST_1),
    Anchor("mnist", "large", 0.3, NONE, *_MNIST_3),
    Anchor("cifar10", "small", 2 / 255, NONE, *_CIFAR_2),
    Anchor("cifar10", "large", 2 / 255, NONE, *_CIFAR_2),
    Anchor("cifar10", "resnet", 2 / 255, "50.4", *_CIFAR_2),
    Anchor("cifar10", "small", 8 / 255, NONE, *_CIFAR_8),
    Anchor("cifar10", "large", 8 / 255, NONE, *_CIFAR_8),
    Anchor("cifar10", "resnet", 8 / 255, NONE, *_CIFAR_8),
    Anchor("imagenet200", "resnet_imagenet", 0.007, "19.4", "5.1, Wong and others", "30.67 at 1/255, MTL-IBP"),
)
_DATA = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "svhn_cropped": "SVHN",
    "imagenet200": "ImageNet-200",
    "imagenet200/train250": "ImageNet-200, trained on half of the training images",
}
_INTRO = """Verified accuracy as published, then ours. Robust accuracy itself lies between verified and attacked. The
best known are mostly of larger networks, such as CNN7, and certified by complete verification."""


def paper(runs: Sequence[Record]) -> str:
    """Tables of our accuracies beside the published ones, and of what ours took."""
    rows = _rows(list(by_name(runs).values()))
    head = ("data, eps, network", "paper", "others, same table", "best known", "clean", "attacked", "verified", "seeds")
    published = [
        (
            *(experiment(anchor), anchor.paper, anchor.beside, anchor.best),
            *accuracies(found, "clean", "attacked", "verified"),
            str(len(found) or NONE),
        )
        for anchor, found in rows
    ]
    efforts = [_effort(anchor, found) for anchor, found in rows if found]
    took = ("config", "data, eps, network", "trained with", "epochs", "training, s")
    how = ("certified with", "attacked with", "test images", "device")
    return "\n\n".join([_INTRO, table(head, published), "What ours were and took:", table((*took, *how), efforts)])


def _rows(configs: list[list[Record]]) -> list[tuple[Anchor, list[Record]]]:
    """Every published row with each config of ours that it fits, then our others."""
    rows: list[tuple[Anchor, list[Record]]] = []
    for anchor in ANCHORS:
        ours = [found for found in configs if _fits(found[0]["config"], anchor)]
        rows += [(_named(found[0]["config"], anchor), found) for found in ours] or [(anchor, [])]
    published = [found for _, found in rows]
    return rows + [(_named(found[0]["config"]), found) for found in configs if found not in published]


def _fits(config: Mapping[str, Any], anchor: Anchor) -> bool:
    model = "resnet" if config["model.name"] == "resnet_mixtrain" else config["model.name"]
    same = (config["data.name"].split("/")[0], model) == (anchor.data, anchor.model)
    return same and math.isclose(config["threat.eps"], anchor.eps, rel_tol=0.01)


def _named(config: Mapping[str, Any], anchor: Anchor | None = None) -> Anchor:
    mine = Anchor(config["data.name"], config["model.name"], config["threat.eps"])
    return mine if anchor is None else anchor._replace(data=mine.data, model=mine.model)


def title(config: Mapping[str, Any]) -> str:
    """Data, radius and network of a config in words."""
    return experiment(_named(config))


def experiment(anchor: Anchor) -> str:
    """Data, radius and network in words."""
    of_255 = anchor.eps * 255
    whole = anchor.data.startswith(("cifar", "svhn")) and math.isclose(of_255, round(of_255), rel_tol=0.01)
    eps = f"{round(of_255)}/255" if whole else f"{anchor.eps:g}"
    return f"{_DATA.get(anchor.data, anchor.data)}, {eps}, {anchor.model}"


def _effort(anchor: Anchor, runs: Sequence[Record]) -> tuple[str, ...]:
    """What the runs of one config were and took."""
    config, summary = runs[0]["config"], runs[0]["summary"]
    n, name = config["training.batch_size"], config["objective.name"]
    loss = {
        "standard": "clean loss alone",
        "pgd": f"PGD, {config.get('objective.steps')} steps",
    }.get(name, f"`{config.get('objective.bound', name)}`")
    trained = loss if name == "standard" else f"{loss}, {config['objective.examples'] or n} of {n}"
    return (
        f"`{runs[0]['name']}`",
        experiment(anchor),
        trained,
        str(config["training.epochs"]),
        brief(seconds(runs)),
        summary["method"],
        summary["attack"],
        f"{summary['test_examples']:,}",
        "; ".join(sorted({run["summary"]["device"] for run in runs})),
    )
