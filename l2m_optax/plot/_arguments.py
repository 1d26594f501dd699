"""The checks that pictures share; each returns a NumPy array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from l2m_optax._support.checks import is_concrete
from l2m_optax._support.types import ArrayLike
from l2m_optax.metrics._arguments import require


def column(name: str, values: ArrayLike, size: int | None = None) -> NDArray[np.float64]:
    """The vector in an array of shape (N,) or (N, 1)."""
    array = finite(name, values)
    wanted = "N" if size is None else str(size)
    expected = f"shape ({wanted},) or ({wanted}, 1), not empty"
    narrow = array.ndim == 1 or array.shape[1:] == (1,)
    sized = array.size if size is None else array.size == size
    remedy = "pass one input and one output an example"
    require(narrow and sized, name, expected, array.shape, remedy)
    return array.reshape(-1)


def finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """An array of finite numbers."""
    require_untraced(**{name: values})
    array = np.asarray(values, np.float64)
    bad = int(np.sum(~np.isfinite(array)))
    got = f"{bad} NaN or infinite of {array.size}"
    require(bad == 0, name, "finite numbers", got, "find where the prediction diverged")
    return array


def require_untraced(**values: ArrayLike) -> None:
    """Refuse traced arrays, whose values cannot be drawn."""
    for name, value in values.items():
        require(is_concrete(value), name, "values", "a traced array", "draw outside of jax.jit")
