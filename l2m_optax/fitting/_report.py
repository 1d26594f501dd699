"""What `fit` did, as data and as a table that is read in ten seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from l2m_optax.tuning._scale_check import ScaleCheck

OFF = 3.0
"""A scale that is off by more than this factor: the memory of an optimizer does not explain it."""


class Candidate(NamedTuple):
    """One way to predict, and what held-out data say of it.

    Attributes:
      name: ``"network"``, ``"last layer"`` or ``"all layers"``.
      temperature: T of its posterior; 0 for the network alone.
      nll: negative log-likelihood of an observation, in nats; NaN without validation data.
      gain: by how much that is below the network's, in nats; NaN without validation data.
      standard_error: of the gain, over examples.
      figures: accuracy and ECE, or RMSE and the share of targets in the 90% interval, by name.
      logit_scale: what the logits are multiplied by, see `tuning.calibrate_logits`.
    """

    name: str
    temperature: float
    nll: float
    gain: float
    standard_error: float
    figures: dict[str, float]
    logit_scale: float = 1.0


class Report(NamedTuple):
    """What `fit` did; `print` it.

    Attributes:
      scale: the `ScaleCheck` of the posterior as the optimizer's state gave it, before it was
        corrected.
      candidates: a `Candidate` for each way to predict, the network alone first.
      chosen: the name of the one that is returned.
      validated: whether validation data chose it.
      warnings: what to doubt, and what to do about it.
    """

    scale: ScaleCheck
    candidates: tuple[Candidate, ...]
    chosen: str
    validated: bool
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """The table, the choice and the warnings."""
        return "\n".join([*_scale_lines(self), *_table(self), *_choice(self), *_warnings(self)])


def _scale_lines(report: Report) -> Iterator[str]:
    scale = report.scale
    yield (
        f"scale: the state's F was {float(scale.ratio):.2g} times the exact one of "
        f"{scale.examples:,} examples; it was divided by that"
    )


def _table(report: Report) -> Iterator[str]:
    names = sorted({name for c in report.candidates for name in c.figures})
    scaled = any(c.logit_scale != 1 for c in report.candidates)
    tuned = ["T", "logits ×"] if scaled else ["T"]
    rows = [("", "candidate", *tuned, "NLL", "gain", "± s.e.", *names)]
    for c in report.candidates:
        mark = "→" if c.name == report.chosen else ""
        values = (f"{c.temperature:.2g}", f"{c.logit_scale:.2f}")
        numbers = [_number(x) for x in (c.nll, c.gain, c.standard_error)]
        figures = [_number(c.figures.get(name, math.nan)) for name in names]
        rows.append((mark, c.name, *values[: len(tuned)], *numbers, *figures))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join([*left, *right]).rstrip()


def _choice(report: Report) -> Iterator[str]:
    chosen = next(c for c in report.candidates if c.name == report.chosen)
    if not report.validated:
        yield f"chosen: {chosen.name}, at a small temperature; pass validation= to see the gain"
    elif chosen.temperature == 0 and chosen.logit_scale == 1:
        yield "chosen: the network alone; none predicts these data better"
    else:
        yield f"chosen: {_what(chosen)}, {_gain(chosen)}"


def _what(chosen: Candidate) -> str:
    """The candidate in words."""
    name = "the network" if chosen.temperature == 0 else chosen.name
    return name if chosen.logit_scale == 1 else f"{name}, its logits times {chosen.logit_scale:.2f}"


def _gain(chosen: Candidate) -> str:
    gain = f"{abs(chosen.gain):.2g} ± {chosen.standard_error:.1g} nats an observation"
    if chosen.gain >= 0:
        return f"{gain} better than the network alone"
    return f"{gain} worse than the network alone, but safe against errors that few data do not show"


def _warnings(report: Report) -> Iterator[str]:
    return (f"warning: {text}" for text in report.warnings)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def of_the_scale(scale: ScaleCheck) -> Iterator[str]:
    """A warning with possible causes, if the state's F is far from the exact one."""
    ratio = float(scale.ratio)
    exact = [float(scale.empirical), float(scale.true)]  # the second is NaN where it is not known
    if not any(1 / OFF < float(scale.posterior) / f < OFF for f in exact if f > 0):
        yield (
            f"the state's F was {ratio:.2g} times the exact one, and was corrected; possible "
            "causes: sequences counted where tokens are observations; a loss_scale that was "
            "forgotten; a smaller last batch, or batches that changed (pass their sizes as "
            "batch_size); parameters of another step than the state's, such as the best ones of "
            "early stopping; gradients clipped before tx saw them; a training of few updates, or "
            "a learning rate that stayed high; large batches; dropout, which the training "
            "gradients had and apply_fn has not"
        )
