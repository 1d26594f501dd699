"""Which updates of an optimizer move one of its arrays, in terms of its count."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Advance(NamedTuple):
    """When an array moves: at the count `first`, and then each time the count has grown by `every`.

    The count is the one after the update, less its first value.
    """

    first: int = 1
    every: int = 1


def moved(n: np.ndarray) -> np.ndarray:
    """For each update whether an array, of shape (updates + 1, ...), is another one after it."""
    return np.any(n[1:] != n[:-1], axis=tuple(range(1, n.ndim)))


def advance_of(moves: np.ndarray, counts: np.ndarray | None) -> Advance | None:
    """When an array moves, or `None` if no rule of this kind says it.

    Args:
      moves: what `moved` says.
      counts: the count after each update, or `None` if the state does not count.
    """
    if np.all(moves):
        return Advance()
    if counts is None or np.sum(moves) < 2:
        return None
    first, second = counts[moves][:2]
    expected = (counts >= first) & ((counts - first) % (second - first) == 0)
    return Advance(int(first), int(second - first)) if np.array_equal(moves, expected) else None
