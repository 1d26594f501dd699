"""What the optimizer's state says of a training whose weight decay the evidence found."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from l2m_optax._support.types import Array, PyTree
from l2m_optax.transforms import EvidenceWeightDecayState


def nats_per_parameter(opt_state: PyTree) -> Array:
    r"""That of the one `EvidenceWeightDecayState` inside; NaN where there is none, or no loss.

    A small value shows that the data are fitted almost perfectly. Then what is left of the loss is
    the work of the decay. Where a network is homogeneous of degree k in its parameters, the mode
    and the evidence's δ make $-\partial N L / \partial \log s = \gamma$ in a common factor s of
    them. For separable data the loss falls like $\exp(-m s^k)$, so that
    $\gamma = k N L \log(1/L)$.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_one)
    found = [node.nats_per_parameter for node in nodes if _is_one(node)]
    if len(found) != 1 or found[0] is None:
        return jnp.full((), jnp.nan, jnp.float32)
    return jnp.where(found[0] > 0, found[0], jnp.nan)


def _is_one(node: Any) -> bool:
    return isinstance(node, EvidenceWeightDecayState)
