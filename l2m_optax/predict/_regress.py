"""The mean and the variances of a regression network and its posterior: exact, without a draw."""

from __future__ import annotations

import jax.numpy as jnp

from l2m_optax._support.types import ApplyFn, PyTree
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._outputs import check_rows
from l2m_optax.predict._summaries import Regression
from l2m_optax.predict._variance import output_variance


def regress(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    *,
    chunk_size: int | None = None,
) -> Regression:
    r"""The mean of a new observation, and its variance: of the parameters, and of the noise.

    The linearised network is Gaussian: mean $f(x, \theta^*)$, variance $J \Sigma J^\top$ in the
    parameters and $s^2$ in the noise. It is what `regression` of infinitely many `linearized` draws
    would be. At temperature 0 only the noise is left.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``; hashable.
      posterior: a `Posterior`; its ``noise_variance`` is s².
      inputs: a tree of arrays with a leading axis of N examples.
      chunk_size: as in `output_variance`.

    Returns:
      A `Regression` in the shape of the outputs, in float32 at least.

    Raises:
      ValueError: as `output_variance`.
      TypeError: as `output_variance`.
      FloatingPointError: if an output is NaN or infinite; inside `jax.jit` the result is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones((3, 1)))
      >>> posterior = l2m.laplace(jnp.ones((3, 1)), moment, num_data=2, batch_size=1)
      >>> p = l2m.regress(lambda w, x: x @ w, posterior, jnp.ones((1, 3)))
      >>> print(p.mean, p.epistemic, p.total)
      [[3.]] [[1.]] [[2.]]

    Reference:
      MacKay, Bayesian interpolation (1992).
    """
    epistemic = output_variance(apply_fn, posterior, inputs, chunk_size=chunk_size)
    mean = jnp.asarray(apply_fn(posterior.mean, inputs), epistemic.dtype)
    noise = jnp.broadcast_to(jnp.asarray(posterior.noise_variance, mean.dtype), mean.shape)
    check_rows(mean + epistemic)
    return Regression(mean, noise + epistemic, noise, epistemic)
