"""Which leaves are uncertain: `restrict` fixes some, `release` frees them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint, path_name
from l2m_optax._support.trees import broadcast, statistics_dtype, subtrees
from l2m_optax._support.types import PyTree
from l2m_optax.posterior._posterior import Posterior


def restrict(
    posterior: Posterior, where: str | Callable[[tuple[Any, ...]], bool] | PyTree
) -> Posterior:
    """The posterior over some leaves only; the others become points at their trained values.

    Args:
      posterior: a `Posterior`.
      where: a key that occurs on the path of the leaves to keep (``"Dense_2"``), a predicate on
        the path as a tuple of keys (``lambda path: path[-1] == "kernel"``), or a prefix tree of
        booleans as in `optax.masked`.

    Returns:
      A posterior whose second moment is `None` outside of `where`. Nothing is copied.

    Raises:
      ValueError: if no leaf is kept.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
      >>> moment = l2m.SecondMoment(nu={"body": jnp.ones(2), "head": jnp.ones(2)})
      >>> posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
      >>> l2m.variance(l2m.restrict(posterior, "head"))["body"]
      Array([0., 0.], dtype=float32)
    """
    kept = _selection(posterior.mean, where)
    moment = posterior.second_moment
    nu = _keep(moment.nu, posterior.mean, kept)
    if not jax.tree.leaves(nu):
        paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(posterior.mean)]
        got = f"none of {', '.join(paths[:20])}"
        remedy = "pass a key on one of these paths"
        raise ValueError(complaint("where", "a leaf with a second moment", got, remedy))
    mu = None if moment.mu is None else _keep(moment.mu, posterior.mean, kept)
    return posterior._replace(second_moment=moment._replace(nu=nu, mu=mu))


def release(
    posterior: Posterior, where: str | Callable[[tuple[Any, ...]], bool] | PyTree
) -> Posterior:
    """Points made uncertain again, as uncertain as their prior: nothing is known of them from data.

    For leaves without a second moment (masked, frozen, or not kept by the optimizer), which are
    points unless they are released.

    Args:
      posterior: a `Posterior`.
      where: the leaves to release, as in `restrict`; those that are no points stay as they are.

    Returns:
      A posterior whose second moment is zero, a new array, at the points in `where`: N(θ*, T/δ).

    Raises:
      ValueError: if `where` holds no point.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
      >>> moment = l2m.SecondMoment(nu={"body": None, "head": jnp.ones(2)})
      >>> posterior = l2m.laplace(params, moment, num_data=100, batch_size=10, prior_precision=4.0)
      >>> l2m.variance(l2m.release(posterior, "body"))["body"]
      Array([0.25, 0.25], dtype=float32)
    """
    moment, mean = posterior.second_moment, posterior.mean
    chosen = jax.tree.leaves(_selection(mean, where))
    held = subtrees(moment.nu, mean)
    points = [c and h is None for c, h in zip(chosen, held, strict=True)]
    if not any(points):
        remedy = "restrict the posterior first, or leave it as it is"
        raise ValueError(complaint("where", "a leaf that is a point", "none", remedy))

    def with_zeros(tree: PyTree) -> PyTree:
        entries = zip(points, subtrees(tree, mean), jax.tree.leaves(mean), strict=True)
        leaves = [jnp.zeros(jnp.shape(m), statistics_dtype(m)) if p else x for p, x, m in entries]
        return jax.tree.unflatten(jax.tree.structure(mean), leaves)

    mu = None if moment.mu is None else with_zeros(moment.mu)
    return posterior._replace(second_moment=moment._replace(nu=with_zeros(moment.nu), mu=mu))


def _selection(params: PyTree, where: Any) -> PyTree:
    """A tree of booleans like `params`."""
    if not isinstance(where, str) and not callable(where):
        return broadcast(where, params)

    def holds(path: Sequence[Any], _: Any) -> bool:
        keys = tuple(_plain(key) for key in path)
        return where in keys if isinstance(where, str) else bool(where(keys))

    return jax.tree_util.tree_map_with_path(holds, params)


def _plain(key: Any) -> Any:
    """The dictionary key, index or attribute name inside a JAX path entry."""
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            return getattr(key, name)
    return key


def _keep(tree: PyTree, params: PyTree, kept: PyTree) -> PyTree:
    pairs = zip(subtrees(tree, params), jax.tree.leaves(kept), strict=True)
    leaves = [leaf if keep else None for leaf, keep in pairs]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
