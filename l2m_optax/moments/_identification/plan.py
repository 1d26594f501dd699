"""What gradients a transformation is given when it is probed, and when its counts jump ahead."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

SCALES = (1.0, 1e-6, 1e6, 3.0, 0.3)
"""The size of the gradients of each run."""
SIZES = (1.0, 1.0, 2e-2, 1.0, 1e-4, 1.0, 0.5, 1.0)
"""The size of the gradients of each update; the small ones make a mean fall, a maximum stay."""
JUMPS = {5: 1000, 6: 100_000, 7: 1_000_000_000}
"""By how much the counts jump ahead before an update: what is on a schedule shows it."""
UNDISTURBED = min(JUMPS)
"""The updates before the first jump, in every plan."""


class Plan(NamedTuple):
    """What gradients are given to a transformation.

    Attributes:
      scales: their size in each run.
      sizes: their size in each update.
      jumps: by how much the counts jump ahead before an update.
      places: of longer axes so many places are recorded; `None` if arrays are recorded as they are.
    """

    scales: tuple[float, ...] = SCALES
    sizes: tuple[float, ...] = SIZES
    jumps: Mapping[int, int] = MappingProxyType(JUMPS)
    places: int | None = None
