"""How much is computed side by side where the user does not say: as much as 32 MiB hold."""

from __future__ import annotations

import math

ENTRIES = 2**23
"""How many numbers may exist at a time: 32 MiB of float32."""


def side_by_side(entries: int, number: int, times: int = 1) -> int:
    """The most of `number` things, each of so many `entries`, that fit; at least one.

    Args:
      entries: how many numbers exist for each.
      number: how many things there are.
      times: how many times `ENTRIES` may exist.
    """
    return min(number, max(1, times * ENTRIES // max(1, entries)))


def equal_parts(entries: int, number: int, times: int = 1) -> int:
    """As `side_by_side`, and no more than as few chunks need: their sizes are about the same."""
    most = side_by_side(entries, number, times)
    return math.ceil(number / math.ceil(number / most))
