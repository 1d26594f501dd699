"""What every fit returns: the posterior, and how the search went."""

from __future__ import annotations

from typing import Any, NamedTuple

from l2m_optax._support.types import Array
from l2m_optax.posterior._posterior import Posterior


class FitInfo(NamedTuple):
    """How a fit went.

    Attributes:
      value: what was found: a scalar, or a dict of scalars by group.
      iterations: number of steps taken, int32 of shape ().
      converged: whether the value is a maximum to within 1e-5 in its logarithm.
      edge: whether the search ran to a bound of its range, so that there is no maximum; then
        `value` is what the posterior had before.
    """

    value: Any
    iterations: Array
    converged: Any
    edge: Any


class Fit(NamedTuple):
    """A fitted posterior and how the fit went.

    Attributes:
      posterior: the posterior with the values found.
      info: a `FitInfo`.
    """

    posterior: Posterior
    info: FitInfo
