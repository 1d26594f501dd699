"""How much is computed side by side where the user does not say: as much as 32 MiB hold."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_count
from l2m_optax._support.types import PyTree

ENTRIES = 2**23
"""How many numbers may exist at a time: 32 MiB of float32."""


def check_chunk_size(chunk_size: int | None) -> None:
    """Refuse what is no number of things side by side; `None` leaves the choice to us.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is below 1.
    """
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)


def side_by_side(entries: int, number: int, times: int = 1) -> int:
    """The most of `number` things, each of so many `entries`, that fit; at least one.

    Args:
      entries: how many numbers exist for each.
      number: how many things there are.
      times: how many times `ENTRIES` may exist.
    """
    return min(number, max(1, times * ENTRIES // max(1, entries)))


def equal_parts(entries: int, number: int, times: int = 1) -> int:
    """As `side_by_side`, and no more than as few chunks need: their sizes are about the same."""
    most = side_by_side(entries, number, times)
    return math.ceil(number / math.ceil(number / most))


def over_chunks(f: Callable[[PyTree], PyTree], xs: PyTree, size: int) -> PyTree:
    """As ``jax.vmap(f)(xs)``, of at most `size` entries side by side.

    All chunks have one size, so that `f` is compiled once: the last begins where the one before has
    not ended, and what it computes again is left out.
    """
    number = len(jax.tree.leaves(xs)[0])
    chunks = math.ceil(number / size)
    if chunks == 1:
        return jax.vmap(f)(xs)
    size = math.ceil(number / chunks)
    again = chunks * size - number

    def chunk(start: PyTree) -> PyTree:
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), xs)
        return jax.vmap(f)(part)

    def joined(y: PyTree) -> PyTree:
        flat = y.reshape(-1, *y.shape[2:])
        whole = flat[: (chunks - 1) * size]
        return jnp.concatenate([whole, flat[len(whole) + again :]]) if again else flat

    starts = np.minimum(np.arange(chunks) * size, number - size).astype(np.int32)
    return jax.tree.map(joined, jax.lax.map(chunk, jnp.asarray(starts)))
