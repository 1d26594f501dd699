"""What every fit returns: the posterior, and how the search went."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

from l2m_optax._support.checks import complaint, is_concrete
from l2m_optax._support.types import Array
from l2m_optax.posterior._posterior import Posterior

CHECK_TARGETS = "look whether these targets belong to these inputs"
"""The remedy where no value of a range predicts validation data."""


class FitInfo(NamedTuple):
    """How a fit went.

    Attributes:
      value: what the posterior now has: a scalar, or a dict of scalars by group or by name.
      iterations: number of steps or candidates, int32 of shape ().
      converged: whether the value is a maximum to within the tolerance of the search.
      edge: whether the search ran to a bound of its range, or found nothing finite, so that there
        is no maximum. A temperature of 0, the mode, is such a bound.
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


def warn_if(
    happened: Array, where: str, expected: str, got: str, remedy: str, stacklevel: int = 3
) -> None:
    """Tell the caller of a public function what a fit could not do; silent under `jit`."""
    if is_concrete(happened) and bool(happened):
        warnings.warn(complaint(where, expected, got, remedy), UserWarning, stacklevel=stacklevel)
