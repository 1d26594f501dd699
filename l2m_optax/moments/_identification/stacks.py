"""Stacks of matrices, as layers that `jax.lax.scan` goes through have them.

A law holds for each matrix of a stack by itself. So a stack of L matrices in R runs is probed like
one matrix in R·L runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


def as_runs(array: np.ndarray, axes: int) -> np.ndarray:
    """An array of shape (updates, runs, ...) of which the next axes number further runs.

    Args:
      array: its values after every update.
      axes: how many leading axes of it are a stack.
    """
    runs = math.prod(array.shape[1 : 2 + axes])
    return array.reshape(array.shape[0], runs, *array.shape[2 + axes :])


def squares_of(held: Mapping[str, np.ndarray], stack: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The square matrices of which there is one for each member of a stack, members as runs.

    Args:
      held: arrays of shape (updates, runs, ...), by path.
      stack: the leading axes of the leaf; empty where it is one matrix.
    """
    size = math.prod(stack)
    return {
        path: as_runs(m, m.ndim - 4)
        for path, m in held.items()
        if is_square(m.shape[2:]) and math.prod(m.shape[2:-2]) == size
    }


def is_square(shape: tuple[int, ...]) -> bool:
    """Whether an array is a square matrix, or a stack of them."""
    return len(shape) > 1 and shape[-1] == shape[-2]
