"""How much is computed side by side where the user does not say: as much as 32 MiB hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

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


def over_chunks(
    function: Callable[[PyTree], Any], inputs: PyTree, chunk_size: int, axis: int = 0
) -> Any:
    """`function` of so many rows of `inputs` at a time, joined along an axis of its result."""
    number = len(jax.tree.leaves(inputs)[0])
    whole = number - number % chunk_size
    parts = []
    if whole:
        stacked = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk_size, *x.shape[1:]), inputs)
        mapped = jax.lax.map(function, stacked)
        parts.append(jax.tree.map(lambda x: _unstacked(x, axis), mapped))
    if whole < number:
        parts.append(function(jax.tree.map(lambda x: x[whole:], inputs)))
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis), *parts)


def _unstacked(x: jax.Array, axis: int) -> jax.Array:
    """The leading axis of chunks joined with the axis of rows."""
    moved = jnp.moveaxis(x, 0, axis)
    return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])
