"""What the optimizer's state says of a training whose weight decay the evidence found."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.types import ArrayLike, PyTree
from l2m_optax.transforms import EvidenceWeightDecayState

_UNKNOWN = np.full((), np.nan, np.float32)
"""Not computed, so that `jax_debug_nans` does not take it for a mistake."""


class Training(NamedTuple):
    """Numbers of the one `EvidenceWeightDecayState` inside; NaN where there is none.

    Attributes:
      nats_per_parameter: NaN also where no loss was passed.
      balance: NaN also before the first search.
      balance_error: NaN also before the second search.
    """

    nats_per_parameter: ArrayLike
    balance: ArrayLike
    balance_error: ArrayLike


def training_of(opt_state: PyTree) -> Training:
    r"""What the state says of the training.

    A small value of `nats_per_parameter` shows that the data are fitted almost perfectly. Then what
    is left of the loss is the work of the decay. Where a network is homogeneous of degree k in its
    parameters, the mode and the evidence's δ make $-\partial N L / \partial \log s = \gamma$ in a
    common factor s of them. For separable data the loss falls like $\exp(-m s^k)$, so that
    $\gamma = k N L \log(1/L)$.

    The `balance` is 1 at the mode. Where it is not, the weights are on their way, and the decay is
    that of weights which they will not keep.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_one)
    found = [node for node in nodes if _is_one(node)]
    if len(found) != 1:
        return Training(*[_number(None)] * 3)
    state = found[0]
    return Training(_number(state.nats_per_parameter), state.balance, state.balance_error)


def _number(value: Any) -> ArrayLike:
    """The number, if it is positive, else NaN."""
    if value is None:
        return _UNKNOWN
    return jnp.where(value > 0, value, jnp.nan)


def _is_one(node: Any) -> bool:
    return isinstance(node, EvidenceWeightDecayState)
