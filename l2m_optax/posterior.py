"""`laplace`: parameters and a second moment in, the posterior pytree out; nothing is copied.

The posterior is a Gaussian of independent coordinates with means θ* and variances T / (F + δ), kept
as the arrays the optimizer already holds; its precision is formed inside whatever uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2m_optax._checks import (
    check_alive,
    check_count,
    check_finite,
    check_floating,
    check_positive,
    check_second_moment,
    complaint,
    is_concrete,
    path_name,
)
from l2m_optax._moment import SecondMoment, align_moment, debiased, leading
from l2m_optax._tree import align, broadcast, fill, free, statistics_dtype, subtrees
from l2m_optax._types import ArrayLike, PyTree
from l2m_optax.second_moment import second_moment


class DiagonalPosterior(NamedTuple):
    """A Gaussian posterior of independent coordinates; a pytree that can be vmapped and saved.

    Attributes:
      mean: the trained parameters, the very arrays passed in.
      second_moment: the running mean of squared gradients; leaves that are `None` are points.
      data_scale: what turns a mean squared gradient into the data's precision F, shape ().
      prior_precision: δ, a scalar or a prefix tree of `mean`.
      prior_mean: θ0, like `mean`; `None` for zero.
      temperature: T, which multiplies the covariance, shape ().
      noise_variance: variance of Gaussian observations, shape (); 1 unless it was fitted.
    """

    mean: PyTree
    second_moment: SecondMoment
    data_scale: ArrayLike
    prior_precision: ArrayLike | PyTree
    prior_mean: PyTree | None
    temperature: ArrayLike
    noise_variance: ArrayLike


def laplace(
    params: PyTree,
    opt_state: PyTree | SecondMoment,
    *,
    num_data: int,
    batch_size: int,
    loss_scale: ArrayLike = 1.0,
    prior_precision: ArrayLike | PyTree = 1.0,
    prior_mean: PyTree | None = None,
    temperature: ArrayLike = 1.0,
    with_replacement: bool = False,
    centered: bool = False,
) -> DiagonalPosterior:
    r"""The Laplace posterior that a trained optimizer state already holds.

    Let $l_i$ be the negative log-likelihood of example $i$ of $N$ and let training minimise
    $c \cdot \mathrm{mean}_{i \in \text{batch}}\, l_i$ over batches of $B$. At a mode the mean
    gradient is zero, so the running mean of squared gradients tends to the variance of the
    batch gradient, $\hat\nu \to c^2 \,\mathrm{Var}_i(\nabla l_i)/B \cdot (N-B)/(N-1)$, and

    $$F = \frac{N B}{c^2} \cdot \frac{N-1}{N-B} \cdot \hat\nu, \qquad
      p(\theta | D) \approx N(\theta^*, T (F + \delta)^{-1})$$

    is the diagonal of the summed empirical Fisher, and the posterior. Building it does no
    arithmetic on arrays: its leaves are `params` and the state's own buffers.

    Args:
      params: the trained parameters θ*, real floating-point arrays.
      opt_state: the optimizer's state, or what `second_moment` made of it.
      num_data: N, number of training examples.
      batch_size: B, examples behind one gradient, over all devices. Where `optax.MultiSteps`
        averages k of them, and `second_moment` was given ``tx=`` or the optimizer is exposed, k*B
        is what is used; otherwise pass k*B.
      loss_scale: c. 1 for a mean of negative log-likelihoods; B if the loss sums over the batch;
        for Gaussian regression with noise variance s², ``2*s²`` for ``mean((y-f)²)`` and ``s²``
        for ``mean(½(y-f)²)`` (pass 2 or 1 and let `fit_noise_variance` find s²).
      prior_precision: δ > 0, a scalar or a prefix tree of `params`; `fit_prior_precision` finds it.
      prior_mean: θ0, like `params`; zero by default. In fine-tuning, the pre-trained weights.
      temperature: T > 0; `tune` finds it on validation data.
      with_replacement: whether batches are drawn with replacement, which leaves out (N-1)/(N-B).
      centered: subtract the squared mean gradient, read off the optimizer's running mean of
        gradients with decay b: $\mathrm{Var} = (\hat\nu - \hat\mu^2)(1+b)/(2b)$. For states
        taken far from a mode.

    Returns:
      The `DiagonalPosterior`.

    Raises:
      TypeError: if a leaf is no real floating-point array, or the state has no second moment.
      ValueError: if a number is not positive, ``batch_size >= num_data``, or the state does not
        match `params`, was never updated, or holds what no mean of squares can be.
      FloatingPointError: if the second moment or `prior_mean` holds NaN or infinity.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import l2m_optax as l2m
      >>> params, tx = {"w": jnp.ones(2)}, optax.adam(1e-3)
      >>> opt_state = tx.init(params)
      >>> _, opt_state = tx.update({"w": jnp.array([1.0, 2.0])}, opt_state, params)
      >>> moment = l2m.second_moment(opt_state, tx=tx)
      >>> posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
      >>> posterior.mean["w"] is params["w"]
      True

    Reference:
      Perone, Silveira & Paula, L2M (arXiv 2107.04695). The scale: see the documentation.
    """
    check_floating(params)
    check_alive(params, "params")
    moment = opt_state
    if not isinstance(opt_state, SecondMoment):
        moment = second_moment(opt_state, params)
    moment = _check_moment(align_moment(moment, params), centered)
    if prior_mean is not None:
        prior_mean = _check_prior_mean(prior_mean, params)
    check_positive("prior_precision", prior_precision, "a prior must have a finite width")
    check_positive("temperature", temperature, "pass 1 for the posterior itself")
    _broadcast_prior(prior_precision, params)
    return DiagonalPosterior(
        mean=params,
        second_moment=moment,
        data_scale=_data_scale(
            num_data, batch_size, moment.micro_steps, loss_scale, with_replacement
        ),
        prior_precision=jax.tree.map(_scalar, prior_precision),
        prior_mean=prior_mean,
        temperature=_scalar(temperature),
        noise_variance=_scalar(1.0),
    )


def _check_prior_mean(prior_mean: PyTree, params: PyTree) -> PyTree:
    """The prior's mean in the structure of `params`, with a finite array for each of them."""
    remedy = "pass the weights that training began from"
    check_alive(prior_mean, "prior_mean")
    prior_mean = align(prior_mean, params, "prior_mean")
    for path, leaf in jax.tree_util.tree_leaves_with_path(prior_mean, is_leaf=lambda x: x is None):
        if leaf is None:
            raise ValueError(complaint(path_name(path, "prior_mean"), "an array", "None", remedy))
    check_finite(prior_mean, "prior_mean", remedy)
    return prior_mean


