"""Where adafactor keeps the means over rows and over columns, and what shapes they have."""

from __future__ import annotations

import re

import numpy as np


def rows_and_columns(path: str) -> tuple[str, str]:
    """The paths of the two means that adafactor keeps in place of the moment at `path`.

    The first is the mean over the longest axis, the second the mean over the second longest.
    """
    field = re.compile(r"\.v(?=\[|\.|$)")
    return field.sub(".v_row", path, count=1), field.sub(".v_col", path, count=1)


def factored_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the two means of a parameter of shape `shape`."""
    second, longest = averaged_axes(shape)
    row = tuple(np.delete(shape, longest).tolist())
    return row, tuple(np.delete(shape, second).tolist())


def averaged_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The second longest axis and the longest one, as adafactor orders them."""
    second, longest = (int(axis) for axis in np.argsort(shape)[-2:])
    return second, longest
