"""The errors about a transformation that fails, or that has no moment that can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from l2m_optax._support.checks import complaint

TRACK = "chain l2m_optax.track_second_moment(0.999) in front"

_T = TypeVar("_T")


def attempt(function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """What `function`, which runs a transformation, returns.

    Raises:
      TypeError: with what was raised in it.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:
        remedy = f"{TRACK}, or pass the moment yourself: l2m_optax.SecondMoment"
        got = f"{type(error).__name__}: {str(error)[:200]}"
        expected = "an optimizer that runs on gradients"
        raise TypeError(complaint("tx", expected, got, remedy)) from error


def check_transformation(tx: Any) -> None:
    """Refuse what is given no gradients, as the optimizer of kfac-jax, which differentiates itself.

    Raises:
      TypeError: if `tx` has no ``init`` or no ``update``.
    """
    is_wrapper = hasattr(tx, "gradient_transformation")
    if not is_wrapper and not (hasattr(tx, "init") and hasattr(tx, "update")):
        expected = "a transformation of gradients, with init and update"
        remedy = "pass the optimizer of the training, as in tx=optax.adam(1e-3), or the moment "
        remedy += "itself: l2m_optax.SecondMoment, with its basis if it has one"
        raise TypeError(complaint("tx", expected, f"a {type(tx).__name__}", remedy))


def reject(got: str) -> NoReturn:
    """Refuse a transformation whose moment is `got`.

    Raises:
      TypeError: always.
    """
    expected = "a running mean of the squares of the gradients it is given"
    raise TypeError(complaint("tx", expected, got, TRACK))
