"""What is recorded of an array: all of it, or evenly spaced places."""

from __future__ import annotations

import numpy as np


def sampled(array: np.ndarray, most: int) -> np.ndarray:
    """The array, or `most` evenly spaced entries of it, first and last among them."""
    if array.size <= most:
        return array
    return array.ravel()[np.linspace(0, array.size - 1, most).astype(int)]


def thinned(array: np.ndarray, places: int) -> np.ndarray:
    """The array at evenly spaced places of each axis that is longer than their number."""
    for axis, size in enumerate(array.shape):
        if size > places:
            array = np.take(array, np.linspace(0, size - 1, places).astype(int), axis=axis)
    return array