def restrict(
    posterior: DiagonalPosterior, where: str | Callable[[tuple[Any, ...]], bool] | PyTree
) -> DiagonalPosterior:
    """The posterior over some leaves only; the others become points at their trained values.

    Args:
      posterior: a `DiagonalPosterior`.
      where: a key that occurs on the path of the leaves to keep (``"Dense_2"``), a predicate on
        the path as a tuple of keys (``lambda path: path[-1] == "kernel"``), or a prefix tree of
        booleans as in `optax.masked`.

    Returns:
      A posterior whose second moment is `None` outside of `where`. Nothing is copied.

    Raises:
      ValueError: if no leaf is kept.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
      >>> moment = l2m.SecondMoment(nu={"body": jnp.ones(2), "head": jnp.ones(2)})
      >>> posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
      >>> l2m.variance(l2m.restrict(posterior, "head"))["body"]
      Array([0., 0.], dtype=float32)
    """
    kept = _selection(posterior.mean, where)
    moment = posterior.second_moment
    nu = _keep(moment.nu, posterior.mean, kept)
    if not jax.tree.leaves(nu):
        paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(posterior.mean)]
        got = f"none of {', '.join(paths[:20])}"
        remedy = "pass a key on one of these paths"
        raise ValueError(complaint("where", "a leaf with a second moment", got, remedy))
    mu = None if moment.mu is None else _keep(moment.mu, posterior.mean, kept)
    return posterior._replace(second_moment=moment._replace(nu=nu, mu=mu))


