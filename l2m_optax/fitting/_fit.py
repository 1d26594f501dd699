"""`fit`: read the moment, check its scale, propose posteriors, choose one, report."""

from __future__ import annotations

import math
import warnings as python_warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from l2m_optax._support.types import ApplyFn, ArrayLike, Likelihood, PyTree
from l2m_optax.fitting._data import Sample, as_loader, sample, share_seen
from l2m_optax.fitting._judges import Judge, Pair, judge_of
from l2m_optax.fitting._report import Candidate, Report, of_the_scale
from l2m_optax.moments._declared import with_types
from l2m_optax.moments._prior import Prior, declared_prior
from l2m_optax.moments._second_moment import second_moment
from l2m_optax.posterior._laplace import laplace
from l2m_optax.posterior._posterior import Posterior
from l2m_optax.posterior._report import of_the_training
from l2m_optax.posterior._selection import restrict
from l2m_optax.posterior._training import training_of
from l2m_optax.predict._last_layer import last_layer
from l2m_optax.predict._outputs import shape_of_outputs
from l2m_optax.tuning._calibrate import with_noise
from l2m_optax.tuning._fit import Fit
from l2m_optax.tuning._scale_check import ScaleCheck, check_scale, likelihood_named, rescale

_EXAMPLES = 1024
"""Training examples that the scale is checked on."""
_VALIDATION = 2048
"""Validation examples that are used, if there are more."""


