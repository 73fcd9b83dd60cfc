"""Complete verification of the images that bounds and attacks leave open."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.attacks import Poll
from mixtrain_jax.bounds import Interval
from mixtrain_jax.certify.evaluation import Evaluation
from mixtrain_jax.data import Split
from mixtrain_jax.errors import SoundnessError
from mixtrain_jax.verify import Answer, Verifier

COMPLETE = "complete"  # in the place of the name of a method or an attack


@dataclasses.dataclass(frozen=True)
class Completion:
    """What complete verification found of the images that were open.

    Attributes:
      limit: seconds an image.
      index: numbers of the images, `[k]`.
      answers: one an image.
    """

    limit: float
    index: np.ndarray
    answers: tuple[Answer, ...]

    def summary(self) -> dict[str, Any]:
        """Counts of verdicts by what decided them and of open images by the reason; domains and seconds."""
        verdicts: dict[str, dict[str, int]] = {}
        for status in ("proved", "broken", "open"):
            of = [answer for answer in self.answers if answer.status == status]
            verdicts[status] = dict(collections.Counter(x.reason if status == "open" else x.by for x in of))
        return {
            "seconds_an_image": self.limit,
            "images": len(self.answers),
            **verdicts,
            "domains": _spread([answer.domains for answer in self.answers]),
            "seconds": _spread([round(answer.seconds, 3) for answer in self.answers]),
        }


def _spread(values: list[float]) -> dict[str, float]:
    """Median, largest and sum; of nothing, nothing."""
    return {"median": float(np.median(values)), "most": max(values), "all": sum(values)} if values else {}


def complete(
    evaluation: Evaluation,
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    split: Split,
    seconds: float,
    *,
    poll: Poll = lambda what, done, total: None,
) -> tuple[Evaluation, Completion]:
    """Decide the images that are neither proved nor broken, as far as the time for each goes.

    Args:
      evaluation: of the split.
      apply: `(params, images) -> logits`, the network that was evaluated.
      params: its parameters.
      split: the images and labels.
      seconds: limit an image, compilation apart.
      poll: called with progress after every image; whatever it raises ends it.

    Returns:
      The evaluation with the new verdicts, by `complete`, and what is behind them.

    Raises:
      SoundnessError: where a counterexample is not in its ball.
    """
    split, threat = split.floats(), evaluation.threat
    rows = np.flatnonzero(evaluation.attacked & ~evaluation.verified).tolist()
    verifier, answers, started = Verifier(apply, params, split.images.shape[1:]), [], time.monotonic()
    names = ("attacked", "verified", "margin", "adversarial", "seen_as")
    columns = {name: getattr(evaluation, name).copy() for name in names}
    by = {name: getattr(evaluation, name).astype(object) for name in ("proved_by", "broken_by")}

    def balls(i: int) -> tuple[Interval, Interval]:
        """That of an image rounded outwards, to prove, and inwards, to break."""
        image = split.images[i : i + 1]
        both = threat.ball(jnp.asarray(image), threat.radii(1)), threat.inner(image, np.full(1, threat.eps))
        return jax.tree.map(lambda x: x[0], both)

    for i in rows[:1]:
        verifier.compile(balls(i)[0], int(split.labels[i]), attack=False)
    for done, i in enumerate(rows):
        outer, inner = balls(i)
        answer = verifier.verify(outer, int(split.labels[i]), attacked=inner, attack=False, timeout=seconds)
        answers.append(answer)
        if answer.status != "broken":
            columns["margin"][i] = np.fmax(columns["margin"][i], answer.bound)
        if answer.status == "proved":
            columns["verified"][i], by["proved_by"][i] = True, COMPLETE
        elif found := answer.counterexample:
            if threat.outside(split.images[i : i + 1], found.x[None]).any():
                raise SoundnessError(f"A counterexample to image {i} is not within {threat} of it. Please report this.")
            columns["attacked"][i], by["broken_by"][i] = False, COMPLETE
            columns["adversarial"][i], columns["seen_as"][i] = found.x, found.output.argmax()
        poll("complete", done + 1, len(rows))
    spent = {**evaluation.seconds, COMPLETE: time.monotonic() - started}
    columns |= {name: of.astype(str) for name, of in by.items()}
    return (
        dataclasses.replace(evaluation, seconds=spent, **columns),
        Completion(seconds, np.array(rows, int), tuple(answers)),
    )
