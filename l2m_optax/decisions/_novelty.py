"""The alarm for inputs unlike the training data, whatever temperature the probabilities use."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import complaint, is_concrete
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, PyTree
from l2m_optax.posterior._posterior import Posterior, are_correlated
from l2m_optax.predict._classify import classify
from l2m_optax.predict._outputs import check_call, check_outputs
from l2m_optax.predict._summaries import Classification
from l2m_optax.tuning._cold import cold_temperature
from l2m_optax.tuning._evidence import effective_parameters

_FOR_NUMBERS = "for a regression use output_variance, the variance of its outputs: it is the alarm"

_OF_BASES = 0.1
"""The temperature of the alarm if the posterior has correlations, and the loss is not known."""

_COLDEST = 1e-3
"""The lowest temperature of the information: below it, it is lost in rounding."""

_OF_A_DIAGONAL = 0.1
"""The share of N L / γ that a diagonal takes. It has no correlations that keep its spread from what
the data determine: on small networks of digits the whole costs 0.05 of AUROC."""


def novelty(apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree) -> Array:
    r"""How unlike the training data an input is; the posterior's own temperature plays no part.

    Probabilities use the temperature T that predicts labels of the *training* distribution best. An
    alarm is for inputs from *elsewhere*, of which such labels say nothing; only the order of its
    scores counts. So it has a temperature of its own, by the mean training loss L:

    $$T = \frac{N L}{\gamma}, \qquad \gamma = \sum \frac{F}{F + \delta},$$

    and 1 at most. To second order a draw from the posterior has a training loss of
    $N L + T\gamma/2$. So this is the widest posterior whose draws fit the training data about as
    well as the mode does. `fit` measures L, and `laplace` takes ``training_loss=``. What the score
    is depends on the posterior:

    - **With correlations**, a moment in bases (``track_second_moment(structure="kronecker")``), it
      is the mutual information of label and parameters,

      $$I(y; \theta) = H\Big[\mathbb E_\theta\, p(y | x, \theta)\Big]
        - \mathbb E_\theta\, H\big[p(y | x, \theta)\big].$$

      It is near 0 where the data determine the prediction, whether it is certain or not. T is 0.001
      at least, so that rounding does not matter.
    - **With a diagonal alone**, it is the entropy of the predictive distribution, the first term
      above, at a tenth of this T. A diagonal is so wide on some networks that familiar inputs have
      more information than unknown ones.

    Where L is not known, T is 0.1 with correlations, and `tuning.cold_temperature` of a diagonal.
    Both scores are at most log K. ``make bench-alarm`` measures them.

    Choose a threshold on held-out inputs of the usual kind, as a quantile of their scores.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> logits`` of shape (N, K); hashable.
      posterior: a `Posterior` of a classifier; its own temperature is not used.
      inputs: what `apply_fn` takes, rows being examples.

    Returns:
      Scores in nats, shape (N,), float32 at least; the same in every call. Outputs of shape
      (N, ..., K) have scores of shape (N, ...).

    Raises:
      ValueError: if there are no logits of at least two classes, the posterior is that of a
        regression or a diagonal without its `num_data`, or an example's outputs depend on others.
      TypeError: if the arguments are in another order, or `apply_fn` is not hashable.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.array([[1.0, 1.0], [0.0, 0.0]]))  # always 0
      >>> posterior = l2m.laplace(jnp.eye(2), moment, num_data=100, batch_size=10, temperature=0.0)
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(l2m.decisions.novelty(lambda w, x: x @ w, posterior, x).round(2))
      [0.58 0.58]

    Reference:
      Houlsby et al., BALD (2011); Wenzel et al., How good is the Bayes posterior in deep neural
      networks really? (2020), on temperatures below 1.
    """
    check_call(apply_fn, posterior)
    outputs = jax.eval_shape(apply_fn, posterior.mean, inputs)
    _check_classifier(outputs, posterior)
    ratio = _loss_ratio(posterior)
    if any(are_correlated(posterior)):
        temperature = _OF_BASES if ratio is None else jnp.clip(ratio, _COLDEST, 1.0)
        return _at(apply_fn, posterior, inputs, temperature).epistemic
    if ratio is None:
        temperature = cold_temperature(posterior, outputs.shape[-1])
    else:
        temperature = jnp.minimum(_OF_A_DIAGONAL * ratio, 1.0)
    return _at(apply_fn, posterior, inputs, temperature).total


def _loss_ratio(posterior: Posterior) -> Array | None:
    """N L / γ, or `None` if it is not known."""
    if posterior.training_loss is None or posterior.num_data is None:
        return None
    loss = jnp.asarray(posterior.num_data) * posterior.training_loss
    gamma = effective_parameters(posterior)
    # Draws of parameters that no data determine fit the data at every temperature.
    return jnp.where(gamma > 0, loss / jnp.where(gamma > 0, gamma, 1.0), jnp.inf)


def _at(
    apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, temperature: ArrayLike
) -> Classification:
    temperature = jnp.asarray(temperature, jnp.result_type(posterior.temperature))
    return classify(apply_fn, posterior._replace(temperature=temperature), inputs)


def _check_classifier(outputs: Any, posterior: Posterior) -> None:
    """Refuse regressions: outputs that are no logits, or a noise variance that was fitted."""
    shape = check_outputs(outputs).shape
    if len(shape) < 2 or shape[-1] < 2:
        expected = "logits of at least two classes, (N, K)"
        raise ValueError(complaint("apply_fn", expected, f"shape {shape}", _FOR_NUMBERS))
    noise = posterior.noise_variance
    if is_concrete(noise) and np.any(np.asarray(noise) != 1):
        got = f"a noise variance of {np.ravel(noise)[0]:.3g}"
        raise ValueError(complaint("posterior", "one of a classifier", got, _FOR_NUMBERS))