def fit(
    apply_fn: ApplyFn,
    params: PyTree,
    opt_state: PyTree,
    *,
    tx: Any = None,
    data: Any,
    batch_size: int | Sequence[int],
    num_data: int | None = None,
    likelihood: str | Likelihood = "categorical",
    loss_scale: ArrayLike = 1.0,
    prior_mean: PyTree | None = None,
    validation: Any = None,
) -> tuple[Posterior, Report]:
    r"""A posterior that predicts no worse than the network alone, and a report of how it was made.

    1. The second moment is read as `laplace` reads it.
    2. The total of F is compared with the exact one of 1,024 training examples
       (`tuning.check_scale`) and F is divided by the ratio. This one number mends sequences counted
       for tokens, a forgotten `loss_scale`, ragged batches and the like; a ratio that is far from
       1 gives a warning.
    3. The prior precision, and for numbers the noise variance, are those of the evidence; or those
       that the optimizer's state holds, where it was trained with `evidence_weight_decay`.
    4. With validation data the last layer (`last_layer`) and all layers are tuned on them: T, and
       the noise of numbers (`tuning.calibrate_noise`) or the scale of logits
       (`tuning.calibrate_logits`, which multiplies the last layer of ``posterior.mean``). The best
       is returned; if that is the network alone, T = 0, which is exactly the network. The report
       says by how many standard errors it is better. Without validation data all layers get a small
       temperature: `tuning.cold_temperature` for classes, 0.03 for numbers.

    Use `classify` or `regress` on what is returned.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs`` as it predicts: no dropout, running
        statistics of batch normalisation; hashable.
      params: the trained parameters.
      opt_state: the optimizer's state at the end of training.
      tx: the optimizer; a state that was tracked or exposed needs none.
      data: the training data: ``(inputs, targets)``, arrays or trees of them, or a loader of such
        pairs. Targets are as in `tune`.
      batch_size: examples behind one gradient: a number, or the sizes of an epoch's batches.
      num_data: number of training examples; by default they are counted.
      likelihood: ``"categorical"`` for class numbers, ``"gaussian"`` for real numbers, or a
        function as in `tune`.
      loss_scale: as in `laplace`.
      prior_mean: as in `laplace`: in fine-tuning, the pre-trained weights.
      validation: held-out data, given as `data` is.

    Returns:
      The `Posterior`, and a `fitting.Report`: print it.

    Raises:
      ValueError: as `laplace`; if targets do not fit the outputs, the outputs are probabilities and
        not logits, there are no data, or a loader ends early.
      TypeError: as `laplace`; if a loader does not yield pairs, or `apply_fn` is not hashable.
      FloatingPointError: if parameters, moments or outputs hold NaN.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (200, 3))
      >>> y = (x[:, 0] > 0).astype(int)
      >>> apply_fn = lambda w, x: x @ w
      >>> loss = lambda w, x, y: -l2m.likelihoods.categorical(apply_fn(w, x), y).mean()
      >>> tx, w = optax.adam(0.1), jnp.zeros((3, 2))
      >>> state = tx.init(w)
      >>> for i in range(40):
      ...     rows = slice(20 * (i % 10), 20 * (i % 10) + 20)
      ...     updates, state = tx.update(jax.grad(loss)(w, x[rows], y[rows]), state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> posterior, report = l2m.fit(apply_fn, w, state, tx=tx, data=(x, y), batch_size=20)
      >>> report.chosen
      'all layers'

    Reference:
      Perone, Silveira & Paula, L2M (arXiv 2107.04695); MacKay, A practical Bayesian framework for
      backpropagation networks (1992).
    """
    named = likelihood_named(likelihood)
    judge = judge_of(named, apply_fn)
    opt_state = with_types(opt_state, tx, params)
    if _declares_all(opt_state, named):
        judge = _of_declared(judge)
    some = sample(data, "data", _EXAMPLES)
    held_out = None if validation is None else sample(validation, "validation", _VALIDATION)
    held, held_by = _without_scale(opt_state, params, tx)
    start = laplace(
        params,
        held,
        tx=held_by,
        num_data=(num_data or some.examples) * some.per_example,
        batch_size=_times(batch_size, some.per_example),
        loss_scale=loss_scale,
        prior_mean=prior_mean,
    )
    scale = check_scale(apply_fn, start, some.inputs, some.targets, likelihood=named)
    with python_warnings.catch_warnings(record=True) as caught:
        python_warnings.simplefilter("always", UserWarning)
        loader = as_loader(data, "data")
        found = _choose(apply_fn, _scaled(start, scale), some, loader, held_out, judge)
    warnings = (
        *of_the_scale(scale),
        *of_the_training(training_of(opt_state)),
        *_of_validation(held_out, data),
        *(str(w.message) for w in caught if issubclass(w.category, UserWarning)),
    )
    chosen, candidates, posterior = found
    loss = judge.training_loss(posterior, (some.inputs, some.targets))
    posterior = posterior._replace(training_loss=loss)
    return posterior, Report(scale, candidates, chosen, held_out is not None, warnings)


_NETWORK, _LAST, _ALL = "network", "last layer", "all layers"


class _Found(NamedTuple):
    """The name of the candidate that is chosen, all candidates, and the posterior."""

    chosen: str
    candidates: tuple[Candidate, ...]
    posterior: Posterior


def _without_scale(opt_state: PyTree, params: PyTree, tx: Any) -> tuple[PyTree, Any]:
    """What `laplace` reads, and `tx`: a declared prior without the scale that it was found with.

    `laplace` refuses another scale. Here the data show it, whatever the training counted as one.
    """
    declared = declared_prior(opt_state)
    if declared is None:
        return opt_state, tx
    moment = second_moment(opt_state, params, tx=tx)
    return (moment, declared._replace(data_scale=None)), None


def _times(batch_size: int | Sequence[int], per_example: int) -> Any:
    if isinstance(batch_size, int | np.integer):
        return batch_size * per_example
    return [size * per_example for size in batch_size]


def _scaled(posterior: Posterior, scale: ScaleCheck) -> Posterior:
    """The posterior with F divided by the ratio.

    If all gradients are 0, the ratio is no number to divide by, and F stays as it is.
    """
    ratio = float(scale.ratio)
    return rescale(posterior, ratio) if 0 < ratio < np.inf else posterior


