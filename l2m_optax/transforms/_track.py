"""`track_second_moment`: a running mean of squared updates in front of any optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2m_optax._support.checks import complaint, path_name
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, PyTree
from l2m_optax.moments._moment import SecondMoment, bias_weight


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


def track_second_moment(decay: float) -> optax.GradientTransformationExtraArgs:
    r"""Pass updates through unchanged and keep the debiased running mean of their squares.

    $\hat\nu_t = \hat\nu_{t-1} + \frac{1-\beta}{1-\beta^t} (g_t^2 - \hat\nu_{t-1})$, which is Adam's
    $\nu_t / (1 - \beta^t)$ kept debiased. Placed first in `optax.chain` it sees the gradients
    before clipping and decay, and gives SGD, Lion or any other optimizer a second moment:
    ``optax.chain(track_second_moment(0.999), optax.sgd(0.1))``. It is read before any other moment
    of the chain. Inside `optax.MultiSteps` it sees gradients averaged over k batches: pass
    ``tx=``, the `MultiSteps`, which shows k.

    ``update(..., moment_updates=)`` squares these gradients instead of the updates: gradients of a
    batch with labels drawn from the model give the true Fisher. A leading axis more than the
    parameters have is a stack of micro-batches, over which the mean of the squares is taken; the
    `batch_size` to give to `laplace` is then that of one micro-batch, so that large batches keep
    their noise.

    Args:
      decay: β, at least 0 and below 1; the mean looks back over ``(1 + β) / (1 - β)`` updates.

    Returns:
      A transformation whose state is a `TrackSecondMomentState`; its arrays are float32 whatever
      the dtype of the parameters.

    Raises:
      ValueError: if `decay` is outside of [0, 1), or, from ``update``, if `moment_updates` are not
        shaped like the parameters, or like a stack of them.

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
        nu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=statistics_dtype(p)), params)
        return TrackSecondMomentState(jnp.zeros((), jnp.int32), jnp.float32(decay), nu)

    def update(
        updates: PyTree,
        state: TrackSecondMomentState,
        params: PyTree | None = None,
        *,
        moment_updates: PyTree | None = None,
        **extra: Any,
    ) -> tuple[PyTree, TrackSecondMomentState]:
        del params, extra
        count = optax.safe_increment(state.count)
        share = (1.0 - decay) / bias_weight(decay, count)

        def follow(path: Any, nu: Array, g: Array) -> Array:
            return nu + share.astype(nu.dtype) * (_mean_square(path, nu, g) - nu)

        squared = updates if moment_updates is None else moment_updates
        nu = jax.tree_util.tree_map_with_path(follow, state.nu, squared)
        return updates, TrackSecondMomentState(count, state.decay, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _mean_square(path: Any, nu: Array, g: Array) -> Array:
    """The squares of `g` in the dtype of `nu`, averaged over a leading axis if it has one more."""
    squares = jnp.square(jnp.asarray(g, nu.dtype))
    if squares.shape == nu.shape:
        return squares
    if squares.shape[1:] == nu.shape and squares.ndim and squares.shape[0]:
        return jnp.mean(squares, axis=0)
    expected = f"shape {nu.shape}, or a stack of them"
    remedy = "pass gradients like the parameters, or stacked along one leading axis"
    where = path_name(path, "moment_updates")
    raise ValueError(complaint(where, expected, str(squares.shape), remedy))
