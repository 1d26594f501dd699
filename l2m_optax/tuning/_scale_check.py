"""Whether F has the right size: its total against the exact one of some hundred examples."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import check_batched, check_positive, complaint, is_concrete
from l2m_optax._support.trees import free, statistics_dtype, total
from l2m_optax._support.types import ApplyFn, Array, ArrayLike, Likelihood, PyTree
from l2m_optax.jacobians._examples import second_moment_of_examples
from l2m_optax.likelihoods import categorical, gaussian
from l2m_optax.posterior._posterior import Posterior, data_precision, free_mean
from l2m_optax.predict._outputs import check_call
from l2m_optax.tuning._data import Dataset

_SUM = 0.01
"""Probabilities in bfloat16 add up to 1 within this."""
_INTERPOLATED = 0.1
"""Below this share of the true Fisher, the empirical one measures the fit and not the curvature."""


class ScaleCheck(NamedTuple):
    r"""Totals of F over the free leaves: the posterior's, and two that are exact.

    Attributes:
      posterior: $\sum F$ of the posterior.
      empirical: that of the empirical Fisher, of the gradients on the observed targets.
      true: that of the true Fisher, of the gradients on targets drawn from the model; NaN where the
        likelihood does not say how to draw.
      examples: number of examples looked at.
    """

    posterior: Array
    empirical: Array
    true: Array
    examples: int

    @property
    def reference(self) -> Array:
        """The empirical total; the true one where the data are interpolated."""
        vanishes = self.empirical < _INTERPOLATED * self.true
        return jnp.where(vanishes, self.true, self.empirical)

    @property
    def ratio(self) -> Array:
        """The posterior's total over the reference."""
        return self.posterior / self.reference


def check_scale(
    apply_fn: ApplyFn,
    posterior: Posterior,
    inputs: PyTree,
    targets: ArrayLike,
    *,
    likelihood: str | Likelihood = "categorical",
) -> ScaleCheck:
    r"""Compares the total of F with the exact one on some training examples.

    $F = N\, \mathbb{E}[(J^\top v)^2]$, where v is the gradient of an observation's log-likelihood
    with respect to the outputs: on the observed target for the empirical Fisher; for the true one
    $v = (\mathrm{diag}(\sqrt p) - p \sqrt p^\top)\, \epsilon$ with random signs ε, which has the
    covariance $\mathrm{diag}(p) - p p^\top$ of the gradient on a label drawn from the model. Rare
    labels count too. For Gaussian targets $v = \epsilon\, s / s_0^2$ with the mean
    squared residual $s^2$ and the posterior's noise $s_0^2$. If an example has several
    observations, random signs make their cross terms vanish on average.

    Args:
      apply_fn: ``apply_fn(params, inputs) -> outputs``; hashable.
      posterior: a `Posterior` with its `num_data`, the number of observations: of tokens, if each
        has a label.
      inputs: the inputs of some hundred *training* examples, drawn at random.
      targets: the targets of these examples, as in `tune`.
      likelihood: ``"categorical"``, ``"gaussian"``, or a function as in `tune`; the true Fisher of
        a function is not known.

    Returns:
      A `ScaleCheck`.

    Raises:
      ValueError: if shapes do not match, labels are out of range, the outputs are probabilities
        and not logits, or the posterior does not know the number of its data.
      TypeError: if the arguments are in another order, or `apply_fn` is not hashable.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> x = jax.random.normal(jax.random.key(0), (200, 1))
      >>> y = x + jax.random.normal(jax.random.key(1), (200, 1))
      >>> moment = l2m.SecondMoment(nu=jnp.ones((1, 1)))
      >>> posterior = l2m.laplace(jnp.ones((1, 1)), moment, num_data=200, batch_size=2)
      >>> f = lambda w, x: x @ w
      >>> check = l2m.tuning.check_scale(f, posterior, x, y, likelihood="gaussian")
      >>> print(check.ratio > 1.5)
      True

    Reference:
      Kunstner, Balles & Hennig, Limitations of the empirical Fisher approximation (2019).
    """
    check_call(apply_fn, posterior)
    check_batched(inputs)
    if posterior.num_data is None:
        remedy = "make the posterior with laplace(..., num_data=...)"
        raise ValueError(complaint("posterior.num_data", "a number", "None", remedy))
    named = likelihood_named(likelihood)
    own = None if isinstance(named, str) else named
    data = Dataset(apply_fn, posterior, inputs, targets, own)
    _check_kind(named, data)
    outputs = _outputs(apply_fn, posterior, inputs)
    if named == "categorical":
        _check_logits(outputs)
    directions = _directions(named, posterior, outputs, jnp.asarray(targets))
    scale = jnp.asarray(posterior.num_data) / (data.examples * math.prod(data.output_shape[:-1]))
    empirical, true = [scale * _squares(apply_fn, posterior, inputs, v) for v in directions]
    return ScaleCheck(total(data_precision(posterior)), empirical, true, data.examples)


