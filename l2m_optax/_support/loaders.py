"""Batches out of whatever holds them: arrays, lists, numpy loaders, grain, torch, any iterable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from l2m_optax._support.checks import complaint
from l2m_optax._support.types import PyTree


def batches(loader: Iterable[Any], name: str, description: str) -> Iterator[Any]:
    """The batches of a loader as it yields them, with a progress bar if tqdm is installed.

    Raises:
      TypeError: if `loader` cannot be iterated over.
      ValueError: if it yields nothing, or fewer batches than its length says.
    """
    try:
        iterator, expected = iter(loader), _length(loader)
    except TypeError as error:
        remedy = "pass a list of batches, or an object with __iter__"
        raise TypeError(complaint(name, "an iterable", type(loader).__name__, remedy)) from error
    number = 0
    for batch in _with_bar(iterator, expected, description):
        yield batch
        number += 1
    if number == 0 or (expected is not None and number < expected):
        remedy = "look at what stopped it; an iterator that was used before has nothing left"
        wanted = f"{expected} batches" if expected else "at least one batch"
        raise ValueError(complaint(name, wanted, str(number), remedy))


def pairs(loader: Iterable[Any], name: str, description: str) -> Iterator[tuple[PyTree, Any]]:
    """The inputs and targets of each batch, as arrays.

    Raises:
      TypeError: as `batches`; if a batch is no pair.
      ValueError: as `batches`.
    """
    for batch in batches(loader, name, description):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            remedy = (
                "pass a tuple (x, y), or let the loader yield both: [(x[i], y[i]) for i in order]"
            )
            got = f"a {type(batch).__name__}"
            raise TypeError(complaint(name, "pairs (inputs, targets)", got, remedy))
        yield as_arrays(tuple(batch))


def as_arrays(batch: Any) -> PyTree:
    """A tree of arrays: JAX's own as they are, others (torch's, too) by numpy's protocol.

    Raises:
      TypeError: if it holds what is no array of numbers.
    """
    return jax.tree.map(_as_array, batch)


def _length(loader: Any) -> int | None:
    """How many batches it says it holds; loaders over streams do not say."""
    try:
        return len(loader)
    except (TypeError, AttributeError):
        return None


def _with_bar(iterator: Iterator[Any], expected: int | None, description: str) -> Iterator[Any]:
    if expected == 1:  # nothing to wait for
        return iterator
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return iterator
    return iter(tqdm(iterator, description, expected, leave=False))


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind not in "biufV":  # V: bfloat16 and other types that numpy does not know
        remedy = "leave out of the batches what is no number"
        got = f"{type(leaf).__name__} of dtype {array.dtype}"
        raise TypeError(complaint("a batch", "arrays of numbers", got, remedy))
    return array
