"""The posterior as a pytree, its precision and its variance.

It is a Gaussian with the mean θ*. In the basis of each leaf, most often that of the parameters, its
coordinates are independent and have the variances T / (F + δ). The pytree holds the arrays that the
optimizer already has. Each function that needs the precision computes it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import broadcast, fill, free, statistics_dtype
from l2m_optax._support.types import ArrayLike, PyTree
from l2m_optax.moments._basis import bases, diagonal, over_leaves, rotate_into
from l2m_optax.moments._moment import SecondMoment, debiased, leading, mean_variance_ratio


class Posterior(NamedTuple):
    """A Gaussian posterior, independent in the basis of each leaf, as a pytree.

    Attributes:
      mean: the trained parameters: the arrays that were passed in, not copies. After
        `tuning.calibrate_logits` those of the last layer are multiplied by a number.
      second_moment: the running mean of squared gradients, and the basis that it is in; leaves that
        are `None` are fixed.
      data_scale: the factor from a mean squared gradient to the data's precision F, shape ().
      prior_precision: δ, a number of shape (), or a prefix tree of `mean` of such numbers.
      prior_mean: θ0, like `mean` in structure and shapes; `None` for zero.
      temperature: T, which multiplies the covariance, shape (); 0 is exactly the mode.
      noise_variance: variance of Gaussian observations, shape (); 1 unless it was fitted.
      num_data: N, number of training examples, shape (); `None` where unknown.
      training_loss: L, the mean negative log-likelihood of a training observation at the mode, in
        nats, shape (); `None` where unknown, as after `tuning.calibrate_logits`.
        `decisions.novelty` takes its temperature from it.
    """

    mean: PyTree
    second_moment: SecondMoment
    data_scale: ArrayLike
    prior_precision: ArrayLike | PyTree
    prior_mean: PyTree | None
    temperature: ArrayLike
    noise_variance: ArrayLike
    num_data: ArrayLike | None = None
    training_loss: ArrayLike | None = None


def check_posterior(posterior: Any, remedy: str) -> None:
    """Refuse an argument that is no `Posterior`: most often two are swapped.

    Raises:
      TypeError: if it is none.
    """
    if not isinstance(posterior, Posterior):
        got = f"a {type(posterior).__name__}"
        raise TypeError(complaint("posterior", "a Posterior", got, remedy))


def data_precision(posterior: Posterior) -> PyTree:
    r"""The data's precision: $F = \text{data\_scale} \cdot \hat\nu / s^4$, without the prior.

    Args:
      posterior: a `Posterior`.

    Returns:
      A tree like the mean, in float32 at least; `None` at fixed leaves. If the second moment has a
      basis, these are the precisions along that basis.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.array([0.0, 1.0]))
      >>> posterior = l2m.laplace(jnp.zeros(2), moment, num_data=101, batch_size=1)
      >>> l2m.posterior.data_precision(posterior)
      Array([  0., 101.], dtype=float32)
    """
    scale = posterior.data_scale / jnp.square(posterior.noise_variance)
    return jax.tree.map(lambda nu: scale * nu, _gradient_variance(posterior.second_moment))


@jax.jit
def precision(posterior: Posterior) -> PyTree:
    r"""The posterior's precision, $(F + \delta) / T$; infinite at fixed leaves, and at T = 0.

    Where the second moment has a basis Q, it is the diagonal of $Q\,\mathrm{diag}(p)\,Q^\top$.

    Args:
      posterior: a `Posterior`.

    Returns:
      A tree like the mean, in float32 at least.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.array([0.0, 1.0]))
      >>> posterior = l2m.laplace(jnp.zeros(2), moment, num_data=101, batch_size=1)
      >>> l2m.posterior.precision(posterior)
      Array([  1., 102.], dtype=float32)
    """
    return _with_fixed(_diagonals(posterior, free_precision(posterior)), posterior.mean, jnp.inf)


@jax.jit
def variance(posterior: Posterior) -> PyTree:
    r"""The posterior's variance, $T / (F + \delta)$; zero at fixed leaves, and at T = 0.

    It is the variance of each parameter. If the second moment has a basis Q, in which variances
    are $\sigma^2$, it is the diagonal of $Q\,\mathrm{diag}(\sigma^2)\,Q^\top$.

    Args:
      posterior: a `Posterior`.

    Returns:
      A tree like the mean, in float32 at least.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.array([0.0, 3.0]))
      >>> posterior = l2m.laplace(jnp.zeros(2), moment, num_data=101, batch_size=1)
      >>> l2m.variance(posterior)[0]
      Array(1., dtype=float32)
    """
    return _with_fixed(_diagonals(posterior, free_variance(posterior)), posterior.mean, 0.0)


def are_correlated(posterior: Posterior) -> list[bool]:
    """For each free leaf whether its parameters are correlated: whether a basis turns it."""
    found = bases(posterior.second_moment.basis, free_mean(posterior))
    return [one is not None and any(side is not None for side in one) for one in found]


def free_mean(posterior: Posterior) -> PyTree:
    """The means of the free leaves; `None` at fixed ones."""
    return free(posterior.mean, posterior.second_moment.nu)


def free_precision(posterior: Posterior) -> PyTree:
    """The precision along the basis of each leaf, with `None` at fixed leaves."""
    return jax.tree.map(lambda p: p / posterior.temperature, _untempered(posterior))


def free_variance(posterior: Posterior) -> PyTree:
    """The variance along the basis of each leaf, with `None` at fixed leaves."""
    return jax.tree.map(lambda p: posterior.temperature / p, _untempered(posterior))


def free_deviation(posterior: Posterior) -> PyTree:
    """The mean less the prior's, θ* - θ0, in float32 at least; `None` at fixed leaves."""
    mean = free_mean(posterior)
    mean = jax.tree.map(lambda m: jnp.asarray(m, statistics_dtype(m)), mean)
    if posterior.prior_mean is None:
        return mean
    return jax.tree.map(jnp.subtract, mean, free(posterior.prior_mean, mean))


def _untempered(posterior: Posterior) -> PyTree:
    """The precision at T = 1, F + δ; `None` at fixed leaves."""
    data = data_precision(posterior)
    return jax.tree.map(jnp.add, data, broadcast(posterior.prior_precision, data))


def _diagonals(posterior: Posterior, tree: PyTree) -> PyTree:
    """For numbers along each leaf's basis, the diagonal of their matrix in parameter space."""
    return over_leaves(diagonal, posterior.second_moment.basis, tree)


def _gradient_variance(moment: SecondMoment) -> PyTree:
    r"""The mean squared gradient; the squared mean gradient is subtracted if it was read too.

    With the ratio r of a running mean's variance, $\hat\nu - \hat\mu^2$ has the expectation
    $(1 - r)$ times the variance.
    """
    if moment.mu is None:
        return debiased(moment)
    ratio = mean_variance_ratio(cast(ArrayLike, moment.mu_decay))

    def center(nu: jax.Array, mu: jax.Array) -> jax.Array:
        mean = jnp.asarray(mu, nu.dtype) / leading(moment.mu_weight, nu)
        return jnp.maximum(nu - jnp.square(mean), 0.0) / leading(1.0 - ratio, nu)

    mean = over_leaves(rotate_into, moment.basis, moment.mu)
    return jax.tree.map(center, debiased(moment), mean)


def _with_fixed(tree: PyTree, mean: PyTree, value: float) -> PyTree:
    """`tree` with `value` in every entry of the fixed leaves."""
    background = jax.tree.map(lambda m: jnp.full(jnp.shape(m), value, statistics_dtype(m)), mean)
    return fill(tree, background)
