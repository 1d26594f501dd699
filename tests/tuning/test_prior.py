"""Evidence against a dense computation; its maximum against a grid and the stationarity law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flat, moment_of
from scipy import optimize

import l2m_optax as l2m


def dense_evidence(posterior, log_likelihood):
    f, theta = flat(l2m.posterior.data_precision(posterior)), flat(posterior.mean)
    delta = float(posterior.prior_precision)
    log_prior = -0.5 * delta * theta @ theta + 0.5 * len(theta) * np.log(delta / (2 * np.pi))
    sign, log_det = np.linalg.slogdet(np.diag(f + delta))
    assert sign > 0
    return log_likelihood + log_prior + 0.5 * len(theta) * np.log(2 * np.pi) - 0.5 * log_det


def test_log_evidence_is_the_dense_one(posterior):
    np.testing.assert_allclose(
        l2m.tuning.log_evidence(posterior, -12.5), dense_evidence(posterior, -12.5), rtol=1e-5
    )


@pytest.fixture
def pretrained(params):
    """Where fine-tuning began: near the parameters, and not at zero."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noise = [0.1 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    return jax.tree.map(jnp.add, params, treedef.unflatten(noise))


def test_log_evidence_around_a_prior_mean_is_an_integral(pretrained, params):
    """Of likelihood times prior, both Gaussian, coordinate by coordinate, by quadrature."""
    posterior = l2m.laplace(
        params,
        moment_of(params),
        num_data=50,
        batch_size=5,
        prior_precision=2.0,
        prior_mean=pretrained,
        temperature=0.5,
    )
    f, theta, theta_0 = (
        flat(tree) for tree in (l2m.posterior.data_precision(posterior), params, pretrained)
    )
    # The log likelihood whose sum with the log prior has its maximum at θ*, 0 there.
    slope = 2.0 * (theta - theta_0)
    total = 0.0
    for precision, at, origin, g in zip(f, theta, theta_0, slope, strict=True):
        width = 12.0 / np.sqrt(precision + 2.0)
        w, step = np.linspace(at - width, at + width, 20_001, retstep=True)
        log_likelihood = g * (w - at) - 0.5 * precision * (w - at) ** 2
        log_prior = -((w - origin) ** 2) + 0.5 * np.log(2.0 / (2 * np.pi))
        total += np.log(np.sum(np.exp(log_likelihood + log_prior)) * step)
    np.testing.assert_allclose(l2m.tuning.log_evidence(posterior), total, rtol=1e-5)


@pytest.mark.parametrize("where", [None, "head", "bias"])
def test_fit_is_stationary_around_a_prior_mean(posterior, pretrained, where):
    moved = posterior._replace(prior_mean=pretrained)
    if where is not None:
        moved = l2m.restrict(moved, where)
    fitted, info = l2m.fit_prior_precision(moved)
    assert info.converged
    held = jax.tree.map(lambda v: v > 0, l2m.variance(moved))
    free = flat(held) > 0
    distance = (flat(posterior.mean) - flat(pretrained))[free]
    gamma = float(l2m.tuning.effective_parameters(fitted))
    np.testing.assert_allclose(info.value, gamma / np.sum(distance**2), rtol=1e-4)
    around_zero = l2m.fit_prior_precision(moved._replace(prior_mean=None)).info.value
    assert where == "bias" or info.value > around_zero

    def negative(log_delta):
        candidate = moved._replace(prior_precision=jnp.exp(log_delta))
        return -float(l2m.tuning.log_evidence(candidate))

    best = optimize.minimize_scalar(negative, bounds=(-10, 10), method="bounded")
    np.testing.assert_allclose(np.log(info.value), best.x, atol=2e-3)


def test_only_the_distance_from_the_prior_mean_counts(posterior, pretrained):
    """A shift of parameters and prior mean together is no change."""
    moved = posterior._replace(prior_mean=pretrained)
    difference = jax.tree.map(jnp.subtract, posterior.mean, pretrained)
    shifted = posterior._replace(mean=difference)
    np.testing.assert_allclose(
        l2m.tuning.log_evidence(moved), l2m.tuning.log_evidence(shifted), rtol=1e-5
    )
    means, targets = jnp.zeros((50, 3)), 0.3 * jnp.ones((50, 3))

    def noise(p):
        return l2m.fit_noise_variance(lambda params, means: means, p, means, targets)

    for fit in (l2m.fit_prior_precision, noise):
        one, other = fit(moved), fit(shifted)
        np.testing.assert_allclose(one.info.value, other.info.value, rtol=1e-4)
        np.testing.assert_allclose(
            one.posterior.prior_precision, other.posterior.prior_precision, rtol=1e-4
        )


def test_a_frozen_base_adds_nothing_to_the_prior(params, pretrained):
    """LoRA in one tree: fixed leaves may have any value; they have no share in the evidence."""
    moment = moment_of(params)
    frozen = moment._replace(
        nu={"body": jax.tree.map(lambda _: None, params["body"]), "head": moment.nu["head"]}
    )
    kwargs = {"num_data": 50, "batch_size": 5}
    whole = l2m.laplace(params, frozen, prior_mean=pretrained, **kwargs)
    alone = l2m.laplace(
        params["head"],
        moment._replace(nu=moment.nu["head"]),
        prior_mean=pretrained["head"],
        **kwargs,
    )
    np.testing.assert_allclose(
        l2m.tuning.log_evidence(whole), l2m.tuning.log_evidence(alone), rtol=1e-6
    )
    found = [l2m.fit_prior_precision(p).info.value for p in (whole, alone)]
    np.testing.assert_allclose(*found, rtol=1e-6)
    without = l2m.laplace(
        params, frozen, prior_mean={**pretrained, "body": params["body"]}, **kwargs
    )
    np.testing.assert_allclose(l2m.fit_prior_precision(without).info.value, found[0], rtol=1e-6)


