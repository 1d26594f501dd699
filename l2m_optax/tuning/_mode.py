"""Temperature 0, the mode: a candidate in every search that predicts held-out data."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.search import Minimum, rounding
from l2m_optax._support.types import Array, ArrayLike


class Verdict(NamedTuple):
    """What a search came to.

    Attributes:
      mode: whether temperature 0 is as good as the best that was found, so that it is taken.
      lost: whether no loss is finite, so that everything is left as it was.
    """

    mode: Array
    lost: Array


@jax.jit
def judge(best: Minimum, mode_loss: ArrayLike) -> Verdict:
    """Compare the best of a search with the mode; losses that differ by rounding only are equal."""
    mode = jnp.isfinite(mode_loss) & (mode_loss <= best.value + rounding(best.value))
    return Verdict(mode, ~mode & ~jnp.isfinite(best.value))


@jax.jit
def temperature_after(verdict: Verdict, log_temperature: Array, before: ArrayLike) -> Array:
    """The temperature to keep: 0, what was there before, or what was found."""
    found = jnp.where(verdict.lost, before, jnp.exp(log_temperature))
    return jnp.where(verdict.mode, 0.0, found)
