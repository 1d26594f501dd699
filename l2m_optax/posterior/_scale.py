"""The scale: what turns a mean squared batch gradient into the precision of all the data.

Every factor of it stands here, and nowhere else.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import (
    check_count,
    check_positive,
    complaint,
    is_concrete,
    is_positive,
    or_nan,
)
from l2m_optax._support.types import ArrayLike


def data_scale(
    num_data: int,
    batch_size: int,
    micro_steps: ArrayLike,
    loss_scale: ArrayLike,
    with_replacement: bool,
) -> jax.Array:
    r"""The scale $\frac{N B k}{c^2} \cdot \frac{N-1}{N - B k}$, float32 of shape ().

    Products are made of Python's integers, or of floats: those of NumPy and JAX overflow in silence
    (1,281,167 images times 2,048 is more than 32 bits hold). A number that is traced and cannot be
    makes it NaN.

    Args:
      num_data: N, number of examples.
      batch_size: B, examples behind one gradient.
      micro_steps: k, gradients that are averaged before they are squared.
      loss_scale: c.
      with_replacement: whether the finite population factor, $(N-1)/(N - B k)$, is left out.
    """
    check_count("num_data", num_data, 2)
    check_count("batch_size", batch_size)
    check_positive("loss_scale", loss_scale, "pass 1 for a mean negative log-likelihood")
    data, batch, steps = int(num_data), int(batch_size), _micro_steps(micro_steps)
    scale: Any = float(data) * float(batch) * steps
    if not with_replacement:
        scale = scale * (float(data - 1) / _left(data, batch, steps))
    factor: Any = or_nan(loss_scale, is_positive)
    factor = float(factor) if is_concrete(factor) else factor
    return _sound(scale / factor / factor)  # the square of a small factor may be 0


def _micro_steps(micro_steps: ArrayLike) -> Any:
    """The one number of micro-steps, an int or else traced; an ensemble holds it several times."""
    if not is_concrete(micro_steps):
        steps = jnp.asarray(micro_steps, jnp.float32)
        return or_nan(steps, lambda k: is_positive(k) & (k == jnp.floor(k)))
    held = np.unique(np.asarray(micro_steps, np.float64))
    if held.size != 1 or not (held[0] >= 1 and held[0].is_integer()):
        got = ", ".join(f"{value:g}" for value in held[:4])
        remedy = "pass the number of gradients that are averaged into one, 1 by default"
        raise ValueError(complaint("micro_steps", "one whole number of at least 1", got, remedy))
    return int(held[0])


def _left(data: int, batch: int, steps: Any) -> Any:
    """N - B·k, which no rounding may take to 0 or below; NaN if k is traced and too large."""
    if not isinstance(steps, int):
        # With N = B·q + r this is B·(q - k) + r, where nothing cancels but small whole numbers.
        whole, rest = divmod(data, batch)
        return or_nan((whole - steps) * float(batch) + float(rest), is_positive)
    if batch * steps >= data:
        expected, got = f"fewer than num_data = {data}", str(batch * steps)
        remedy = (
            "a full batch has no sampling noise, so its squared gradients hold no curvature: "
            "train the last epochs on smaller batches, or track_second_moment on them"
        )
        raise ValueError(complaint("batch_size", expected, got, remedy))
    return float(data - batch * steps)


def _sound(scale: Any) -> jax.Array:
    """The scale in float32, which must be able to hold it."""
    if is_concrete(scale):
        limits = np.finfo(np.float32)
        if not float(limits.tiny) <= scale <= float(limits.max):
            expected = "a data scale that float32 can hold"
            remedy = "the posterior's precision goes as 1/loss_scale²: check it, and num_data"
            raise ValueError(complaint("loss_scale", expected, f"{scale:.3g}", remedy))
    scale = jnp.asarray(scale, jnp.float32)
    return jnp.asarray(or_nan(scale, is_positive))
