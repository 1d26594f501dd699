"""Which leaves are uncertain: `restrict` fixes some, `release` frees them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, path_name
from l2m_optax._support.trees import broadcast, entry_key, statistics_dtype, subtrees
from l2m_optax._support.types import PyTree
from l2m_optax.posterior._posterior import Posterior

Where: TypeAlias = str | int | Callable[[tuple[Any, ...]], bool] | PyTree
"""A choice of leaves: a key, a predicate on paths or a mask."""


def restrict(posterior: Posterior, where: Where) -> Posterior:
    """The posterior over some leaves only; the others become fixed at their trained values.

    Args:
      posterior: a `Posterior`.
      where: the leaves to keep, as one of

        - a key that occurs on their path: a string (``"Dense_2"``) for keys of dictionaries and
          names of attributes, an integer for positions in a sequence, counted from 0, and for keys
          of dictionaries that are integers;
        - a predicate on the path as a tuple of such keys, ``lambda path: path[-1] == "kernel"``;
        - a prefix tree of booleans, as in `optax.masked`.

    Returns:
      A posterior whose second moment is `None` outside of `where`. Nothing is copied.

    Raises:
      TypeError: if a mask holds anything but booleans.
      ValueError: if no leaf is kept, or a mask is no prefix of the parameters.

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
        remedy = "pass a key on one of these paths"
        got = f"none of {_some_paths(posterior.mean)}"
        raise ValueError(complaint("where", "a leaf with a second moment", got, remedy))
    mu = None if moment.mu is None else _keep(moment.mu, posterior.mean, kept)
    basis = None if moment.basis is None else _keep(moment.basis, posterior.mean, kept)
    return posterior._replace(second_moment=moment._replace(nu=nu, mu=mu, basis=basis))


def release(posterior: Posterior, where: Where) -> Posterior:
    """Make fixed leaves free, as uncertain as their prior: there are no data about them.

    Use it for leaves without a second moment (masked, frozen, or not kept by the optimizer). They
    are fixed by default.

    Args:
      posterior: a `Posterior`.
      where: the leaves to make free, as in `restrict`; those that are free stay as they are.

    Returns:
      A posterior whose second moment is zero, a new array, at the fixed leaves in `where`. Their
      distribution is N(θ*, T/δ).

    Raises:
      TypeError: if a mask holds anything but booleans.
      ValueError: if `where` holds no fixed leaf, or a mask is no prefix of the parameters.

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
    freed = [c and h is None for c, h in zip(chosen, held, strict=True)]
    if not any(freed):
        remedy = "restrict the posterior first, or leave it as it is"
        raise ValueError(complaint("where", "a fixed leaf", "none", remedy))

    def with_zeros(tree: PyTree) -> PyTree:
        entries = zip(freed, subtrees(tree, mean), jax.tree.leaves(mean), strict=True)
        leaves = [jnp.zeros(jnp.shape(m), statistics_dtype(m)) if r else x for r, x, m in entries]
        return jax.tree.unflatten(jax.tree.structure(mean), leaves)

    mu = None if moment.mu is None else with_zeros(moment.mu)
    return posterior._replace(second_moment=moment._replace(nu=with_zeros(moment.nu), mu=mu))


def _selection(params: PyTree, where: Any) -> PyTree:
    """A tree of booleans like `params`."""
    if _is_boolean(where) or (not _is_key(where) and not _is_predicate(where)):
        return _masked(params, where)
    holds = where if _is_predicate(where) else lambda keys: where in keys

    def chosen(path: Sequence[Any], _: Any) -> bool:
        return bool(holds(tuple(entry_key(entry) for entry in path)))

    return jax.tree_util.tree_map_with_path(chosen, params)


def _is_key(where: Any) -> bool:
    return isinstance(where, str | int | np.integer)


def _is_predicate(where: Any) -> bool:
    """Whether it is a function. A mask that is an equinox model can be called too: it is a tree."""
    return callable(where) and jax.tree_util.treedef_is_leaf(jax.tree.structure(where))


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _masked(params: PyTree, mask: PyTree) -> PyTree:
    """A prefix tree of booleans, repeated for each leaf of `params`."""
    remedy = "pass a key, a predicate on the path or a prefix tree of booleans, as in optax.masked"
    for path, value in jax.tree_util.tree_leaves_with_path(mask):
        if not _is_boolean(value):
            got = f"{value!r:.40}"
            raise TypeError(complaint(path_name(path, "where"), "True or False", got, remedy))
    try:
        return broadcast(mask, params)
    except ValueError as error:
        got = f"{jax.tree.structure(mask)!s:.200}"
        raise ValueError(complaint("where", "a prefix of the parameters", got, remedy)) from error


def _some_paths(tree: PyTree) -> str:
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return ", ".join(paths[:4]) + more


def _keep(tree: PyTree, params: PyTree, kept: PyTree) -> PyTree:
    pairs = zip(subtrees(tree, params), jax.tree.leaves(kept), strict=True)
    leaves = [leaf if keep else None for leaf, keep in pairs]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
