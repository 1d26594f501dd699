"""Names for the types that every module speaks of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.typing import ArrayLike

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any
"""Nested containers of arrays, as `jax.tree` sees them."""
ApplyFn: TypeAlias = Callable[[PyTree, PyTree], Array]
"""A network: `apply_fn(params, inputs) -> outputs`, with a leading batch axis."""
Likelihood: TypeAlias = Callable[[Array, Array], Array]
"""`likelihood(outputs, targets) -> log-probabilities`, one for each observation."""

__all__ = ["ApplyFn", "Array", "ArrayLike", "Likelihood", "PyTree"]