def release(
    posterior: DiagonalPosterior, where: str | Callable[[tuple[Any, ...]], bool] | PyTree
) -> DiagonalPosterior:
    """Points made uncertain again, as uncertain as their prior: nothing is known of them from data.

    For leaves without a second moment (masked, frozen, or not kept by the optimizer), which are
    points unless they are released.

    Args:
      posterior: a `DiagonalPosterior`.
      where: the leaves to release, as in `restrict`; those that are no points stay as they are.

    Returns:
      A posterior whose second moment is zero, a new array, at the points in `where`: N(θ*, T/δ).

    Raises:
      ValueError: if `where` holds no point.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
      >>> moment = l2m.SecondMoment(nu={"body": None, "head": jnp.ones(2)})
      >>> posterior = l2m.laplace(params, moment, num_data=100, batch_size=10, prior_precision=4.0)
      >>> l2m.variance(l2m.release(posterior, "body"))["body"]
      Array([0.25, 0.25], dtype=float32)
    """
    moment, mean = posterior.second_moment, posterior.mean
    chosen = jax.tree.leaves(_selection(mean, where))
    held = subtrees(moment.nu, mean)
    points = [c and h is None for c, h in zip(chosen, held, strict=True)]
    if not any(points):
        remedy = "restrict the posterior first, or leave it as it is"
        raise ValueError(complaint("where", "a leaf that is a point", "none", remedy))

    def with_zeros(tree: PyTree) -> PyTree:
        entries = zip(points, subtrees(tree, mean), jax.tree.leaves(mean), strict=True)
        leaves = [jnp.zeros(jnp.shape(m), statistics_dtype(m)) if p else x for p, x, m in entries]
        return jax.tree.unflatten(jax.tree.structure(mean), leaves)

    mu = None if moment.mu is None else with_zeros(moment.mu)
    return posterior._replace(second_moment=moment._replace(nu=with_zeros(moment.nu), mu=mu))


def data_precision(posterior: DiagonalPosterior) -> PyTree:
    r"""The data's precision: $F = \text{data\_scale} \cdot \hat\nu / s^4$, without the prior.

    Args:
      posterior: a `DiagonalPosterior`.

    Returns:
      A tree like the mean, in float32 at least; `None` at points.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.array([0.0, 1.0]))
      >>> posterior = l2m.laplace(jnp.zeros(2), moment, num_data=101, batch_size=1)
      >>> l2m.data_precision(posterior)
      Array([  0., 101.], dtype=float32)
    """
    scale = posterior.data_scale / jnp.square(posterior.noise_variance)
    return jax.tree.map(lambda nu: scale * nu, _gradient_variance(posterior.second_moment))


@jax.jit
def precision(posterior: DiagonalPosterior) -> PyTree:
    r"""The posterior's precision, $(F + \delta) / T$; infinite at points.

    Args:
      posterior: a `DiagonalPosterior`.

    Returns:
      A tree like the mean, in float32 at least.

    Example:
      >>> import jax.numpy as jnp
      >>> import l2m_optax as l2m
      >>> moment = l2m.SecondMoment(nu=jnp.array([0.0, 1.0]))
      >>> posterior = l2m.laplace(jnp.zeros(2), moment, num_data=101, batch_size=1)
      >>> l2m.precision(posterior)
      Array([  1., 102.], dtype=float32)
    """
    return _with_points(free_precision(posterior), posterior.mean, jnp.inf)


@jax.jit
def variance(posterior: DiagonalPosterior) -> PyTree:
    r"""The posterior's variance, $T / (F + \delta)$; zero at points.

    Args:
      posterior: a `DiagonalPosterior`.

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
    return _with_points(free_variance(posterior), posterior.mean, 0.0)


def free_mean(posterior: DiagonalPosterior) -> PyTree:
    """The means of the leaves that are no points; `None` at points."""
    return free(posterior.mean, posterior.second_moment.nu)


def free_precision(posterior: DiagonalPosterior) -> PyTree:
    """`precision` with `None` at points."""
    data = data_precision(posterior)
    prior = broadcast(posterior.prior_precision, data)
    return jax.tree.map(lambda f, delta: (f + delta) / posterior.temperature, data, prior)


def free_variance(posterior: DiagonalPosterior) -> PyTree:
    """`variance` with `None` at points."""
    return jax.tree.map(lambda p: 1.0 / p, free_precision(posterior))


def free_deviation(posterior: DiagonalPosterior) -> PyTree:
    """How far the mean lies from the prior's, θ* - θ0, in float32 at least; `None` at points."""
    mean = free_mean(posterior)
    mean = jax.tree.map(lambda m: jnp.asarray(m, statistics_dtype(m)), mean)
    if posterior.prior_mean is None:
        return mean
    return jax.tree.map(jnp.subtract, mean, free(posterior.prior_mean, mean))


