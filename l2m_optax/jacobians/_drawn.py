"""Gradients on targets that are drawn from the model itself: their second moment is the Fisher."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from l2m_optax import likelihoods
from l2m_optax._support.checks import complaint
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, Likelihood, PyTree


def fisher_gradients(
    key: Array,
    apply_fn: ApplyFn,
    params: PyTree,
    inputs: PyTree,
    likelihood: str | Likelihood = "categorical",
) -> PyTree:
    r"""The gradient of a batch whose targets are drawn from the model: for the true Fisher.

    For $\hat y_i \sim p(y | f(x_i))$ it is
    $-\frac1B \sum_i \nabla_\theta \log p(\hat y_i | f(x_i))$. Its mean is zero whatever the
    parameters, and $B$ times its second moment is the mean Fisher information of one example.
    Unlike squared gradients of the training loss it does not vanish where training data are
    interpolated.

    Give it to `track_second_moment` as `moment_updates`, and then
    ``laplace(..., loss_scale=1.0, with_replacement=True)``: it is a mean of log-likelihoods,
    whatever the training loss is, and labels that are drawn anew are independent in any batch, so
    that there is no finite population factor. In each step use another key. For Gaussian noise draw
    with the variance that is known: `fit_noise_variance` is for squared residuals of the data, of
    which F goes as $1/s^4$; here it goes as $1/s^2$.

    On a CPU, XLA runs convolutions inside of `jax.lax.cond`, which `every` needs, several times
    slower than outside. There call a second compiled function at each k-th step instead, with a
    tracker of its own whose decay is $\beta^k$ (``make bench-structure-cost``).

    Args:
      key: a key of `jax.random`.
      apply_fn: ``apply_fn(params, inputs) -> outputs``.
      params: the parameters.
      inputs: a batch of B examples.
      likelihood: ``"categorical"``, ``"gaussian"`` or ``"heteroscedastic_gaussian"``, or the
        function of `likelihoods` of that name. Noise of another variance than 1 is
        ``functools.partial(likelihoods.gaussian, variance=0.25)``.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: if targets of `likelihood` cannot be drawn.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> key, x, f = jax.random.key(0), jnp.ones((4, 3)), lambda w, x: x @ w
      >>> tx = optax.chain(l2m.track_second_moment(0.99, every=10), optax.adam(1e-3))
      >>> w = jnp.zeros((3, 2))
      >>> def fisher():  # called at each tenth step only
      ...     return l2m.jacobians.fisher_gradients(key, f, w, x)
      >>> updates, state = tx.update(w, tx.init(w), w, moment_updates=fisher)
      >>> bool(jnp.all(state[0].nu > 0))
      True

    Reference:
      Kunstner, Balles & Hennig, Limitations of the empirical Fisher approximation (2019).
    """
    log_prob, draw = _log_prob_and_draw(likelihood)

    def loss(params: PyTree) -> Array:
        outputs = apply_fn(params, inputs)
        targets = draw(key, jax.lax.stop_gradient(outputs))
        return -jnp.sum(log_prob(outputs, targets)) / len(outputs)

    return jax.grad(loss)(params)


def _categorical(key: Array, logits: ArrayLike) -> Array:
    return jax.random.categorical(key, jnp.asarray(logits, statistics_dtype(logits)))


def _gaussian(key: Array, mean: ArrayLike, variance: ArrayLike = 1.0) -> Array:
    m = jnp.asarray(mean, statistics_dtype(mean))
    return m + jnp.sqrt(jnp.asarray(variance, m.dtype)) * jax.random.normal(key, m.shape, m.dtype)


def _heteroscedastic_gaussian(key: Array, outputs: ArrayLike) -> Array:
    pairs = jnp.asarray(outputs)
    return _gaussian(key, pairs[..., 0], jnp.exp(jnp.asarray(pairs[..., 1], jnp.float32)))


_DRAWS: dict[Any, Callable[..., Array]] = {
    likelihoods.categorical: _categorical,
    likelihoods.gaussian: _gaussian,
    likelihoods.heteroscedastic_gaussian: _heteroscedastic_gaussian,
}


def _log_prob_and_draw(likelihood: str | Likelihood) -> tuple[Any, Callable[..., Array]]:
    """The log-likelihood and what draws its targets.

    Raises:
      ValueError: if there is none.
    """
    by_name = {function.__name__: function for function in _DRAWS}
    function: Any = (
        by_name.get(likelihood, likelihood) if isinstance(likelihood, str) else likelihood
    )
    inner, arguments, keywords = function, (), {}
    if isinstance(function, functools.partial):
        inner, arguments, keywords = function.func, function.args, function.keywords
    draw = _DRAWS.get(inner)
    if draw is None or arguments:
        expected = f"{', '.join(by_name)}, or that function of likelihoods"
        remedy = "for another, take the gradient on targets that you draw yourself"
        raise ValueError(complaint("likelihood", expected, f"{likelihood!r:.100}", remedy))
    return function, functools.partial(draw, **keywords)
