"""Can this second moment be trusted? What the state alone can tell, and one batch of data more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._support.checks import is_concrete, path_name
from l2m_optax._support.trees import align, broadcast, free
from l2m_optax._support.types import Array, ArrayLike, PyTree
from l2m_optax.moments._moment import SecondMoment, debiased, leading
from l2m_optax.posterior._posterior import Posterior, data_precision


class Leaf(NamedTuple):
    """What one leaf, or all of them together, is like; scalars of shape ().

    Attributes:
      size: number of entries.
      zeros: share of entries whose second moment is exactly 0.
      prior_dominated: share of entries of which the prior knows more than the data, F < δ.
      effective: effective number of parameters, Σ F/(F+δ).
      mean_gradient: share of the second moment that is the squared mean gradient; 0 at a mode,
        NaN where the state keeps no mean.
      ratio: Σ F over the reference's Σ F; NaN without a reference.
      log_correlation: correlation of log F with the reference's; NaN without one.
    """

    size: Array
    zeros: Array
    prior_dominated: Array
    effective: Array
    mean_gradient: Array
    ratio: Array
    log_correlation: Array


class Diagnosis(NamedTuple):
    """What `diagnose` found; `str` of it is a table with warnings.

    Attributes:
      leaves: a `Leaf` by path.
      total: a `Leaf` of all entries together.
      updates: number of updates that the mean has seen; NaN where unknown.
      window: number of updates it would average if it had seen more, (1+decay)/(1-decay); NaN
        where unknown.
    """

    leaves: dict[str, Leaf]
    total: Leaf
    updates: Array
    window: Array

    def warnings(self) -> list[str]:
        """What to doubt, and what to do about it, in plain words."""
        return list(_warnings(self))

    def __str__(self) -> str:
        """The table and the warnings."""
        rows = [_HEADINGS, *(_row(path, leaf) for path, leaf in self.leaves.items())]
        rows.append(_row("total", self.total))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(_cells(row, widths)) for row in rows]
        seen = f"updates seen: {_number(self.updates)}; averaged over: {_number(_averaged(self))}"
        return "\n".join([*lines, seen, *(f"warning: {text}" for text in self.warnings())])


def diagnose(
    posterior: Posterior,
    moment: SecondMoment | None = None,
    *,
    reference: PyTree | None = None,
) -> Diagnosis:
    r"""How far a posterior's second moment can be trusted, from the state alone.

    At a mode the second moment is all noise. Away from it, it holds the squared mean gradient
    $\bar g^2$ too, which the optimizer's own running mean with decay b shows:
    $\mathbb{E}[\hat\mu^2] = \bar g^2 + (\hat\nu - \bar g^2)\, r$ with $r = (1-b)/(1+b)$, so that
    $\bar g^2 = (\hat\mu^2 - r \hat\nu) / (1 - r)$.

    Args:
      posterior: a `Posterior`.
      moment: what `second_moment` returned; with it the share of the mean gradient is known.
      reference: F computed otherwise, like the mean of the posterior, to compare with: what
        `empirical_fisher` returns for one batch.

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
    parts = {
        path_name(path, ""): _Part(*entries)
        for (path, _), *entries in zip(
            jax.tree_util.tree_leaves_with_path(nu),
            jax.tree.leaves(data),
            jax.tree.leaves(broadcast(posterior.prior_precision, nu)),
            jax.tree.leaves(debiased(posterior.second_moment)),
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
        _float(moment.count),
        _float(None if moment.decay is None else _window(moment.decay)),
    )


class _Part(NamedTuple):
    """The arrays of one leaf."""

    fisher: Array
    prior: ArrayLike
    nu: Array
    mu: Array | None
    reference: Array | None


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
    logs: Array  # of both: number, Σx, Σy, Σx², Σy², Σxy


def _sums(part: _Part, moment: SecondMoment) -> _Sums:
    f, delta = part.fisher, part.prior
    nan = jnp.full((), jnp.nan, f.dtype)
    return _Sums(
        size=jnp.asarray(f.size, f.dtype),
        zeros=jnp.sum(part.nu == 0).astype(f.dtype),
        prior_dominated=jnp.sum(f < delta).astype(f.dtype),
        effective=jnp.sum(f / (f + delta)),
        nu=jnp.sum(part.nu),
        mean_square=nan if part.mu is None else _mean_square(part.nu, part.mu, moment),
        fisher=jnp.sum(f),
        reference=nan if part.reference is None else jnp.sum(part.reference),
        logs=jnp.full(6, nan) if part.reference is None else _log_sums(f, part.reference),
    )


def _mean_square(nu: Array, mu: Array, moment: SecondMoment) -> Array:
    """Σ ḡ², less what the noise of the running mean adds to it."""
    if moment.mu_decay is None:
        return jnp.full((), jnp.nan, nu.dtype)
    b: Any = moment.mu_decay
    noise = (1.0 - b) / (1.0 + b)
    square = jnp.square(jnp.asarray(mu, nu.dtype) / leading(moment.mu_weight, nu))
    return jnp.sum(square - noise * nu) / (1.0 - noise)


def _log_sums(f: Array, reference: Array) -> Array:
    """Of the entries that are positive in both: a logarithm needs them so."""
    both = (f > 0) & (reference > 0)
    x = jnp.where(both, jnp.log(jnp.where(both, f, 1.0)), 0.0)
    y = jnp.where(both, jnp.log(jnp.where(both, reference, 1.0)), 0.0)
    return jnp.stack([jnp.sum(z) for z in (both.astype(f.dtype), x, y, x * x, y * y, x * y)])


def _leaf(sums: _Sums) -> Leaf:
    n, x, y, xx, yy, xy = sums.logs
    spread = jnp.sqrt((n * xx - x * x) * (n * yy - y * y))
    return Leaf(
        sums.size,
        sums.zeros / sums.size,
        sums.prior_dominated / sums.size,
        sums.effective,
        # Noise may take the estimate a little below 0.
        jnp.clip(sums.mean_square / sums.nu, 0.0, 1.0),
        sums.fisher / sums.reference,
        (n * xy - x * y) / spread,
    )


def _or_nothing(tree: PyTree | None, like: PyTree) -> list[Any]:
    return [None] * len(jax.tree.leaves(like)) if tree is None else jax.tree.leaves(tree)


def _window(decay: ArrayLike) -> Any:
    exact = np.asarray(decay, np.float64) if is_concrete(decay) else jnp.asarray(decay)
    return (1.0 + exact) / (1.0 - exact)


def _float(value: Any) -> Array:
    return jnp.asarray(jnp.nan if value is None else value, jnp.float32)


def _averaged(diagnosis: Diagnosis) -> Array:
    return jnp.fmin(diagnosis.updates, diagnosis.window)


def _warnings(diagnosis: Diagnosis) -> Iterator[str]:
    updates, window = float(diagnosis.updates), float(diagnosis.window)
    averaged, total = float(_averaged(diagnosis)), diagnosis.total
    if updates < window:
        yield (
            f"the mean has seen {updates:.0f} of the {window:.0f} updates it looks back over, so "
            "that early training is in it: train longer, or track_second_moment with a shorter "
            "decay"
        )
    if averaged < 50:
        yield (
            f"the mean averages {averaged:.0f} batches, so that each entry is uncertain by "
            f"{math.sqrt(2 / averaged):.0%}: use a longer decay, or track_second_moment(0.999)"
        )
    if float(total.mean_gradient) > 0.1:
        yield (
            f"the mean gradient is {float(total.mean_gradient):.0%} of nu: anneal the learning "
            "rate, or pass centered=True"
        )
    if float(total.zeros) > 0.01:
        yield (
            f"{float(total.zeros):.0%} of the second moments are exactly 0: dead units, frozen "
            "weights or underflow; the prior alone sets the variance there"
        )
    if not 0.5 < float(total.ratio) < 2.0 and not math.isnan(float(total.ratio)):
        yield (
            f"F is {float(total.ratio):.2g} times the reference: check num_data, batch_size and "
            "loss_scale, and whether gradients are clipped or decayed before they are squared"
        )


_HEADINGS = ("leaf", "size", "zero", "F<prior", "effective", "mean grad.", "ratio", "log corr.")


def _row(path: str, leaf: Leaf) -> tuple[str, ...]:
    return (
        path,
        f"{int(leaf.size)}",
        _percent(leaf.zeros),
        _percent(leaf.prior_dominated),
        _number(leaf.effective, ".1f"),
        _percent(leaf.mean_gradient),
        _number(leaf.ratio, ".2f"),
        _number(leaf.log_correlation, ".2f"),
    )


def _cells(row: tuple[str, ...], widths: list[int]) -> Iterator[str]:
    yield row[0].ljust(widths[0])
    yield from (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))


def _percent(value: Array) -> str:
    return _number(value, ".0%")


def _number(value: Array, spec: str = ".0f") -> str:
    return "-" if math.isnan(float(value)) else format(float(value), spec)
