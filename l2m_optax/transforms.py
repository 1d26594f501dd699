"""Optax transformations that expose, or track, a running mean of squared gradients."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2m_optax._checks import complaint
from l2m_optax._types import Array, PyTree
from l2m_optax.second_moment import (
    SecondMoment,
    bias_weight,
    debiased,
    measure_decays,
    second_moment,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExposedState:
    """The state of a wrapped transformation, with its second moment in plain sight.

    Attributes:
      inner_state: the wrapped transformation's own state.
      count: number of updates, int32 of shape ().
      decay: decay of the squares, as measured on the transformation.
      mean_decay: decay of the gradients' mean, or `None` if it keeps none.
    """

    inner_state: PyTree
    count: Array
    decay: float = dataclasses.field(metadata={"static": True})
    mean_decay: float | None = dataclasses.field(metadata={"static": True})

    @property
    def nu(self) -> PyTree:
        """The debiased second moment, computed when it is asked for."""
        return debiased(self.read_second_moment())

    def read_second_moment(self) -> SecondMoment:
        """The `SecondMoment`, whose arrays are the wrapped state's own."""
        return second_moment(
            self.inner_state, decay=self.decay, mean_decay=self.mean_decay, count=self.count
        )


def expose_second_moment(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that its state says what its second moment is.

    Updates are the wrapped transformation's own, bit for bit. Its decays are measured once, when
    the state is made, and are kept beside it, so that nothing has to be told to `laplace`.

    Args:
      tx: any transformation whose state `second_moment` can read.

    Returns:
      A transformation whose state is an `ExposedState`: ``state.nu`` is the debiased second
      moment, and the state can be given to `laplace` as it is.

    Raises:
      TypeError: on ``init``, if `tx` keeps no second moment.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> tx = l2m.expose_second_moment(optax.adam(1e-3))
      >>> state = tx.init(jnp.ones(2))
      >>> _, state = tx.update(jnp.array([1.0, 3.0]), state, jnp.ones(2))
      >>> print(state.nu)
      [1. 9.]
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> ExposedState:
        decay, mean_decay = measure_decays(tx, params)
        return ExposedState(inner.init(params), jnp.zeros((), jnp.int32), decay, mean_decay)

    def update(
        updates: PyTree, state: ExposedState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ExposedState]:
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        count = optax.safe_increment(state.count)
        return updates, dataclasses.replace(state, inner_state=inner_state, count=count)

    return optax.GradientTransformationExtraArgs(init, update)


class TrackSecondMomentState(NamedTuple):
    """State of `track_second_moment`.

    Attributes:
      count: number of updates, int32 of shape ().
      decay: decay of the mean, float32 of shape ().
      nu: the debiased running mean of squared updates, float32, like the parameters.
    """

    count: Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    decay: Array
    nu: PyTree

    def read_second_moment(self) -> SecondMoment:
        """The `SecondMoment`, whose arrays are the state's own."""
        return SecondMoment(self.nu, count=self.count, decay=self.decay)


def track_second_moment(decay: float) -> optax.GradientTransformation:
    r"""Pass updates through unchanged and keep the debiased running mean of their squares.

    $\hat\nu_t = \hat\nu_{t-1} + \frac{1-\beta}{1-\beta^t} (g_t^2 - \hat\nu_{t-1})$, which is Adam's
    $\nu_t / (1 - \beta^t)$ kept debiased. Placed first in `optax.chain` it sees the gradients
    before clipping and decay, and gives SGD, Lion or any other optimizer a second moment:
    ``optax.chain(track_second_moment(0.999), optax.sgd(0.1))``.

    Args:
      decay: β, at least 0 and below 1; the mean looks back over ``(1 + β) / (1 - β)`` updates.

    Returns:
      A transformation whose state is a `TrackSecondMomentState`; its arrays are float32 whatever
      the dtype of the parameters.

    Raises:
      ValueError: if `decay` is outside of [0, 1).

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> tx = optax.chain(l2m.track_second_moment(0.9), optax.sgd(0.1))
      >>> state = tx.init(jnp.ones(2))
      >>> _, state = tx.update(jnp.array([1.0, 3.0]), state)
      >>> print(state[0].nu)
      [1. 9.]
    """
    if not 0 <= decay < 1:
        remedy = "0.999 averages about 2000 updates, 0.9 about 19"
        raise ValueError(complaint("decay", "0 <= decay < 1", str(decay), remedy))

    def init(params: PyTree) -> TrackSecondMomentState:
        nu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=_float32_at_least(p)), params)
        return TrackSecondMomentState(jnp.zeros((), jnp.int32), jnp.float32(decay), nu)

    def update(
        updates: PyTree, state: TrackSecondMomentState, params: PyTree | None = None
    ) -> tuple[PyTree, TrackSecondMomentState]:
        del params
        count = optax.safe_increment(state.count)
        share = (1.0 - decay) / bias_weight(decay, count)

        def follow(nu: Array, g: Array) -> Array:
            return nu + share.astype(nu.dtype) * (jnp.square(g.astype(nu.dtype)) - nu)

        nu = jax.tree.map(follow, state.nu, updates)
        return updates, TrackSecondMomentState(count, state.decay, nu)

    return optax.GradientTransformation(init, update)


def _float32_at_least(array: Array) -> jnp.dtype:
    return jnp.promote_types(jnp.result_type(array), jnp.float32)
