"""`track_second_moment`: a running mean of squared updates in front of any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2m_optax._support.checks import check_count, complaint, few, path_name
from l2m_optax._support.trees import statistics_dtype, subtrees
from l2m_optax._support.types import Array, PyTree
from l2m_optax.jacobians._examples import RootMeanSquares
from l2m_optax.moments._eigenbasis import Factors, in_eigenbases, mean_products
from l2m_optax.moments._identification.plain import is_plain
from l2m_optax.moments._moment import SecondMoment, bias_weight
from l2m_optax.transforms._structure import Structure, zero_factors


class TrackSecondMomentState(NamedTuple):
    """State of `track_second_moment`.

    Attributes:
      count: number of updates of the mean, int32 of shape ().
      decay: decay of the mean from one of its updates to the next, float32 of shape ().
      nu: the debiased running mean of squared updates, float32, like the parameters.
      phase: calls since the last update of the mean, int32 of shape (); `None` if each call is one.
      factors: the debiased running means of products of updates, float32: `Factors` or `None` for
        each leaf; `None` where there are none.
    """

    count: Array  # type: ignore[assignment]  # hides tuple.count, as in optax
    decay: Array
    nu: PyTree
    phase: Array | None = None
    factors: PyTree | None = None

    def read_second_moment(self) -> SecondMoment:
        """The `SecondMoment`: the state's own arrays, or the moment in the factors' eigenbases."""
        if self.factors is None:
            return SecondMoment(self.nu, count=self.count, decay=self.decay)
        nu, basis = in_eigenbases(self.nu, self.factors)
        return SecondMoment(nu, count=self.count, decay=self.decay, basis=basis)


def track_second_moment(
    decay: float,
    *,
    structure: Structure = "diagonal",
    every: int = 1,
    max_side: int = 2048,
    max_bytes: int = 2**32,
) -> optax.GradientTransformationExtraArgs:
    r"""Pass updates through unchanged and keep the debiased running mean of their squares.

    $\hat\nu_t = \hat\nu_{t-1} + \frac{1-\beta}{1-\beta^t} (g_t^2 - \hat\nu_{t-1})$, which is Adam's
    $\nu_t / (1 - \beta^t)$ kept debiased. Placed first in `optax.chain` it sees the gradients
    before clipping and decay, and gives SGD, Lion or any other optimizer a second moment:
    ``optax.chain(track_second_moment(0.999), optax.sgd(0.1))``. It is read before any other moment
    of the chain. Inside `optax.MultiSteps` it sees gradients averaged over k batches: pass
    ``tx=``, the `MultiSteps`, which shows k.

    **Correlations.** With a `structure`, products of gradients are kept beside the squares. The
    moment is then read in a basis (`moments.Basis`), and the posterior has correlations inside each
    leaf:

    - ``"kronecker"`` folds a leaf into a matrix G of shape (m, n), by the two groups of
      neighbouring axes that take the least memory, and keeps the means of $G G^\top$ and
      $G^\top G$. The moment is read as their Kronecker product, with the trace of the squares.
    - ``"full"`` keeps the mean of $\mathrm{vec}(g)\,\mathrm{vec}(g)^\top$ for leaves of at most
      `max_side` entries, and is ``"kronecker"`` for others.

    Products take ``4 (m² + n²)`` bytes a leaf in float32, beside the ``4 m n`` of the squares, and
    ``4 (m n)²`` for a full one. A side longer than `max_side` has no product; it stays diagonal.
    Reading takes an eigendecomposition of each product, $O(m^3 + n^3)$, once.

    ``update(..., moment_updates=g)`` squares g instead of the updates: gradients of a batch with
    labels drawn from the model give the true Fisher. If g has one leading axis more than the
    parameters, it is a stack of micro-batches, and the mean of their squares is taken. Then pass
    the `batch_size` of one micro-batch to `laplace`. This way large batches keep their noise. If g
    is a function without arguments that returns gradients, it is called only when the mean is
    updated. With a `structure`, g must be gradients with their signs: `root_mean_square` of
    `second_moment_of_examples` is refused. `optax.MultiSteps` does not average g over its k
    batches: give `laplace` the state inside, ``state.inner_opt_state``, without ``tx=``.

    Args:
      decay: β, at least 0 and below 1; the mean looks back over ``(1 + β) / (1 - β)`` updates.
      structure: ``"diagonal"``, ``"kronecker"`` or ``"full"``; a prefix tree of these, as in
        `optax.partition`; or a function of the path of a leaf, a tuple of keys as in `restrict`,
        and its shape. ``transforms.Stacked("kronecker", 1)`` labels a leaf whose first axis numbers
        matrices, each of which has a basis of its own.
      every: k. The mean is updated at the first call and then at each k-th, with the decay
        $\beta^k$. It looks back over as many calls as with k = 1, at a k-th of the cost.
      max_side: the longest side that has a product.
      max_bytes: the most that all products together may take.

    Returns:
      A transformation whose state is a `TrackSecondMomentState`; its arrays are float32 whatever
      the dtype of the parameters.

    Raises:
      ValueError: if `decay` is outside of [0, 1), or `every`, `max_side` or `max_bytes` below 1.
        From ``init``, if `structure` holds another label or is no prefix of the parameters, or the
        products take more than `max_bytes`. From ``update``, if `moment_updates` are not shaped
        like the parameters, or like stacks of them of one length, or if they are roots of mean
        squares and products are kept.
      TypeError: if `every`, `max_side` or `max_bytes` is no integer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> tx = optax.chain(l2m.track_second_moment(0.9), optax.sgd(0.1))
      >>> state = tx.init(jnp.ones(2))
      >>> _, state = tx.update(jnp.array([1.0, 3.0]), state)
      >>> print(state[0].nu)
      [1. 9.]
      >>> tx = l2m.track_second_moment(0.9, structure="full")
      >>> _, state = tx.update(jnp.array([1.0, 3.0]), tx.init(jnp.ones(2)))
      >>> print(l2m.second_moment(state).nu.round(3))  # the gradient's length is all there is
      [ 0. 10.]

    Reference:
      Martens & Grosse, Optimizing neural networks with Kronecker-factored approximate curvature
      (2015); Gupta et al., Shampoo (2018), whose factors these are.
    """
    _check(decay, every=every, max_side=max_side, max_bytes=max_bytes)
    kept = decay**every

    def init(params: PyTree) -> TrackSecondMomentState:
        nu = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=statistics_dtype(p)), params)
        state = TrackSecondMomentState(jnp.zeros((), jnp.int32), jnp.float32(kept), nu)
        if is_plain():
            return state
        factors = zero_factors(structure, params, max_side, max_bytes)
        return state._replace(
            phase=jnp.zeros((), jnp.int32) if every > 1 else None,
            factors=factors if jax.tree.leaves(factors) else None,
        )

    def update(
        updates: PyTree,
        state: TrackSecondMomentState,
        params: PyTree | None = None,
        *,
        moment_updates: PyTree | Callable[[], PyTree] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, TrackSecondMomentState]:
        del params, extra

        def followed() -> TrackSecondMomentState:
            return _followed(kept, state, _given(state, updates, moment_updates))

        if state.phase is None:
            return updates, followed()
        following = jax.lax.cond(state.phase == 0, followed, lambda: state)
        return updates, following._replace(phase=(state.phase + 1) % every)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(decay: float, **counts: int) -> None:
    if not 0 <= decay < 1:
        remedy = "0.999 averages about 2000 updates, 0.9 about 19"
        raise ValueError(complaint("decay", "0 <= decay < 1", str(decay), remedy))
    for name, number in counts.items():
        check_count(name, number)


def _given(
    state: TrackSecondMomentState,
    updates: PyTree,
    moment_updates: PyTree | Callable[[], PyTree] | None,
) -> PyTree:
    """The gradients that are squared."""
    if moment_updates is None:
        return updates
    given = moment_updates() if callable(moment_updates) else moment_updates
    if not isinstance(given, RootMeanSquares):
        return given
    _check_no_products(state.factors)
    return given.roots


def _check_no_products(factors: PyTree) -> None:
    """Refuse gradients without signs for leaves whose products are kept.

    Raises:
      ValueError: naming the first of these leaves.
    """
    kept = jax.tree_util.tree_leaves_with_path(factors, is_leaf=lambda f: isinstance(f, Factors))
    if kept:
        where = path_name(kept[0][0], "moment_updates")
        remedy = "label this leaf 'diagonal', or pass gradients of micro-batches along a first axis"
        expected, got = "gradients with their signs", "roots of mean squares"
        raise ValueError(complaint(where, expected, got, remedy))


def _followed(
    decay: float, state: TrackSecondMomentState, gradients: PyTree
) -> TrackSecondMomentState:
    """The state after one update of its means."""
    count = optax.safe_increment(state.count)
    share = (1.0 - decay) / bias_weight(decay, count)

    def follow(mean: Array, new: Array) -> Array:
        return mean + share.astype(mean.dtype) * (new - mean)

    stacks = jax.tree_util.tree_map_with_path(_stack, state.nu, gradients)
    _check_alike(stacks)
    nu = jax.tree.map(lambda n, g: follow(n, jnp.mean(jnp.square(g), axis=0)), state.nu, stacks)
    if state.factors is None:
        return state._replace(count=count, nu=nu)
    leaves, treedef = jax.tree.flatten(stacks)
    pairs = zip(subtrees(state.factors, stacks), leaves, strict=True)
    factors = [
        None if held is None else jax.tree.map(follow, held, mean_products(held, g))
        for held, g in pairs
    ]
    return state._replace(count=count, nu=nu, factors=jax.tree.unflatten(treedef, factors))


def _check_alike(stacks: PyTree) -> None:
    """Refuse stacks of different numbers of micro-batches, which have no one batch size.

    Raises:
      ValueError: if the first axes differ.
    """
    sizes = sorted({len(stack) for stack in jax.tree.leaves(stacks)})
    if len(sizes) > 1:
        expected, got = "as many micro-batches of each leaf", few(sizes)
        remedy = "pass gradients like the parameters, or all stacked along one leading axis"
        raise ValueError(complaint("moment_updates", expected, got, remedy))


def _stack(path: Any, nu: Array, g: Array) -> Array:
    """Gradients of one leaf in the dtype of `nu`, with a leading axis of one or more."""
    g = jnp.asarray(g, nu.dtype)
    if g.shape == nu.shape:
        return g[None]
    if g.shape[1:] == nu.shape and g.ndim and g.shape[0]:
        return g
    expected = f"shape {nu.shape}, or a stack of them"
    remedy = "pass gradients like the parameters, or stacked along one leading axis"
    raise ValueError(complaint(path_name(path, "moment_updates"), expected, str(g.shape), remedy))