def _declares_all(opt_state: PyTree, likelihood: str | Likelihood) -> bool:
    """Whether the state declares all that the evidence would find: δ, and for numbers the noise."""
    declared = declared_prior(opt_state) or Prior()
    known = declared.noise_variance is not None or likelihood != "gaussian"
    return declared.precision is not None and known


def _of_declared(judge: Judge) -> Judge:
    """The judge for a state that declares prior and noise: neither of them is fitted again."""

    def cold(posterior: Posterior, num_outputs: int) -> Posterior:
        # The noise of the training already allows for the overcount of γ.
        return with_noise(judge.cold(posterior, num_outputs), posterior.noise_variance)

    return judge._replace(prior=lambda posterior, loader: posterior, cold=cold)


def _choose(
    apply_fn: ApplyFn,
    whole: Posterior,
    some: Sample,
    loader: Iterable[Any],
    held_out: Sample | None,
    judge: Judge,
) -> _Found:
    """The posterior to return: the best by validation data, or without them a cold one."""
    if held_out is None:
        return _without_validation(apply_fn, judge.prior(whole, loader), some, judge)
    parts = _propose(apply_fn, whole, some)
    proposed = {name: judge.prior(part, loader) for name, part in parts.items()}
    return _by_validation(proposed, (held_out.inputs, held_out.targets), judge)


def _propose(apply_fn: ApplyFn, posterior: Posterior, some: Sample) -> dict[str, Posterior]:
    """All layers, and the last one where there is one."""
    proposed = {_ALL: posterior}
    try:
        leaves = last_layer(apply_fn, posterior.mean, some.inputs)
    except ValueError:  # no leaf in which the outputs are linear
        return proposed
    return proposed | {_LAST: restrict(posterior, leaves)}


def _without_validation(apply_fn: ApplyFn, whole: Posterior, some: Sample, judge: Judge) -> _Found:
    """All layers at a small temperature."""
    of_one = shape_of_outputs(apply_fn, whole.mean, some.inputs).shape[1:]
    posterior = judge.cold(whole, math.prod(of_one[-1:]))  # outputs of shape (N,) are one each
    nan = float("nan")
    candidates = (
        Candidate(_NETWORK, 0.0, nan, nan, nan, {}),
        Candidate(_ALL, float(np.asarray(posterior.temperature)), nan, nan, nan, {}),
    )
    return _Found(_ALL, candidates, posterior)


def _by_validation(proposed: dict[str, Posterior], pair: Pair, judge: Judge) -> _Found:
    """The best of the proposed posteriors and the network alone; the first one wins a tie."""
    network = judge.mode(proposed[_ALL], pair)
    fits = {name: judge.tuned(posterior, pair) for name, posterior in proposed.items()}
    posteriors = {_NETWORK: network} | {name: fit.posterior for name, fit in fits.items()}
    verdicts = {name: judge.verdict(posterior, pair) for name, posterior in posteriors.items()}

    def candidate(name: str) -> Candidate:
        found, gains = verdicts[name], verdicts[name].log_probs - verdicts[_NETWORK].log_probs
        error = float(np.std(gains, ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else np.inf
        return Candidate(
            name,
            float(np.asarray(posteriors[name].temperature)),
            float(-found.log_probs.mean()),
            float(gains.mean()),
            error,
            found.figures,
            _logit_scale(fits.get(name)),
        )

    chosen = min(verdicts, key=lambda name: verdicts[name].loss)
    return _Found(chosen, tuple(map(candidate, posteriors)), posteriors[chosen])


def _logit_scale(fit: Fit | None) -> float:
    """What the logits were multiplied by."""
    values = {} if fit is None or not isinstance(fit.info.value, dict) else fit.info.value
    return float(np.asarray(values.get("logit_scale", 1.0)))


def _of_validation(held_out: Sample | None, data: Any) -> Iterator[str]:
    if held_out is not None and (share := share_seen(held_out, data)) > 0.1:
        yield (
            f"{share:.0%} of the validation inputs are training inputs too, so that they are "
            "predicted too well: hold data out of training"
        )
