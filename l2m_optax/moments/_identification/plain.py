"""While a transformation is identified, what tracks more than a mean of squares keeps that alone.

`identify` cuts large leaves and runs few updates. Products of a gradient with itself, whose program
goes by the sizes of the leaves, and a mean that takes every k-th gradient only, would stand in its
way. The state says itself that it holds them, so that nothing has to be found out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_PLAIN: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_tracking() -> Iterator[None]:
    """States that are made inside are those of ``track_second_moment(decay ** every)``."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def is_plain() -> bool:
    """Whether a state that is made now is to hold a mean of squares alone."""
    return _PLAIN.get()
