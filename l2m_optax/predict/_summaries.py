"""Draws of outputs in, predictions out, with the uncertainty split into its two kinds.

*Aleatoric* uncertainty is in the data and stays however much of it there is; *epistemic*
uncertainty is in the parameters and shrinks with data. Their sum is the total.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

from l2m_optax._support.checks import check_count, check_positive, complaint
from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.metrics._regression import gaussian_interval


class Classification(NamedTuple):
    """Class probabilities and the entropy behind them, in nats.

    Attributes:
      probs: mean probabilities, shape (..., K).
      total: entropy of `probs`, shape (...).
      aleatoric: mean entropy of the draws' probabilities, shape (...).
      epistemic: total - aleatoric, the mutual information of label and parameters, shape (...).
    """

    probs: Array
    total: Array
    aleatoric: Array
    epistemic: Array

    @property
    def prediction(self) -> Array:
        """The most probable class, integers of shape (...); -1 where a probability is NaN."""
        return self.top_k(1)[1][..., 0]

    def top_k(self, k: int) -> tuple[Array, Array]:
        """The k most probable classes, the most probable one first.

        Args:
          k: how many, from 1 to K.

        Returns:
          Their probabilities and their numbers, each of shape (..., k); NaN and -1 where a
          probability is NaN.

        Raises:
          ValueError: if there are fewer than k classes, or k is below 1.
          TypeError: if k is no integer.

        Example:
          >>> import jax.numpy as jnp
          >>> import l2m_optax as l2m
          >>> p = l2m.classification(jnp.log(jnp.array([[[0.125, 0.625, 0.25]]])))
          >>> probs, classes = p.top_k(2)
          >>> print(probs.round(3), classes, p.prediction)
          [[0.625 0.25 ]] [[1 2]] [1]
        """
        check_count("k", k)
        number = self.probs.shape[-1]
        if k > number:
            raise ValueError(complaint("k", f"at most the {number} classes", str(k), "pass fewer"))
        probs, classes = jax.lax.top_k(self.probs, int(k))
        lost = jnp.any(jnp.isnan(self.probs), axis=-1, keepdims=True)
        return jnp.where(lost, jnp.nan, probs), jnp.where(lost, -1, classes)


class Regression(NamedTuple):
    """A mean and the variances around it.

    Attributes:
      mean: mean of the draws, shape (...).
      total: aleatoric + epistemic, the variance of a new observation, shape (...).
      aleatoric: the noise variance, shape (...).
      epistemic: variance of the draws, shape (...).
    """

    mean: Array
    total: Array
    aleatoric: Array
    epistemic: Array

    @property
    def std(self) -> Array:
        r"""The standard deviation of a new observation, $\sqrt{\mathrm{total}}$, shape (...)."""
        return jnp.sqrt(self.total)

    def interval(self, level: float = 0.9) -> tuple[Array, Array]:
        r"""The central interval of a new observation, $\mu \pm z \sqrt{\mathrm{total}}$.

        Here $2 \Phi(z) - 1$ is the level. The observation is taken to be Gaussian.

        Args:
          level: the probability of the interval if the variances are right, above 0 and below 1;
            static under `jit`.

        Returns:
          Its lower and its upper ends, each of shape (...).

        Raises:
          ValueError: if `level` is outside of (0, 1), a variance is not positive, or something is
            NaN.

        Example:
          >>> import jax.numpy as jnp
          >>> import l2m_optax as l2m
          >>> prediction = l2m.regression(jnp.array([[0.0], [2.0]]), noise_variance=2.0)
          >>> low, high = prediction.interval(0.95)
          >>> print(f"{low[0]:.2f} {high[0]:.2f}")
          -2.92 4.92
        """
        return gaussian_interval(self.mean, self.total, level=level)


@jax.jit
def classification(logit_samples: ArrayLike) -> Classification:
    r"""Mean class probabilities, and the split $H[\bar p] = \overline{H[p]} + I$.

    Args:
      logit_samples: logits of S draws, shape (S, ..., K).

    Returns:
      A `Classification` in float32 at least.

    Raises:
      ValueError: if there is no axis of draws or of classes.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> sure_but_torn = jnp.array([[[20.0, 0.0]], [[0.0, 20.0]]])
      >>> p = l2m.classification(sure_but_torn)
      >>> print(p.probs, p.aleatoric.round(2), p.epistemic.round(2))
      [[0.5 0.5]] [0.] [0.69]

    Reference:
      Depeweg et al., Decomposition of uncertainty (2018); Houlsby et al., BALD (2011).
    """
    logits = _as_statistics(logit_samples, "logit_samples", "(S, ..., K)", 2)
    probs, entropies = softmax_and_entropy(logits)
    return split(jnp.mean(probs, axis=0), jnp.mean(entropies, axis=0))


def softmax_and_entropy(logits: Array) -> tuple[Array, Array]:
    """The probabilities of logits, shape (..., K), and their entropy, shape (...)."""
    # With s the sum of exp(z), the entropy Σ p (log s - z) is log s - Σ p z.
    z = logits - jnp.max(logits, axis=-1, keepdims=True)
    exps = jnp.exp(z)
    total = jnp.sum(exps, axis=-1, keepdims=True)
    # XLA on CPU can lose a NaN that is a constant of the network in an exp fused with it.
    sound = ~jnp.any(jnp.isnan(logits), axis=-1, keepdims=True)
    probs = jnp.where(sound, exps / total, jnp.nan)
    # exp underflows to 0 where z is very negative, and 0 * -inf would be NaN.
    mean = jnp.sum(jnp.where(probs == 0, 0.0, probs * z), axis=-1)
    return probs, jnp.log(total[..., 0]) - mean


def split(probs: Array, aleatoric: Array) -> Classification:
    """The mean probabilities, and their entropy in two parts, of which one is known."""
    total = -jnp.sum(xlogy(probs, probs), axis=-1)
    aleatoric = jnp.minimum(aleatoric, total)
    return Classification(probs, total, aleatoric, total - aleatoric)


def regression(samples: ArrayLike, noise_variance: ArrayLike) -> Regression:
    r"""Mean and variance of Gaussian observations, $\mathrm{Var}[y] = s^2 + \mathrm{Var}_s[f_s]$.

    Args:
      samples: outputs of S draws, shape (S, ...), with S at least 2.
      noise_variance: s² > 0, broadcast against the outputs; ``posterior.noise_variance`` once
        `fit_noise_variance` has found it.

    Returns:
      A `Regression` in float32 at least; the variance of the draws divides by S - 1.

    Raises:
      ValueError: if there are fewer than two draws, or the noise variance is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> prediction = l2m.regression(jnp.array([[1.0], [3.0]]), noise_variance=0.5)
      >>> print(prediction.mean, prediction.epistemic, prediction.total)
      [2.] [2.] [2.5]
    """
    outputs = _as_statistics(samples, "samples", "(S, ...)", 1)
    if outputs.shape[0] < 2:
        remedy = "draw more, or use output_variance, which needs no draws"
        got = f"{outputs.shape[0]}"
        raise ValueError(complaint("samples", "at least 2 draws for a variance", got, remedy))
    check_positive("noise_variance", noise_variance, "pass the variance, not its logarithm")
    mean, epistemic = jnp.mean(outputs, axis=0), jnp.var(outputs, axis=0, ddof=1)
    aleatoric = jnp.broadcast_to(jnp.asarray(noise_variance, mean.dtype), mean.shape)
    return Regression(mean, aleatoric + epistemic, aleatoric, epistemic)


def heteroscedastic_regression(samples: ArrayLike) -> Regression:
    r"""`regression` for networks that say how noisy each observation is.

    $\mathrm{Var}[y] = \overline{\sigma_s^2} + \mathrm{Var}_s[\mu_s]$: the mean of the noise
    variances of the draws, and the variance of their means.

    Args:
      samples: outputs of S draws, shape (S, ..., 2), with S at least 2: last the pair of mean and
        logarithm of the noise variance, as in `likelihoods.heteroscedastic_gaussian`.

    Returns:
      A `Regression` of shape (...), in float32 at least.

    Raises:
      ValueError: if there are fewer than two draws, or the last axis has no two entries.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> draws = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]]])
      >>> prediction = l2m.predict.heteroscedastic_regression(draws)
      >>> print(prediction.mean, prediction.aleatoric, prediction.epistemic)
      [2.] [1.] [2.]

    Reference:
      Kendall & Gal, What uncertainties do we need in Bayesian deep learning (2017).
    """
    pairs = _as_statistics(samples, "samples", "(S, ..., 2)", 2)
    if pairs.shape[-1] != 2:
        remedy = "for networks without a noise of their own use regression"
        expected = "a last axis of mean and log-variance, 2 entries"
        raise ValueError(complaint("samples", expected, str(pairs.shape), remedy))
    noise = jnp.mean(jnp.exp(pairs[..., 1]), axis=0)
    around = regression(pairs[..., 0], 1.0)
    return Regression(around.mean, noise + around.epistemic, noise, around.epistemic)


def _as_statistics(samples: ArrayLike, name: str, shape: str, axes: int) -> Array:
    outputs = jnp.asarray(samples, statistics_dtype(samples))
    if outputs.ndim < axes or outputs.size == 0:
        remedy = "pass what linearized, monte_carlo or apply_ensemble returned"
        raise ValueError(complaint(name, f"shape {shape}", str(outputs.shape), remedy))
    return outputs
