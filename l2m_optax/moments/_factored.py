"""Where adafactor keeps the means over rows and over columns, and what shapes they have."""

from __future__ import annotations

import re

import numpy as np


def rows_and_columns(path: str) -> tuple[str, str]:
    """Where adafactor keeps the mean over columns and over rows of what is not at `path`."""
    field = re.compile(r"\.v(?=\[|\.|$)")
    return field.sub(".v_row", path, count=1), field.sub(".v_col", path, count=1)


def factored_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of both: the two longest axes are averaged over, the longest for the rows."""
    second, longest = (int(axis) for axis in np.argsort(shape)[-2:])
    row = tuple(np.delete(shape, longest).tolist())
    return row, tuple(np.delete(shape, second).tolist())
