"""A small memory of verdicts, which keeps no transformation and no array alive."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp

from l2m_optax._support.types import PyTree

_T = TypeVar("_T")


def key_of(tx: Any, params: PyTree) -> Hashable | None:
    """What a verdict depends on: the functions of `tx`, the structure and shapes of `params`.

    The functions are held by weak references, which equal no other once the function is gone.
    `None` if something has no hash or no weak reference, or `tx` is no transformation.
    """
    leaves, treedef = jax.tree.flatten(params)
    try:
        functions = (tx,) if hasattr(tx, "gradient_transformation") else (tx.init, tx.update)
        references = tuple(weakref.ref(function) for function in functions)
        key = (references, type(tx), treedef, tuple(jnp.shape(leaf) for leaf in leaves))
        hash(key)
    except (AttributeError, TypeError):
        return None
    return key


class Memory(Generic[_T]):
    """The values of the keys that were used last."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, Lock()
        self._values: OrderedDict[Hashable, _T] = OrderedDict()

    def verdict(self, tx: Any, params: PyTree, judge: Callable[[Any, PyTree], _T]) -> _T:
        """What `judge` says of `tx` on such parameters; it is asked only if that is not known."""
        key = key_of(tx, params)
        known = None if key is None else self.get(key)
        if known is None:
            known = judge(tx, params)
            if key is not None:
                self.put(key, known)
        return known

    def get(self, key: Hashable) -> _T | None:
        """The value of a key, or `None` if it is not there any more."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: _T) -> None:
        """Remember a value, and forget the one that was used least recently if there are many."""
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)
