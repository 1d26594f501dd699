"""How far a second moment can be trusted: from the state alone, or with one batch of data."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import is_concrete, path_name
from l2m_optax._support.trees import align, broadcast, free
from l2m_optax._support.types import Array, ArrayLike, PyTree
from l2m_optax.moments._basis import diagonal, over_leaves
from l2m_optax.moments._evidence import determined
from l2m_optax.moments._moment import SecondMoment, debiased, leading, mean_variance_ratio
from l2m_optax.posterior._posterior import Posterior, data_precision
from l2m_optax.posterior._report import Diagnosis, Leaf
from l2m_optax.posterior._training import training_of


def diagnose(
    posterior: Posterior,
    moment: SecondMoment | None = None,
    *,
    reference: PyTree | None = None,
    training: PyTree | None = None,
) -> Diagnosis:
    r"""How far a posterior's second moment can be trusted, from the state alone.

    At a mode the second moment is all noise. Away from it, it holds the squared mean gradient
    $\bar g^2$ too, which the optimizer's own running mean with decay b shows:
    $\mathbb{E}[\hat\mu^2] = \bar g^2 + (\hat\nu - \bar g^2)\, r$ with $r = (1-b)/(1+b)$, so that
    $\bar g^2 = (\hat\mu^2 - r \hat\nu) / (1 - r)$.

    The state alone cannot show whether the parameters are those of the state's own step (the best
    parameters of early stopping are not), whether the learning rate was restarted within the time
    that the mean remembers, or whether the last batch of an epoch is smaller than the others. Each
    makes F wrong by a factor, which a `reference` shows: pass
    ``reference=jacobians.empirical_fisher(...)`` of some hundred training examples. `fit` makes
    this comparison by itself (`tuning.check_scale`).

    Args:
      posterior: a `Posterior`.
      moment: what `second_moment` returned; with it the share of the mean gradient is known.
      reference: F from another computation, to compare with, a tree like the posterior's mean:
        what `jacobians.empirical_fisher` returns for one batch.
      training: the state of an optimizer with `evidence_weight_decay`: with it a fit that is almost
        perfect is known, whose weight decay may be too strong.

    Returns:
      A `Diagnosis`: print it. Under `jit` its numbers are traced as any others.

    Raises:
      ValueError: if `moment` or `reference` do not match the posterior.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu={"w": jnp.array([0.0, 1.0])}, count=100, decay=0.999)
      >>> posterior = l2m.laplace({"w": jnp.ones(2)}, moment, num_data=2, batch_size=1)
      >>> print(*str(l2m.diagnose(posterior)).splitlines()[:3], sep="\n")
      leaf   size  zero  F<prior  effective  mean grad.  ratio  log corr.
      ['w']     2   50%      50%        0.7           -      -          -
      total     2   50%      50%        0.7           -      -          -
    """
    nu = posterior.second_moment.nu
    moment = posterior.second_moment if moment is None else moment
    mu = None if moment.mu is None else free(align(moment.mu, posterior.mean, "mu"), nu)
    if reference is not None:
        reference = free(align(reference, posterior.mean, "reference"), nu)
    data = data_precision(posterior)
    basis = posterior.second_moment.basis
    # An eigenvalue may be rounded to 0. A parameter whose own moment is 0 had no gradient.
    own_nu = over_leaves(diagonal, basis, debiased(posterior.second_moment))
    own = over_leaves(diagonal, basis, data)
    parts = {
        path_name(path, ""): _Part(*entries)
        for (path, _), *entries in zip(
            jax.tree_util.tree_leaves_with_path(nu),
            jax.tree.leaves(data),
            jax.tree.leaves(own),
            jax.tree.leaves(broadcast(posterior.prior_precision, nu)),
            jax.tree.leaves(own_nu),
            _or_nothing(mu, nu),
            _or_nothing(reference, nu),
            strict=True,
        )
    }
    sums = {path: _sums(part, moment) for path, part in parts.items()}
    together = jax.tree.map(lambda *x: sum(x), *sums.values())
    return Diagnosis(
        {path: _leaf(s) for path, s in sums.items()},
        _leaf(together),
        _float(None if moment.count is None else jnp.min(jnp.asarray(moment.count))),
        _float(None if moment.decay is None else jnp.max(jnp.asarray(_window(moment.decay)))),
        _float(posterior.num_data),
        *map(_float, training_of(training)),
    )


class _Part(NamedTuple):
    """The arrays of one leaf, all of its shape.

    Attributes:
      fisher: F along the basis of the leaf.
      diagonal: the diagonal of F in the space of the parameters.
      prior: δ, of shape () or that of the leaf.
      nu: the mean of squares of each parameter's gradient.
      mu: the running mean of the gradients, or `None`.
      reference: F from another computation, or `None`.
    """

    fisher: Array
    diagonal: Array
    prior: ArrayLike
    nu: Array
    mu: Array | None
    reference: Array | None


class _LogSums(NamedTuple):
    """Sums over the entries positive in both, of x = log F and y = log of the reference's F."""

    number: Array
    x: Array
    y: Array
    xx: Array
    yy: Array
    xy: Array

    @property
    def correlation(self) -> Array:
        """Pearson's correlation of x and y."""
        n = self.number
        spread = (n * self.xx - self.x**2) * (n * self.yy - self.y**2)
        return (n * self.xy - self.x * self.y) / jnp.sqrt(spread)


