"""What a finished run leaves in its folder, and the report drawn anew from that."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np

from mixtrain_jax import certify, data
from mixtrain_jax.config import Config, of_run
from mixtrain_jax.errors import ConfigError, MixtrainError, first_line
from mixtrain_jax.report import page
from mixtrain_jax.report.display import Display
from mixtrain_jax.training.rundir import RunDir

CURVE = "curve.json"


def redraw(path: Path, display: Display, data_dir: Path | None = None) -> None:
    """Write `report.html` anew from the other files of a finished run, for instance once matplotlib is installed.

    Args:
      path: folder of the run.
      display: shows what happens.
      data_dir: folder of prepared data sets, as for `data.load`; the report shows test images.

    Raises:
      ConfigError: where this is no folder of a run, or the run has not ended.
      DataError: where the data are missing or damaged.
      MixtrainError: where a file of the run is missing or damaged.
    """
    config, folder = of_run(path), RunDir(path)
    summary = folder.summary()
    if summary is None:
        raise ConfigError(f"{path} holds no finished run: there is no summary.json. The command that began it ends it.")
    test = data.load(config.data.name, data_dir, display.progress).test
    try:
        evaluation, curve = _evaluation(folder.path, config, test), _curve(folder.path)
        content = page.render(config, summary, folder.metrics(), evaluation, curve, test)
    except Exception as error:  # what is damaged can fail anywhere in the libraries that read it
        raise MixtrainError(
            f"The records in {path} are damaged, `mixtrain doctor {path}` says more: {first_line(error)}."
        ) from error
    if curve is None and config.certify.curve_examples:
        display.note(f"Without accuracy against the radius: there is no {CURVE}, as in runs of earlier versions.")
    folder.write("report.html", content)
    display.note(f"Report: {folder.path / 'report.html'}")


def curve_text(curve: certify.Curve | None) -> str | None:
    """The accuracies over the radius as JSON, numbers exact; None where there are none."""
    if curve is None:
        return None
    return json.dumps({name: values.tolist() for name, values in vars(curve).items()}) + "\n"


def _curve(folder: Path) -> certify.Curve | None:
    if not (path := folder / CURVE).exists():
        return None
    values = json.loads(path.read_text())
    return certify.Curve(**{field.name: np.asarray(values[field.name]) for field in dataclasses.fields(certify.Curve)})


def _evaluation(folder: Path, config: Config, test: data.Split) -> certify.Evaluation:
    """What a report shows of an evaluation; the inputs that broke images are not kept."""
    with np.load(io.BytesIO((folder / "certificates.npz").read_bytes()), allow_pickle=False) as file:
        known = {name: file[name] for name in ("predictions", "clean", "attacked", "verified", "margin", "proved_by")}
        if not np.array_equal(file["labels"], test.labels):
            raise ValueError("certificates.npz is of other test images")
    return certify.Evaluation(
        threat=certify.Threat(config.threat.eps, data.signature(config.data.name).domain, config.threat.norm),
        seconds={},
        **known,
        broken_by=np.full(len(test), ""),
        adversarial=test.images,
        seen_as=known["predictions"],
    )
