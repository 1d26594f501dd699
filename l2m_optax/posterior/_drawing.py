"""Draws of the free leaves, leaf by leaf: the standard normals, scaled, rotated and moved."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_count, is_concrete
from l2m_optax._support.shardings import explicit_sharding
from l2m_optax._support.trees import broadcast, fill, free, statistics_dtype
from l2m_optax._support.types import Array, PyTree
from l2m_optax.moments._basis import bases, rotate_back
from l2m_optax.posterior._posterior import Posterior, free_mean, free_variance


def draws(key: Array, posterior: Posterior, num_samples: int, antithetic: bool = False) -> PyTree:
    """S draws, in the parameters' own dtype; `None` at fixed leaves."""
    return _leaf_by_leaf(_moved, key, posterior, num_samples, antithetic)


def deviations(
    key: Array, posterior: Posterior, num_samples: int, antithetic: bool = False
) -> PyTree:
    """S draws less the mean, in the parameters' own dtype; `None` at fixed leaves."""
    return _leaf_by_leaf(_deviation, key, posterior, num_samples, antithetic)


def keys_and_signs(key: Array, num_samples: int, antithetic: bool = False) -> tuple[Array, Array]:
    """One key and one sign a draw; mirror images share a key and differ in sign."""
    check_count("num_samples", num_samples)
    keys = jax.random.split(key, _independent(num_samples, antithetic))
    if not antithetic:
        return keys, jnp.ones(num_samples)
    signs = jnp.repeat(jnp.array([1.0, -1.0]), keys.shape[0])
    return jnp.concatenate([keys, keys])[:num_samples], signs[:num_samples]


def _independent(num_samples: int, antithetic: bool) -> int:
    """How many of the draws are no mirror images of others."""
    return (num_samples + 1) // 2 if antithetic else num_samples


def draw(key: Array, posterior: Posterior, sign: Array | float = 1.0) -> PyTree:
    """One of `draws`; fixed leaves are the trained values themselves."""
    return fill(_one_of_each(_moved, key, posterior, sign), posterior.mean)


def deviation(key: Array, posterior: Posterior, sign: Array | float = 1.0) -> PyTree:
    """One of `deviations`."""
    return _one_of_each(_deviation, key, posterior, sign)


OfNormals: TypeAlias = Callable[[Array, Posterior], Array]
"""A function of standard normals, with any leading axes, and a posterior of one leaf."""


@jax.jit
def _deviation(normals: Array, leaf: Posterior) -> Array:
    return _spread(normals, leaf).astype(jnp.result_type(leaf.mean))


@jax.jit
def _moved(normals: Array, leaf: Posterior) -> Array:
    mean = jnp.asarray(leaf.mean, statistics_dtype(leaf.mean))
    mean = jnp.expand_dims(mean, range(normals.ndim - mean.ndim))
    return (mean + _spread(normals, leaf)).astype(jnp.result_type(leaf.mean))


def _spread(normals: Array, leaf: Posterior) -> Array:
    r"""Standard normals as draws of the deviation, $Q \sqrt{\sigma^2}\, \epsilon$."""

    def spread(normals: Array) -> Array:
        return rotate_back(leaf.second_moment.basis, jnp.sqrt(free_variance(leaf)) * normals)

    for _ in range(normals.ndim - jnp.ndim(leaf.mean)):
        spread = jax.vmap(spread)
    return spread(normals)


def _one_of_each(
    of_normals: OfNormals, key: Array, posterior: Posterior, sign: Array | float
) -> PyTree:
    """One draw of all leaves, as a part of the caller's compiled program."""
    leaves = one_leaf_each(posterior)
    keys = jax.random.split(key, len(leaves))
    drawn = [of_normals(sign * _normal(k, x), x) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(free_mean(posterior)), drawn)