def rescale(posterior: Posterior, ratio: ArrayLike) -> Posterior:
    """The posterior with F divided by a number, such as the `ratio` of a `ScaleCheck`.

    Args:
      posterior: a `Posterior`.
      ratio: a positive number.

    Returns:
      The `Posterior`, which shares all arrays of parameters.

    Raises:
      ValueError: if `ratio` is not positive and finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.ones(2))
      >>> posterior = l2m.laplace(jnp.zeros(2), moment, num_data=4, batch_size=1)
      >>> print(l2m.posterior.data_precision(l2m.tuning.rescale(posterior, 2.0)))
      [2. 2.]
    """
    check_positive("ratio", ratio, "pass how many times too large F is")
    return posterior._replace(data_scale=posterior.data_scale / ratio)


def _check_kind(likelihood: str | Likelihood, data: Dataset) -> None:
    """Refuse class numbers as real numbers, and the reverse."""
    kinds = {"categorical": "class numbers", "gaussian": "real numbers"}
    got = kinds["categorical" if data.labels else "gaussian"]
    if isinstance(likelihood, str) and kinds[likelihood] != got:
        remedy = "pass the other likelihood, or targets of the other dtype"
        expected = f"{kinds[likelihood]} for likelihood={likelihood!r}"
        raise ValueError(complaint("targets", expected, got, remedy))


def likelihood_named(likelihood: str | Likelihood) -> str | Likelihood:
    """The name of a likelihood that has one, else the function.

    Raises:
      ValueError: if it is another name.
      TypeError: if it is no function.
    """
    if callable(likelihood):
        return {categorical: "categorical", gaussian: "gaussian"}.get(likelihood, likelihood)
    if likelihood not in _DIRECTIONS:
        remedy = "pass one of these names, or a function such as those of l2m_optax.likelihoods"
        expected = " or ".join(map(repr, _DIRECTIONS))
        raise ValueError(complaint("likelihood", expected, repr(likelihood), remedy))
    return likelihood


@functools.partial(jax.jit, static_argnums=0)
def _outputs(apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree) -> Array:
    outputs = apply_fn(posterior.mean, inputs)
    return outputs.astype(statistics_dtype(outputs))


def _check_logits(outputs: Array) -> None:
    """Refuse class probabilities in the place of logits; traced outputs pass.

    Raises:
      ValueError: if no output is negative and those of each example add up to 1.
    """
    if not is_concrete(outputs):
        return
    values = np.asarray(outputs)
    if np.all(values >= 0) and np.all(np.abs(values.sum(axis=-1) - 1) < _SUM):
        remedy = "return what comes before the softmax; or jnp.log of the probabilities"
        got = "probabilities: none is negative, and each row adds up to 1"
        raise ValueError(complaint("apply_fn", "logits", got, remedy))


@functools.partial(jax.jit, static_argnums=0)
def _directions(
    likelihood: str | Likelihood, posterior: Posterior, outputs: Array, targets: Array
) -> tuple[Array, Array]:
    """What to multiply each example's Jacobian by: for the empirical and for the true Fisher."""
    if not isinstance(likelihood, str):
        empirical = _of_function(likelihood, outputs, targets)
        return empirical, jnp.full_like(empirical, jnp.nan)
    return _DIRECTIONS[likelihood](outputs, targets, posterior.noise_variance)


def _of_function(likelihood: Likelihood, outputs: Array, targets: Array) -> Array:
    log_probs, pull = jax.vjp(lambda f: likelihood(f, targets), outputs)
    return pull(_signs(log_probs))[0]


def _of_labels(logits: Array, labels: Array, noise: ArrayLike) -> tuple[Array, Array]:
    del noise
    probs = jax.nn.softmax(logits)
    errors = jax.nn.one_hot(labels, logits.shape[-1], dtype=probs.dtype) - probs
    parts = jnp.sqrt(probs) * _signs(probs)
    drawn = parts - probs * jnp.sum(jnp.sqrt(probs) * parts, axis=-1, keepdims=True)
    return errors * _signs(labels)[..., None], drawn


def _of_numbers(means: Array, targets: Array, noise: ArrayLike) -> tuple[Array, Array]:
    errors = targets - means
    drawn = jnp.sqrt(jnp.mean(jnp.square(errors))) * _signs(errors)
    return errors * _signs(errors) / noise, drawn / noise


_DIRECTIONS = {"categorical": _of_labels, "gaussian": _of_numbers}


def _signs(like: Array) -> Array:
    return jax.random.rademacher(jax.random.key(0), jnp.shape(like), jnp.float32)


class _Along(NamedTuple):
    """One example's outputs times a direction v: its gradient is Jᵀv."""

    apply_fn: ApplyFn

    def __call__(self, params: PyTree, example: tuple[PyTree, Array]) -> Array:
        inputs, direction = example
        outputs = self.apply_fn(params, jax.tree.map(lambda x: x[None], inputs))[0]
        return jnp.vdot(direction, outputs.astype(direction.dtype))


def _squares(apply_fn: ApplyFn, posterior: Posterior, inputs: PyTree, directions: Array) -> Array:
    """The sum of all squared entries of Jᵀv over the free leaves and the examples."""
    along: Any = _Along(apply_fn)
    found = second_moment_of_examples(along, posterior.mean, (inputs, directions))
    return total(free(found.sum_of_squares, free_mean(posterior)))
