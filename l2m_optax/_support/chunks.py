"""How much is computed at a time by default: as much as fits into 32 MiB."""

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
    """Refuse chunk sizes that are not positive integers; `None` is the default.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is below 1.
    """
    if chunk_size is not None:
        check_count("chunk_size", chunk_size)


def side_by_side(entries: int, number: int, times: int = 1) -> int:
    """How many of the items fit into ``times * ENTRIES`` numbers; at least one.

    Args:
      entries: how many numbers one item has.
      number: how many items there are.
      times: how many times `ENTRIES` numbers may exist.
    """
    return min(number, max(1, times * ENTRIES // max(1, entries)))


def equal_parts(entries: int, number: int, times: int = 1) -> int:
    """As `side_by_side`, but chunks of about equal sizes, as few as possible."""
    most = side_by_side(entries, number, times)
    return math.ceil(number / math.ceil(number / most))


def over_chunks(f: Callable[[PyTree], PyTree], xs: PyTree, size: int) -> PyTree:
    """The same as ``jax.vmap(f)(xs)``, for at most `size` entries at a time.

    All chunks have one size, so that `f` is compiled once. The last chunk overlaps the one before
    it; what is computed twice is left out.
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