class _Sums(NamedTuple):
    """Sums over entries, which add up over leaves."""

    size: Array
    zeros: Array
    prior_dominated: Array
    effective: Array
    nu: Array
    mean_square: Array
    fisher: Array
    reference: Array
    logs: _LogSums


def _sums(part: _Part, moment: SecondMoment) -> _Sums:
    f, delta = part.fisher, part.prior
    nan = jnp.full((), jnp.nan, f.dtype)
    return _Sums(
        size=jnp.asarray(f.size, f.dtype),
        zeros=jnp.sum(part.nu == 0).astype(f.dtype),
        prior_dominated=jnp.sum(f < delta).astype(f.dtype),
        effective=jnp.sum(determined(f, delta)),
        nu=jnp.sum(part.nu),
        mean_square=nan if part.mu is None else _mean_square(part.nu, part.mu, moment),
        fisher=jnp.sum(f),
        reference=nan if part.reference is None else jnp.sum(part.reference),
        logs=_LogSums(*[nan] * 6)
        if part.reference is None
        else _log_sums(part.diagonal, part.reference),
    )


def _mean_square(nu: Array, mu: Array, moment: SecondMoment) -> Array:
    """Σ ḡ²: the noise of the running mean is subtracted."""
    if moment.mu_decay is None:
        return jnp.full((), jnp.nan, nu.dtype)
    noise = mean_variance_ratio(moment.mu_decay)
    square = jnp.square(jnp.asarray(mu, nu.dtype) / leading(moment.mu_weight, nu))
    return jnp.sum(square - noise * nu) / (1.0 - noise)


def _log_sums(f: Array, reference: Array) -> _LogSums:
    both = (f > 0) & (reference > 0)
    x = jnp.where(both, jnp.log(jnp.where(both, f, 1.0)), 0.0)
    y = jnp.where(both, jnp.log(jnp.where(both, reference, 1.0)), 0.0)
    return _LogSums(*map(jnp.sum, (both.astype(f.dtype), x, y, x * x, y * y, x * y)))


def _leaf(sums: _Sums) -> Leaf:
    return Leaf(
        sums.size,
        sums.zeros / sums.size,
        sums.prior_dominated / sums.size,
        sums.effective,
        # Noise may take the estimate a little below 0.
        jnp.clip(sums.mean_square / sums.nu, 0.0, 1.0),
        sums.fisher / sums.reference,
        sums.logs.correlation,
    )


def _or_nothing(tree: PyTree | None, like: PyTree) -> list[Any]:
    return [None] * len(jax.tree.leaves(like)) if tree is None else jax.tree.leaves(tree)


def _window(decay: ArrayLike) -> Any:
    """The number of updates whose mean with equal weights would be as noisy."""
    return 1.0 / mean_variance_ratio(
        np.asarray(decay, np.float64) if is_concrete(decay) else jnp.asarray(decay)
    )


def _float(value: Any) -> Array:
    return jnp.asarray(jnp.nan if value is None else value, jnp.float32)
