"""Scores of inputs: how far from the training data, how informative a label would be."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2m_optax._support.trees import statistics_dtype
from l2m_optax._support.types import Array, ArrayLike
from l2m_optax.predict._summaries import Regression, classification


class OutOfDistributionScores(NamedTuple):
    """Scores of each input; a higher one means an input less like the training data.

    Attributes:
      entropy: the entropy of the mean probabilities, in nats, shape (...).
      mutual_information: that between label and parameters, in nats, shape (...).
      max_probability: 1 minus the probability of the most probable class, shape (...).
      energy: the mean over draws of -logsumexp of the logits, shape (...).
    """

    entropy: Array
    mutual_information: Array
    max_probability: Array
    energy: Array


@jax.jit
def out_of_distribution_scores(logit_samples: ArrayLike) -> OutOfDistributionScores:
    """The usual scores for detecting inputs unlike the training data.

    Which score is best depends on the data. Compare them with `metrics.auroc` on inputs of both
    kinds.

    Args:
      logit_samples: logits of S draws, shape (S, ..., K).

    Returns:
      `OutOfDistributionScores` of shape (...), in float32 at least.

    Raises:
      ValueError: if there is no axis of draws or of classes.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import decisions
      >>> seen, unseen = [9.0, 0.0], [0.5, 0.0]
      >>> scores = decisions.out_of_distribution_scores(jnp.array([[seen, unseen]]))
      >>> all(bool(score[0] < score[1]) for score in (scores.entropy, scores.energy))
      True

    Reference:
      Hendrycks & Gimpel, A baseline for detecting misclassified and out-of-distribution examples
      (2017); Liu et al., Energy-based out-of-distribution detection (2020).
    """
    prediction = classification(logit_samples)
    logits = jnp.asarray(logit_samples, statistics_dtype(logit_samples))
    return OutOfDistributionScores(
        entropy=prediction.total,
        mutual_information=prediction.epistemic,
        max_probability=1 - jnp.max(prediction.probs, axis=-1),
        energy=-jnp.mean(jax.nn.logsumexp(logits, axis=-1), axis=0),
    )


def bald_scores(logit_samples: ArrayLike) -> Array:
    r"""The information in a label about the parameters, $I(y; \theta) = H[\bar p] - \bar H[p]$.

    For active learning: ask for the labels of the inputs with the highest scores. Inputs that are
    nearly equal have nearly equal scores, so choose few at a time, or different ones.

    Args:
      logit_samples: logits of S draws, shape (S, ..., K).

    Returns:
      Scores in nats, shape (...), float32 at least.

    Raises:
      ValueError: if there is no axis of draws or of classes.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2m_optax import decisions
      >>> agreed, contested = [[0.0, 0.0], [9.0, 0.0]], [[0.0, 0.0], [0.0, 9.0]]
      >>> print(decisions.bald_scores(jnp.array([agreed, contested])).round(2))
      [0.   0.69]

    Reference:
      Houlsby et al., Bayesian active learning for classification and preference learning (2011).
    """
    return classification(logit_samples).epistemic


def regression_bald_scores(prediction: Regression) -> Array:
    r"""`bald_scores` under Gaussian noise, $\tfrac12 \log(\mathrm{total} / \mathrm{aleatoric})$.

    Args:
      prediction: a `Regression`.

    Returns:
      Scores in nats, in the shape of the prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> prediction = l2m.regression(jnp.array([[0.0], [2.0]]), noise_variance=2.0)
      >>> print(l2m.decisions.regression_bald_scores(prediction).round(3))
      [0.347]

    Reference:
      MacKay, Information-based objective functions for active data selection (1992).
    """
    return 0.5 * jnp.log(prediction.total / prediction.aleatoric)
