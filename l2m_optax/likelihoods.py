"""Log-likelihoods of single observations, given a network's outputs.

Each takes outputs and targets with a leading axis of examples; outputs may have axes of draws in
front of it. Nothing else is broadcast: targets (N,) against outputs (N, 1) are refused. Each
returns one number for each observation, in nats and in float32 or wider.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, ArrayLike


def categorical(logits: ArrayLike, labels: ArrayLike) -> Array:
    r"""$\log \mathrm{softmax}(z)_y$, for logits z and a label y.

    Args:
      logits: z, shape (..., N, K), or (..., N, T, K) for T labels an example.
      labels: y, integers of shape (N,), or (N, T): each is an observation.

    Returns:
      Shape (..., N), or (..., N, T).

    Raises:
      ValueError: if the labels do not have the shape of the logits without their last axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import likelihoods
      >>> print(likelihoods.categorical(jnp.zeros((1, 2)), jnp.array([1])))
      [-0.6931472]
    """
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, statistics_dtype(logits)))
    _check_shapes("labels", log_probs.shape[:-1], labels)
    index = jnp.broadcast_to(labels, log_probs.shape[:-1])[..., None]
    return jnp.take_along_axis(log_probs, index, axis=-1)[..., 0]


def gaussian(mean: ArrayLike, targets: ArrayLike, variance: ArrayLike = 1.0) -> Array:
    r"""$-\tfrac12 \log(2 \pi \sigma^2) - (y - \mu)^2 / 2\sigma^2$, entry by entry.

    Args:
      mean: μ, the outputs, shape (..., N, D).
      targets: y, shape (N, D).
      variance: σ², broadcast against them.

    Returns:
      Shape (..., N, D).

    Raises:
      ValueError: if the targets do not have the shape of the outputs, axes of draws aside.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import likelihoods
      >>> print(likelihoods.gaussian(jnp.zeros((1, 1)), jnp.ones((1, 1))))
      [[-1.4189385]]
    """
    m = jnp.asarray(mean, statistics_dtype(mean, targets, variance))
    _check_shapes("targets", m.shape, targets)
    v = jnp.asarray(variance, m.dtype)
    residuals = jnp.broadcast_to(targets, m.shape) - m
    return -0.5 * (jnp.log(2 * math.pi * v) + jnp.square(residuals) / v)


def heteroscedastic_gaussian(outputs: ArrayLike, targets: ArrayLike) -> Array:
    r"""`gaussian` with a noise variance for every input, which is an output of the network.

    Train such a network with its negative mean as the loss; `laplace` then needs no ``loss_scale``.

    Args:
      outputs: shape (..., N, D, 2), or (..., N, 2) for targets of shape (N,). The last axis holds
        the mean and the logarithm of the variance.
      targets: shape (N, D), or (N,).

    Returns:
      Shape (..., N, D), or (..., N).

    Raises:
      ValueError: if the targets do not have the shape of the outputs without their last axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import likelihoods
      >>> sure, unsure = [0.0, 0.0], [0.0, 2.0]
      >>> outputs, targets = jnp.array([sure, unsure]), jnp.array([0.0, 3.0])
      >>> first, second = likelihoods.heteroscedastic_gaussian(outputs, targets)
      >>> print(f"{first:.2f} {second:.2f}")
      -0.92 -2.53

    Reference:
      Nix & Weigend, Estimating the mean and variance of the target probability distribution (1994).
    """
    pairs = jnp.asarray(outputs, statistics_dtype(outputs, targets))
    mean, log_variance = pairs[..., 0], pairs[..., 1]
    return gaussian(mean, targets, jnp.exp(log_variance))


def _check_shapes(name: str, outputs: tuple[int, ...], targets: ArrayLike) -> None:
    """Refuse targets of another shape than the outputs, which may have axes of draws in front."""
    shape = jnp.shape(targets)
    if shape != outputs[max(len(outputs) - len(shape), 0) :]:
        remedy = (
            f"pass {name}[..., None] or {name}[..., 0] where an axis of size 1 is all that differs"
        )
        expected = f"shape {outputs}, or this without axes of draws in front"
        raise ValueError(complaint(name, expected, str(shape), remedy))
