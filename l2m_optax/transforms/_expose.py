"""`expose_second_moment`: an optimizer whose state says what its second moment is."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2m_optax._support.checks import path_name
from l2m_optax._support.types import Array, PyTree
from l2m_optax.moments._declared import identify_declared
from l2m_optax.moments._identification.trace import extended
from l2m_optax.moments._identification.verdict import Identification
from l2m_optax.moments._layouts import with_declared
from l2m_optax.moments._moment import SecondMoment, debiased
from l2m_optax.moments._read import read


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExposedState:
    """The state of a wrapped transformation, which declares its second moment.

    Attributes:
      inner_state: the wrapped transformation's own state.
      count: number of updates of the moment, int32 of shape ().
      identification: what `identify` found in the transformation.
    """

    inner_state: PyTree
    count: Array
    identification: Identification = dataclasses.field(metadata={"static": True})

    @property
    def nu(self) -> PyTree:
        """The debiased second moment, computed at each access; in its basis if it has one."""
        return debiased(self.read_second_moment())

    def read_second_moment(self) -> SecondMoment:
        """The `SecondMoment`, whose arrays are the wrapped state's own."""
        moment = read(self.identification, self.inner_state, count=self.count)
        return with_declared(moment, self.inner_state)


def expose_second_moment(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that its state says what its second moment is.

    Updates are the wrapped transformation's own, bit for bit. When the state is made, `identify`
    runs the transformation once on a few small gradients. What it finds is kept with the state, so
    that `laplace` needs no ``tx=``. If the state does not count its updates, this wrapper counts
    those that changed the moment; `optax.apply_if_finite`, for one, skips some.

    Args:
      tx: any transformation that `identify` reads, or `optax.MultiSteps`.

    Returns:
      A transformation whose state is an `ExposedState`: ``state.nu`` is the debiased second
      moment, and the state can be given to `laplace` as it is.

    Raises:
      TypeError: on ``init``, if `tx` keeps no second moment that can be read.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> tx = l2m.expose_second_moment(optax.adam(1e-3))
      >>> state = tx.init(jnp.ones(2))
      >>> _, state = tx.update(jnp.array([1.0, 3.0]), state, jnp.ones(2))
      >>> print(state.nu)
      [1. 9.]
    """
    inner = extended(tx)

    def init(params: PyTree) -> ExposedState:
        found = identify_declared(tx, params)
        return ExposedState(inner.init(params), jnp.zeros((), jnp.int32), found)

    def update(
        updates: PyTree, state: ExposedState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ExposedState]:
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        moved = _moved(state.identification, state.inner_state, inner_state)
        count = jnp.where(moved, optax.safe_increment(state.count), state.count)
        return updates, dataclasses.replace(state, inner_state=inner_state, count=count)

    return optax.GradientTransformationExtraArgs(init, update)


def _moved(found: Identification, before: PyTree, after: PyTree) -> Array:
    """Whether the moment changed; true without a look if the state counts its updates itself."""
    paths = {moment.path for moment in found.moments if moment.count is None}
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    changes = [jnp.any(old != new) for (p, old), new in pairs if path_name(p, "") in paths]
    return jnp.any(jnp.stack(changes)) if changes else jnp.ones((), bool)