def test_a_donated_prior_mean_is_refused(params, pretrained):
    jax.tree.leaves(pretrained)[0].delete()
    with pytest.raises(ValueError, match=r"prior_mean.*a donated buffer"):
        l2m.laplace(params, moment_of(params), num_data=50, batch_size=5, prior_mean=pretrained)


@pytest.mark.parametrize(
    ("value", "error"), [(None, ValueError), (jnp.nan, FloatingPointError)], ids=["None", "NaN"]
)
def test_a_prior_mean_that_is_none_of_a_weight_is_refused(params, pretrained, value, error):
    leaf = None if value is None else jnp.full_like(pretrained["head"]["bias"], value)
    broken = {**pretrained, "head": {**pretrained["head"], "bias": leaf}}
    with pytest.raises(error, match=r"prior_mean\['head'\]\['bias'\].*training began from"):
        l2m.laplace(params, moment_of(params), num_data=50, batch_size=5, prior_mean=broken)


def test_fit_is_the_maximum_scipy_finds(posterior):
    def negative(log_delta):
        candidate = posterior._replace(prior_precision=jnp.exp(log_delta))
        return -float(l2m.tuning.log_evidence(candidate))

    best = optimize.minimize_scalar(negative, bounds=(-10, 10), method="bounded")
    fitted, info = l2m.fit_prior_precision(posterior)
    assert info.converged
    assert not info.edge
    np.testing.assert_allclose(np.log(info.value), best.x, atol=2e-3)
    gamma = float(l2m.tuning.effective_parameters(fitted))
    np.testing.assert_allclose(info.value, gamma / np.sum(flat(posterior.mean) ** 2), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_fit_finds_the_same_maximum_from_any_start(posterior, scale):
    posterior = posterior._replace(data_scale=posterior.data_scale * scale)
    starts = jnp.logspace(-8, 8, 100)
    fit = jax.jit(
        jax.vmap(lambda s: l2m.fit_prior_precision(posterior._replace(prior_precision=s)).info)
    )
    info = fit(starts)
    assert np.all(info.converged)
    np.testing.assert_allclose(info.value, info.value[50], rtol=1e-4)
    assert np.max(info.iterations) <= 10  # of Newton; halving alone would take 20


@pytest.mark.parametrize("value", [1e-12, 1e12])
def test_a_maximum_is_found_from_1e_minus_12_to_1e12(value):
    """Of one coordinate that the data determine: δ = 1 / θ*²."""
    posterior = l2m.laplace(
        jnp.full(1, value**-0.5), l2m.SecondMoment(nu=jnp.ones(1)), num_data=2, batch_size=1
    )
    info = l2m.fit_prior_precision(posterior._replace(data_scale=jnp.float32(1e20))).info
    assert info.converged
    np.testing.assert_allclose(info.value, value, rtol=1e-4)


def test_a_fit_that_starts_at_its_maximum_takes_one_step(posterior):
    fitted, info = l2m.fit_prior_precision(posterior)
    assert info.iterations > 1
    assert l2m.fit_prior_precision(fitted).info.iterations == 1


@pytest.mark.parametrize(
    "groups",
    [
        {"body": "b", "head": "h"},
        lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[0].key[0], params),
    ],
    ids=["prefix", "function"],
)
def test_groups_are_fitted_each_on_its_own(posterior, groups):
    fitted, info = l2m.fit_prior_precision(posterior, groups=groups)
    for label, module in (("b", "body"), ("h", "head")):
        alone = l2m.fit_prior_precision(l2m.restrict(posterior, module)).info.value
        np.testing.assert_allclose(info.value[label], alone, rtol=1e-4)
        np.testing.assert_allclose(fitted.prior_precision[module]["bias"], alone, rtol=1e-4)
        assert bool(info.converged[label])
    again = l2m.fit_prior_precision(fitted, groups=groups)
    np.testing.assert_allclose(again.info.value["b"], info.value["b"], rtol=1e-4)


def test_groups_leave_fixed_leaves_alone(posterior):
    last = l2m.restrict(posterior, "head")
    fitted, info = l2m.fit_prior_precision(last, groups={"body": "b", "head": "h"})
    assert set(info.value) == {"h"}
    assert float(fitted.prior_precision["body"]["bias"]) == 2.0
    assert np.all(np.isfinite(flat(l2m.variance(fitted))))


def test_an_evidence_without_a_maximum_is_reported_and_not_answered(posterior):
    at_prior_mean = posterior._replace(prior_mean=posterior.mean)
    with pytest.warns(UserWarning, match="prior_precision: expected a maximum.*as it was"):
        fitted, info = l2m.fit_prior_precision(at_prior_mean)
    assert info.edge
    assert not info.converged
    assert float(fitted.prior_precision) == float(info.value) == 2.0
    no_data = posterior._replace(
        second_moment=posterior.second_moment._replace(
            nu=jax.tree.map(jnp.zeros_like, posterior.mean)
        )
    )
    with pytest.warns(UserWarning, match=r"prior_precision of \['body', 'head'\]"):
        edge = l2m.fit_prior_precision(no_data, groups={"body": "body", "head": "head"}).info.edge
    assert edge["body"]
    assert edge["head"]


def test_under_jit_an_edge_gives_no_warning(posterior):
    at_prior_mean = posterior._replace(prior_mean=posterior.mean)
    assert jax.jit(l2m.fit_prior_precision)(at_prior_mean).info.edge
