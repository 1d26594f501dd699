"""The scale: what turns a mean squared batch gradient into the precision of all the data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_count, check_positive, complaint, is_concrete
from l2m_optax._support.types import ArrayLike


def data_scale(
    num_data: int,
    batch_size: int,
    micro_steps: ArrayLike,
    loss_scale: ArrayLike,
    with_replacement: bool,
) -> jax.Array:
    check_count("num_data", num_data, 2)
    check_count("batch_size", batch_size)
    batch: Any = batch_size * micro_steps
    check_positive("loss_scale", loss_scale, "pass 1 for a mean negative log-likelihood")
    correction: Any = 1.0
    if not with_replacement:
        _check_sampling_noise(num_data, batch)
        correction = (num_data - 1) / (num_data - batch)
    scale = num_data * batch * correction / jnp.square(jnp.asarray(loss_scale, jnp.float32))
    return jnp.asarray(scale, jnp.float32)


def _check_sampling_noise(num_data: int, batch_size: ArrayLike) -> None:
    if is_concrete(batch_size) and np.any(np.asarray(batch_size) >= num_data):
        raise ValueError(
            complaint(
                "batch_size",
                f"fewer than num_data = {num_data}",
                str(batch_size),
                "a full batch has no sampling noise, so its squared gradients hold no curvature: "
                "train the last epochs on smaller batches, or track_second_moment on them",
            )
        )