def _gradient_variance(moment: SecondMoment) -> PyTree:
    """The mean squared gradient, less the squared mean gradient where that was read too."""
    if moment.mu is None:
        return debiased(moment)
    b: Any = moment.mu_decay

    def center(nu: jax.Array, mu: jax.Array) -> jax.Array:
        mean = jnp.asarray(mu, nu.dtype) / leading(moment.mu_weight, nu)
        return jnp.maximum(nu - jnp.square(mean), 0.0) * (1.0 + b) / (2.0 * b)

    return jax.tree.map(center, debiased(moment), moment.mu)


def _check_moment(moment: SecondMoment, centered: bool) -> SecondMoment:
    """The moment as `laplace` keeps it: sound, and with `mu` only where it is to be subtracted."""
    check_second_moment(moment.nu)
    if not centered:
        return moment._replace(mu=None)
    if moment.mu is None or moment.mu_decay is None:
        got = "no running mean" if moment.mu is None else "an unknown decay"
        remedy = "pass second_moment(opt_state, tx=tx), or mean_decay= (Adam's b1, 0.9 by default)"
        expected = "the running mean of gradients and its decay"
        raise ValueError(complaint("centered=True", expected, got, remedy))
    return moment


def _data_scale(
    num_data: int,
    batch_size: int,
    micro_steps: ArrayLike,
    loss_scale: ArrayLike,
    with_replacement: bool,
) -> jax.Array:
    check_count("num_data", num_data, 2)
    check_count("batch_size", batch_size)
    batch: Any = batch_size * micro_steps
    check_positive("loss_scale", loss_scale, "pass 1 for a mean negative log-likelihood")
    correction: Any = 1.0
    if not with_replacement:
        _check_sampling_noise(num_data, batch)
        correction = (num_data - 1) / (num_data - batch)
    return _scalar(num_data * batch * correction / jnp.square(_scalar(loss_scale)))


def _check_sampling_noise(num_data: int, batch_size: ArrayLike) -> None:
    if is_concrete(batch_size) and np.any(np.asarray(batch_size) >= num_data):
        raise ValueError(
            complaint(
                "batch_size",
                f"fewer than num_data = {num_data}",
                str(batch_size),
                "a full batch has no sampling noise, so its squared gradients hold no curvature: "
                "train the last epochs on smaller batches, or track_second_moment on them",
            )
        )


def _broadcast_prior(prior_precision: PyTree, params: PyTree) -> None:
    try:
        broadcast(prior_precision, params)
    except ValueError as error:
        remedy = "pass one number, or a tree of numbers that is a prefix of params"
        got = str(jax.tree.structure(prior_precision))
        raise ValueError(complaint("prior_precision", "a prefix of params", got, remedy)) from error


def _scalar(value: ArrayLike) -> jax.Array:
    return jnp.asarray(value, jnp.float32)


def _with_points(tree: PyTree, mean: PyTree, value: float) -> PyTree:
    background = jax.tree.map(lambda m: jnp.full(jnp.shape(m), value, statistics_dtype(m)), mean)
    return fill(tree, background)


def _selection(params: PyTree, where: Any) -> PyTree:
    """A tree of booleans like `params`."""
    if not isinstance(where, str) and not callable(where):
        return broadcast(where, params)

    def holds(path: Sequence[Any], _: Any) -> bool:
        keys = tuple(_plain(key) for key in path)
        return where in keys if isinstance(where, str) else bool(where(keys))

    return jax.tree_util.tree_map_with_path(holds, params)


def _plain(key: Any) -> Any:
    """The dictionary key, index or attribute name inside a JAX path entry."""
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            return getattr(key, name)
    return key


def _keep(tree: PyTree, params: PyTree, kept: PyTree) -> PyTree:
    pairs = zip(subtrees(tree, params), jax.tree.leaves(kept), strict=True)
    leaves = [leaf if keep else None for leaf, keep in pairs]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)
