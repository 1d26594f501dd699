"""What `tune` is to tune, and between which bounds."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from l2m_optax._support.checks import complaint

Bounds: TypeAlias = dict[str, tuple[float, float]]

_BOUNDS = {"prior_precision": (1e-4, 1e8), "temperature": (1e-5, 1e3)}


class Logs(NamedTuple):
    """One entry for the logarithm of each value that can be tuned."""

    prior_precision: Any
    temperature: Any


def names_of(over: str | Sequence[str]) -> tuple[str, ...]:
    """The names in `over`, which is one name or several.

    Raises:
      ValueError: if there is no name, a name is there twice, or is unknown.
    """
    names = (over,) if isinstance(over, str) else tuple(over) if isinstance(over, Sequence) else ()
    known = all(isinstance(name, str) and name in Logs._fields for name in names)
    if not names or not known or len(set(names)) < len(names):
        expected = f"names among {', '.join(Logs._fields)}"
        remedy = "pass one of these, or both"
        raise ValueError(complaint("over", expected, reprlib.repr(over), remedy))
    return names


def limits_of(
    names: tuple[str, ...],
    bounds: tuple[float, float] | Mapping[str, tuple[float, float]] | None,
) -> Bounds:
    """The bounds of each name that is tuned; defaults where the user gives none.

    Raises:
      ValueError: if bounds are not pairs with 0 < low < high, or are for other names.
    """
    given = {} if bounds is None else bounds
    if not isinstance(given, Mapping) and len(names) == 1:
        given = {names[0]: given}
    if not isinstance(given, Mapping) or not set(given) <= set(names):
        remedy = "pass bounds={name: (low, high), ...} for what is in over"
        expected = f"pairs for {', '.join(names)}"
        raise ValueError(complaint("bounds", expected, reprlib.repr(bounds), remedy))
    return {name: _pair(given.get(name, _BOUNDS[name])) for name in names}


def _pair(pair: Any) -> tuple[float, float]:
    try:
        low, high = map(float, pair)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 < low < high < math.inf:
        remedy = "pass the lowest and the highest value"
        raise ValueError(complaint("bounds", "0 < low < high", reprlib.repr(pair), remedy))
    return low, high