def _leaf_by_leaf(
    of_normals: OfNormals, key: Array, posterior: Posterior, num_samples: int, antithetic: bool
) -> PyTree:
    """Many draws, leaf by leaf: leaves of one shape, dtype and sharding share a small program.

    A single program would compile the generator of random bits once for each leaf: more than a
    minute for 500 leaves.
    """
    check_count("num_samples", num_samples)
    leaves = one_leaf_each(posterior)
    keys = _keys_of_leaves(key, num_samples, antithetic, len(leaves))
    drawn = []
    for i, leaf in enumerate(leaves):
        if _on_one_device(leaf.mean):
            normals = _flat_normals(keys, i, jnp.size(leaf.mean), _dtype(leaf))
            drawn.append(_of_flat(of_normals, normals, leaf, num_samples))
        else:
            drawn.append(_in_place(of_normals, keys, i, leaf, num_samples))
    return jax.tree.unflatten(jax.tree.structure(free_mean(posterior)), drawn)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _keys_of_leaves(key: Array, num_samples: int, antithetic: bool, number: int) -> Array:
    """The keys of `_one_of_each`, a row for each draw that is no mirror image."""
    keys = jax.random.split(key, _independent(num_samples, antithetic))
    return jax.vmap(lambda k: jax.random.split(k, number))(keys)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _flat_normals(keys: Array, index: Array, size: int, dtype: jnp.dtype) -> Array:
    """The numbers of `_normal`, a flat row for each key: flat arrays compile in half the time."""
    return jax.vmap(lambda k: jax.random.normal(k, (size,), dtype))(keys[:, index])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _of_flat(of_normals: OfNormals, normals: Array, leaf: Posterior, num_samples: int) -> Array:
    shaped = normals.reshape(len(normals), *jnp.shape(leaf.mean))
    return of_normals(_mirrored(shaped, num_samples), leaf)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _in_place(
    of_normals: OfNormals, keys: Array, index: Array, leaf: Posterior, num_samples: int
) -> Array:
    """Draws of a leaf that may be sharded: each device makes the numbers of its own part."""
    normals = jax.vmap(lambda k: _normal(k, leaf))(keys[:, index])
    # Without the barrier XLA fuses the two steps, and rounds otherwise than on one device.
    normals = jax.lax.optimization_barrier(normals)  # type: ignore[no-untyped-call]
    return of_normals(_mirrored(normals, num_samples), leaf)


def _mirrored(normals: Array, num_samples: int) -> Array:
    """`num_samples` normals: if there are fewer, their mirror images follow."""
    if len(normals) == num_samples:
        return normals
    return jnp.concatenate([normals, -normals])[:num_samples]


def _normal(key: Array, leaf: Posterior) -> Array:
    """Standard normals like a leaf, in its own shape, so that they are sharded as it is."""
    sharding, shape = explicit_sharding(leaf.mean), jnp.shape(leaf.mean)
    if sharding is None:
        return jax.random.normal(key, shape, _dtype(leaf))
    return jax.random.normal(key, shape, _dtype(leaf), out_sharding=sharding)


def _dtype(leaf: Posterior) -> jnp.dtype:
    return statistics_dtype(leaf.second_moment.nu)


def _on_one_device(leaf: Array) -> bool:
    """Whether a leaf is known to lie on one device; false if it is traced."""
    return isinstance(leaf, np.ndarray) or (
        is_concrete(leaf) and len(leaf.sharding.device_set) == 1
    )


def one_leaf_each(posterior: Posterior) -> list[Posterior]:
    """A posterior for each free leaf; its trees are single leaves."""
    mean, moment = free_mean(posterior), posterior.second_moment

    def leaves(tree: PyTree | None) -> list[Any]:
        return [None] * len(means) if tree is None else jax.tree.leaves(free(tree, mean))

    def values(prefix: PyTree) -> list[Any]:
        return jax.tree.leaves(broadcast(prefix, mean))

    means = jax.tree.leaves(mean)
    moments = [
        moment._replace(nu=nu, mu=mu, weight=weight, offset=offset, basis=basis)
        for nu, mu, weight, offset, basis in zip(
            leaves(moment.nu),
            leaves(moment.mu),
            values(moment.weight),
            values(moment.offset),
            bases(moment.basis, mean),
            strict=True,
        )
    ]
    parts = zip(
        means,
        moments,
        values(posterior.prior_precision),
        leaves(posterior.prior_mean),
        strict=True,
    )
    return [
        posterior._replace(mean=m, second_moment=n, prior_precision=d, prior_mean=p)
        for m, n, d, p in parts
    ]
