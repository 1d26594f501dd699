"""Optax transformations that expose, or track, a running mean of squared gradients."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2m_optax._checks import complaint, path_name
from l2m_optax._moment import SecondMoment, bias_weight, debiased
from l2m_optax._probe import extended
from l2m_optax._read import read
from l2m_optax._tree import statistics_dtype
from l2m_optax._types import Array, PyTree
from l2m_optax.identify import Identification, identify


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExposedState:
    """The state of a wrapped transformation, with its second moment in plain sight.

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
        """The debiased second moment, computed when it is asked for."""
        return debiased(self.read_second_moment())

    def read_second_moment(self) -> SecondMoment:
        """The `SecondMoment`, whose arrays are the wrapped state's own."""
        return read(self.identification, self.inner_state, count=self.count)


def expose_second_moment(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that its state says what its second moment is.

    Updates are the wrapped transformation's own, bit for bit. It is run on a few small gradients
    once, when the state is made, and what `identify` finds is kept beside the state, so that
    nothing has to be told to `laplace`. Where the state does not count its updates, they are
    counted here: those that changed the moment, for `optax.apply_if_finite` and its kin pass some
    over.

    Args:
      tx: any transformation that `identify` can make out, or `optax.MultiSteps`.

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
        found = identify(tx, params)
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
    """Whether the moment changed; looked at only where the state does not count by itself."""
    paths = {moment.path for moment in found.moments if moment.count is None}
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    changes = [jnp.any(old != new) for (p, old), new in pairs if path_name(p, "") in paths]
    return jnp.any(jnp.stack(changes)) if changes else jnp.ones((), bool)


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
    ``optax.chain(track_second_moment(0.999), optax.sgd(0.1))``.

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
