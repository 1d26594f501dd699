"""What `diagnose` found, as a table with warnings in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from l2m_optax._support.types import Array
from l2m_optax.posterior._training import Training

PERFECT = 0.25
"""Nats for each determined parameter. An observation: what a network separates had 0.08 to 0.18,
images, and digits with wrong labels, 0.5 and more."""
BALANCED = 0.3, 1.5
"""The balance between loss and decay. An observation: trainings that were over too early had 0.15
to 0.21, or 1.7 at a rate that was too small; good ones had 0.36 to 1.6."""


class Leaf(NamedTuple):
    """Figures of one leaf, or of all leaves together; scalars of shape ().

    Attributes:
      size: number of entries.
      zeros: share of entries whose second moment is exactly 0.
      prior_dominated: share of entries where the prior is more precise than the data, F < δ.
      effective: effective number of parameters, Σ F/(F+δ).
      mean_gradient: share of the second moment that is the squared mean gradient; 0 at a mode,
        NaN where the state keeps no mean.
      ratio: Σ F over the reference's Σ F; NaN without a reference.
      log_correlation: correlation of log F with the reference's; NaN without one.
    """

    size: Array
    zeros: Array
    prior_dominated: Array
    effective: Array
    mean_gradient: Array
    ratio: Array
    log_correlation: Array


class Diagnosis(NamedTuple):
    """What `diagnose` found; `str` of it is a table with warnings.

    Attributes:
      leaves: a `Leaf` by path.
      total: a `Leaf` of all entries together.
      updates: number of updates that the mean has seen, the fewest of any layer if layers count
        for themselves; NaN where unknown.
      window: number of updates it would average if it had seen more, (1+decay)/(1-decay); NaN
        where unknown.
      num_data: number of training examples; NaN where unknown.
      nats_per_parameter: of `EvidenceWeightDecayState`; NaN where unknown.
      balance: the same.
      balance_error: the same.
    """

    leaves: dict[str, Leaf]
    total: Leaf
    updates: Array
    window: Array
    num_data: Array
    nats_per_parameter: Array
    balance: Array
    balance_error: Array

    def warnings(self) -> list[str]:
        """What to doubt, and what to do about it, in plain words."""
        return list(_warnings(self))

    def __str__(self) -> str:
        """The table and the warnings."""
        rows = [_HEADINGS, *(_row(path, leaf) for path, leaf in self.leaves.items())]
        rows.append(_row("total", self.total))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(_cells(row, widths)) for row in rows]
        averaged = jnp.fmin(self.updates, self.window)
        seen = f"updates seen: {_number(self.updates)}; averaged over: {_number(averaged)}"
        return "\n".join([*lines, seen, *(f"warning: {text}" for text in self.warnings())])


def _warnings(diagnosis: Diagnosis) -> Iterator[str]:
    """A sentence for each finding: what it is, and its possible causes, each with its remedy."""
    total = diagnosis.total
    yield from _of_the_mean(float(diagnosis.updates), float(diagnosis.window))
    yield from _of_the_gradient(float(total.mean_gradient))
    yield from _of_zeros(float(total.zeros))
    yield from _of_the_size(float(total.effective), float(diagnosis.num_data))
    yield from _of_the_scale(float(total.ratio))
    yield from of_the_training(
        Training(diagnosis.nats_per_parameter, diagnosis.balance, diagnosis.balance_error)
    )


def _of_the_mean(updates: float, window: float) -> Iterator[str]:
    if updates < window:
        yield (
            f"the mean has seen {updates:.0f} of the {window:.0f} updates it looks back over; "
            "possible cause: gradients of early training are still in it (train longer, or "
            "track_second_moment with a shorter decay)"
        )
    averaged = float(np.fmin(updates, window))
    if averaged < 50:
        yield (
            f"the mean averages {averaged:.0f} batches, so that each entry is uncertain by "
            f"{math.sqrt(2 / averaged):.0%}: use a longer decay, or track_second_moment(0.999)"
        )


def _of_the_gradient(share: float) -> Iterator[str]:
    if share > 0.1:
        yield (
            f"the mean gradient is {share:.0%} of nu; possible causes: training is not at a mode "
            "(anneal the learning rate, or pass centered=True); the last batch of each epoch is "
            "smaller than batch_size, and its noise outweighs the others' (pass the sizes of an "
            f"epoch's batches as batch_size, {_COMPARE})"
        )


def _of_zeros(share: float) -> Iterator[str]:
    if share > 0.01:
        yield (
            f"{share:.0%} of the second moments are exactly 0, where the prior alone sets the "
            "variance; possible causes: dead units, frozen weights (restrict to the others), or "
            "underflow (track_second_moment keeps float32)"
        )


def _of_the_size(effective: float, num_data: float) -> Iterator[str]:
    if effective > 0.5 * num_data:
        yield (
            f"the data are taken to determine {effective:,.0f} parameters with {num_data:,.0f} "
            "examples; possible causes: a diagonal counts correlated parameters many times over "
            "(restrict to the last layer, or tune a temperature below 1); the prior is too weak "
            "(fit_prior_precision); F is too large (compare it with reference=)"
        )


def _of_the_scale(ratio: float) -> Iterator[str]:
    if not 0.5 < ratio < 2.0 and not math.isnan(ratio):
        yield (
            f"F is {ratio:.2g} times the reference; possible causes: wrong numbers (check "
            "num_data, batch_size and loss_scale); gradients that were clipped or decayed before "
            "they were squared (pass tx=, or track_second_moment in front); a last batch smaller "
            "than the others (pass the sizes of an epoch's batches as batch_size); parameters of "
            "another step than the state's, such as the best ones of early stopping (save the "
            "state beside them); a restart of the learning rate that the mean still remembers "
            "(train longer at the small rate)"
        )


def of_the_training(training: Training) -> Iterator[str]:
    """What to think of a decay by the evidence: a fit that is almost perfect, or not at its end."""
    nats, balance, error = (float(np.asarray(number)) for number in training)
    if nats < PERFECT:
        yield (
            f"the loss is {nats:.2g} nats for each parameter that the data determine: they are "
            "fitted almost perfectly, and what is left of the loss is the work of the decay, which "
            "may be too strong; compare with a training without it, on validation data"
        )
    least, most = BALANCED
    outwards, back = balance - 2 * error > most, balance + 2 * error < least
    if outwards or back:
        why = "outwards" if outwards else "back, for the prior precision has risen"
        yield (
            f"the loss and the decay are not in balance ({balance:.2g}, where 1 is a mode of the "
            f"two): the weights are on their way {why}; train longer, or at a larger rate; in a "
            "short training pass start=10 to evidence_weight_decay"
        )


_COMPARE = "or see with reference= whether F is too large"
_HEADINGS = ("leaf", "size", "zero", "F<prior", "effective", "mean grad.", "ratio", "log corr.")


def _row(path: str, leaf: Leaf) -> tuple[str, ...]:
    return (
        path,
        f"{int(leaf.size)}",
        _percent(leaf.zeros),
        _percent(leaf.prior_dominated),
        _number(leaf.effective, ".1f"),
        _percent(leaf.mean_gradient),
        _number(leaf.ratio, ".2f"),
        _number(leaf.log_correlation, ".2f"),
    )


def _cells(row: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    yield row[0].ljust(widths[0])
    yield from (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))


def _percent(value: Array) -> str:
    return _number(value, ".0%")


def _number(value: Array, spec: str = ".0f") -> str:
    return "-" if math.isnan(float(value)) else format(float(value), spec)
