"""Which predictions to keep so that their mean loss stays below a wanted value."""

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
      coverage: share of the held-out predictions that are kept.
      risk: their mean loss; 0 where none is kept.
    """

    threshold: Array
    coverage: Array
    risk: Array


def selective_threshold(
    uncertainty: ArrayLike, losses: ArrayLike, *, risk: float
) -> SelectiveThreshold:
    """The threshold that keeps most predictions at a mean loss of at most `risk`.

    The threshold is chosen on the same data on which its risk is measured. On new data the risk is
    above the wanted one about as often as below it. So ask for a smaller risk than you can accept,
    and check the threshold on other data.

    Args:
      uncertainty: any score that is higher where the prediction is less certain, of held-out data,
        shape (N,).
      losses: the loss of each prediction, shape (N,): 1 where a class is wrong and 0 where it is
        right, for a wanted error rate.
      risk: the highest mean loss of the kept predictions, above 0.

    Returns:
      A `SelectiveThreshold`; of predictions with equal uncertainty it keeps all or none.

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
    # Of equal uncertainties only the last is a possible threshold.
    last = jnp.append(ascending[1:] > ascending[:-1], True)
    # Sums of losses are rounded, and a risk that is met exactly counts as met.
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
