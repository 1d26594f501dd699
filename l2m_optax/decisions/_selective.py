"""Which predictions to keep, so that the mean loss of those kept is what was wished for."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from l2m_optax._support.checks import check_positive
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.metrics._selective import risk_coverage_curve


class SelectiveThreshold(NamedTuple):
    """Keep predictions whose uncertainty is at most `threshold`.

    Attributes:
      threshold: the highest uncertainty to keep; -inf where none can be kept.
      coverage: share of the held-out predictions that this keeps.
      risk: their mean loss; 0 where none is kept.
    """

    threshold: Array
    coverage: Array
    risk: Array


def selective_threshold(
    uncertainty: ArrayLike, losses: ArrayLike, *, risk: float
) -> SelectiveThreshold:
    """The threshold that keeps most predictions at a mean loss of at most `risk`.

    It is chosen on the data it is measured on, so new data will lie a little above the risk about
    as often as below it: ask for less than you can bear, and check on other data.

    Args:
      uncertainty: any number that is higher where less is known, of held-out data, shape (N,).
      losses: the loss of each prediction, shape (N,): 1 where a class is wrong and 0 where it is
        right, for a wanted error rate.
      risk: the highest mean loss of what is kept, above 0.

    Returns:
      A `SelectiveThreshold`; all predictions of equal uncertainty are kept or none.

    Raises:
      ValueError: if shapes do not match, something is NaN, or `risk` is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import decisions
      >>> uncertainty, wrong = jnp.array([0.1, 0.2, 0.6, 0.9]), jnp.array([0.0, 0.0, 1.0, 1.0])
      >>> kept = decisions.selective_threshold(uncertainty, wrong, risk=0.4)
      >>> print(f"{kept.threshold:.1f} {kept.coverage:.2f} {kept.risk:.2f}")
      0.6 0.75 0.33

    Reference:
      Geifman & El-Yaniv, Selective classification for deep neural networks (2017).
    """
    check_positive("risk", risk, "a risk of 0 asks for predictions that are never wrong")
    curve = risk_coverage_curve(uncertainty, losses)
    ascending = jnp.sort(jnp.asarray(uncertainty, curve.risk.dtype))
    # Equal uncertainties end at the last of them: the others are no places to stop.
    last = jnp.append(ascending[1:] > ascending[:-1], True)
    # Sums of losses are rounded; a risk that is met exactly is met.
    rounding = 1e-6 * jnp.abs(jnp.asarray(risk, curve.risk.dtype))
    met = last & (curve.risk <= risk + rounding)
    at = ascending.size - 1 - jnp.argmax(met[::-1])
    some = jnp.any(met)
    unknown = jnp.isnan(curve.risk[-1])
    threshold = jnp.where(some, ascending[at], -jnp.inf)
    coverage = jnp.where(some, curve.coverage[at], 0.0)
    found = jnp.where(some, curve.risk[at], 0.0)
    nan = jnp.where(unknown, jnp.nan, 0.0)
    return SelectiveThreshold(threshold + nan, coverage + nan, found + nan)
