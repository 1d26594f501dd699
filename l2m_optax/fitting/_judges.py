"""What `fit` needs for a likelihood: how to predict, how to judge predictions, how to choose T."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.types import ApplyFn, Array, Likelihood, PyTree
from l2m_optax.likelihoods import categorical, gaussian
from l2m_optax.metrics import (
    accuracy,
    expected_calibration_error,
    interval_coverage,
    root_mean_squared_error,
)
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.predict._classify import classify
from l2m_optax.predict._linearized import linearized
from l2m_optax.predict._regress import regress
from l2m_optax.tuning._calibrate import calibrate_noise, log_probs_of, sums_of, with_noise
from l2m_optax.tuning._cold import OF_NUMBERS, cold_temperature
from l2m_optax.tuning._evidence import effective_parameters
from l2m_optax.tuning._fit import Fit
from l2m_optax.tuning._logits import calibrate_logits, smoothed
from l2m_optax.tuning._noise import fit_noise_variance
from l2m_optax.tuning._objectives import mean_over_draws
from l2m_optax.tuning._prior import fit_prior_precision
from l2m_optax.tuning._validation import tune

_LEVEL = 0.9
_DRAWS = 64
"""Number of draws for a likelihood without an exact predictive."""


class Verdict(NamedTuple):
    """How well held-out data were predicted.

    Attributes:
      log_probs: of each example, a mean over its observations, shape (n,).
      loss: what the candidates are compared by.
      figures: accuracy and ECE, or RMSE and coverage of the 90% interval, by name.
    """

    log_probs: np.ndarray
    loss: float
    figures: dict[str, float]


Pair: TypeAlias = tuple[PyTree, Any]


class Judge(NamedTuple):
    """One likelihood.

    Attributes:
      prior: ``prior(posterior, pairs)``: prior precision, and noise, by the evidence.
      tuned: ``tuned(posterior, pair)``: T, and noise or the scale of logits, by validation data.
      mode: ``mode(posterior, pair)``: the network alone; its noise by the validation data.
      cold: ``cold(posterior, num_outputs)``: T, and noise, without validation data.
      verdict: ``verdict(posterior, pair)``.
      training_loss: ``training_loss(posterior, pair)``: of the mode, in nats an observation; `None`
        for numbers, where it depends on the noise.
    """

    prior: Callable[[Posterior, Any], Posterior]
    tuned: Callable[[Posterior, Pair], Fit]
    mode: Callable[[Posterior, Pair], Posterior]
    cold: Callable[[Posterior, int], Posterior]
    verdict: Callable[[Posterior, Pair], Verdict]
    training_loss: Callable[[Posterior, Pair], Array | None]


def judge_of(likelihood: str | Likelihood, apply_fn: ApplyFn) -> Judge:
    """The judge of a likelihood."""
    if likelihood == "categorical":
        return _of_classes(apply_fn)
    if likelihood == "gaussian":
        return _of_numbers(apply_fn)
    return _of_function(apply_fn, likelihood)  # type: ignore[arg-type]  # a function


def _prior(posterior: Posterior, loader: Any) -> Posterior:
    del loader  # the evidence needs no data
    return fit_prior_precision(posterior).posterior


def _at_mode(posterior: Posterior, pair: Pair) -> Posterior:
    del pair  # there is no noise to find
    return posterior._replace(temperature=jnp.zeros(()))


def _cold(posterior: Posterior, num_outputs: int) -> Posterior:
    return posterior._replace(temperature=cold_temperature(posterior, num_outputs))


def _of_classes(apply_fn: ApplyFn) -> Judge:
    def verdict(posterior: Posterior, pair: Pair) -> Verdict:
        inputs, labels = pair
        probs, labels = classify(apply_fn, posterior, inputs).probs, jnp.asarray(labels)
        log_probs = _by_example(log_probs_of(probs, labels))
        loss = smoothed(sums_of(probs[None], labels), labels.size)
        flat, labels = probs.reshape(-1, probs.shape[-1]), labels.ravel()
        figures = {
            "accuracy": float(accuracy(flat, labels)),
            "ECE": float(expected_calibration_error(flat, labels)),
        }
        return Verdict(log_probs, float(loss[0]), figures)

    return Judge(
        _prior,
        lambda posterior, pair: calibrate_logits(apply_fn, posterior, *pair),
        _at_mode,
        _cold,
        verdict,
        functools.partial(_mean_loss, apply_fn, categorical),
    )


def _of_numbers(apply_fn: ApplyFn) -> Judge:
    def mode(posterior: Posterior, pair: Pair) -> Posterior:
        inputs, targets = pair
        residuals = jnp.asarray(targets) - apply_fn(posterior.mean, inputs)
        noise = jnp.mean(jnp.square(residuals))
        noise = jnp.maximum(noise, np.finfo(noise.dtype).tiny)
        return _at_mode(with_noise(posterior, noise), pair)

    def cold(posterior: Posterior, num_outputs: int) -> Posterior:
        number = jnp.asarray(posterior.num_data) * num_outputs  # every output has a residual
        gamma = effective_parameters(posterior)
        noise = posterior.noise_variance * (number - gamma) / (number - OF_NUMBERS * gamma)
        return with_noise(posterior, noise)._replace(temperature=jnp.asarray(OF_NUMBERS))

    def verdict(posterior: Posterior, pair: Pair) -> Verdict:
        inputs, targets = pair
        predicted, targets = regress(apply_fn, posterior, inputs), jnp.asarray(targets)
        log_probs = _by_example(gaussian(predicted.mean, targets, predicted.total))
        covered = interval_coverage(predicted.mean, predicted.total, targets, level=_LEVEL)
        figures = {
            "RMSE": float(root_mean_squared_error(predicted.mean, targets)),
            "in 90%": float(covered),
        }
        return Verdict(log_probs, -float(log_probs.mean()), figures)

    return Judge(
        lambda posterior, loader: fit_noise_variance(apply_fn, posterior, loader).posterior,
        lambda posterior, pair: calibrate_noise(apply_fn, posterior, *pair),
        mode,
        cold,
        verdict,
        lambda posterior, pair: None,
    )


def _of_function(apply_fn: ApplyFn, likelihood: Likelihood) -> Judge:
    def verdict(posterior: Posterior, pair: Pair) -> Verdict:
        inputs, targets = pair
        draws = linearized(
            jax.random.key(0), apply_fn, posterior, inputs, num_samples=_DRAWS, antithetic=True
        )
        log_probs = _by_example(mean_over_draws(likelihood(draws, jnp.asarray(targets))))
        return Verdict(log_probs, -float(log_probs.mean()), {})

    return Judge(
        _prior,
        lambda posterior, pair: tune(apply_fn, posterior, *pair, likelihood=likelihood),
        _at_mode,
        _cold,
        verdict,
        functools.partial(_mean_loss, apply_fn, likelihood),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _mean_loss(
    apply_fn: ApplyFn, likelihood: Likelihood, posterior: Posterior, pair: Pair
) -> Array:
    inputs, targets = pair
    loss = -likelihood(apply_fn(posterior.mean, inputs), jnp.asarray(targets)).mean()
    return jnp.maximum(loss, 0.0).astype(jnp.float32)


def _by_example(log_probs: Array) -> np.ndarray:
    return np.asarray(log_probs, np.float64).reshape(len(log_probs), -1).mean(axis=1)
