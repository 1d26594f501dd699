"""Digests of arrays: the same however an array is sharded, and made where its shards live."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.types import Array


@jax.jit
def digests(arrays: list[Array]) -> list[Array]:
    """Two words of 32 bits an array: sums, modulo 2^32, of its words mixed with their places."""
    return [_digest(x) for x in arrays]


def _digest(x: Array) -> Array:
    words = _words(x)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(
            jnp.uint32, words.shape, axis
        )

    def mixed(seed: int) -> Array:
        # The finaliser of MurmurHash3: each bit of the word and of its place reaches all others.
        h = words ^ ((place + np.uint32(seed)) * np.uint32(0x9E3779B9))
        h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
        return jnp.sum(h ^ (h >> 16), dtype=jnp.uint32)

    return jnp.stack([mixed(1), mixed(0x51ED270B)])


def _words(x: Array) -> Array:
    """The bits of an array as whole numbers of 32 bits; 64 make a last axis of two."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    size = x.dtype.itemsize
    if size >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    narrow = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}[size])
    return narrow.astype(jnp.uint32)
