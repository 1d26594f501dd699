"""A posterior in a mixture of bases against the dense Gaussian, its covariance formed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense_covariance, flat, network_params, rotated_moment
from scipy import linalg, stats

import l2m_optax as l2m

DELTA = {"body": 2.0, "head": 0.5}


@pytest.fixture(scope="module")
def rotated():
    params = network_params(jax.random.key(0))
    prior_mean = network_params(jax.random.key(5))
    return l2m.laplace(
        params,
        rotated_moment(params),
        num_data=50,
        batch_size=5,
        prior_precision=DELTA,
        prior_mean=prior_mean,
        temperature=0.5,
    )


@pytest.fixture(scope="module")
def covariance(rotated):
    return dense_covariance(rotated)


def prior_covariance(posterior):
    return np.diag(
        flat({k: jax.tree.map(lambda p, k=k: np.full(p.shape, 1 / DELTA[k]), v)
              for k, v in posterior.mean.items()})
    )  # fmt: skip


def test_variance_and_precision_are_the_diagonals(rotated, covariance):
    np.testing.assert_allclose(flat(l2m.variance(rotated)), np.diag(covariance), rtol=1e-4)
    precision = flat(l2m.posterior.precision(rotated))
    np.testing.assert_allclose(precision, np.diag(linalg.inv(covariance)), rtol=1e-4)


def test_density_and_entropy_are_the_dense_gaussians(rotated, covariance):
    gaussian = stats.multivariate_normal(flat(rotated.mean), covariance)
    np.testing.assert_allclose(l2m.posterior.entropy(rotated), gaussian.entropy(), rtol=1e-5)
    theta = jax.tree.map(
        lambda m: m + 0.1 * jnp.cos(jnp.arange(m.size).reshape(m.shape)), rotated.mean
    )
    np.testing.assert_allclose(
        l2m.log_prob(rotated, theta), gaussian.logpdf(flat(theta)), rtol=1e-5
    )


def test_draws_have_the_covariance(rotated, covariance):
    number = 40_000
    draws = l2m.sample(jax.random.key(0), rotated, number, antithetic=True)
    stacked = np.concatenate([np.reshape(d, (number, -1)) for d in jax.tree.leaves(draws)], axis=1)
    whitened = linalg.solve_triangular(
        linalg.cholesky(covariance, lower=True), (stacked - flat(rotated.mean)).T, lower=True
    )
    assert np.max(np.abs(np.cov(whitened) - np.eye(len(covariance)))) < 6 * np.sqrt(2 / number)


def test_one_draw_in_a_program_is_one_of_many(rotated):
    """Draws made one at a time, as `linearized` in chunks makes them, are rotated likewise."""
    from l2m_optax.posterior._drawing import deviation, deviations, draw, keys_and_signs

    key = jax.random.key(3)
    keys, signs = keys_and_signs(key, 4)
    for many, one in (
        (l2m.sample(key, rotated, 4), jax.vmap(lambda k, s: draw(k, rotated, s))(keys, signs)),
        (
            deviations(key, rotated, 4),
            jax.vmap(lambda k, s: deviation(k, rotated, s))(keys, signs),
        ),
    ):
        np.testing.assert_allclose(flat(many), flat(one), rtol=1e-4, atol=1e-5)


def test_divergence_evidence_and_effective_parameters_are_the_dense_ones(rotated, covariance):
    prior, shift = prior_covariance(rotated), flat(rotated.mean) - flat(rotated.prior_mean)
    inverse = linalg.inv(prior)
    size = len(shift)
    log_ratio = np.linalg.slogdet(prior)[1] - np.linalg.slogdet(covariance)[1]
    divergence = 0.5 * (np.trace(inverse @ covariance) + shift @ inverse @ shift - size + log_ratio)
    np.testing.assert_allclose(l2m.tuning.kl_divergence(rotated), divergence, rtol=1e-4)
    data = 0.5 * linalg.inv(covariance) - inverse  # the temperature is ½
    evidence = -0.5 * (shift @ inverse @ shift + np.linalg.slogdet(np.eye(size) + prior @ data)[1])
    np.testing.assert_allclose(l2m.tuning.log_evidence(rotated), evidence, rtol=1e-4)
    gamma = np.trace(data @ linalg.inv(data + inverse))
    np.testing.assert_allclose(l2m.tuning.effective_parameters(rotated), gamma, rtol=1e-4)


def test_the_prior_of_the_evidence_is_stationary(rotated):
    fitted, info = l2m.fit_prior_precision(rotated)
    assert np.all(info.converged)
    slope = jax.grad(
        lambda log: l2m.tuning.log_evidence(fitted._replace(prior_precision=jnp.exp(log)))
    )(jnp.log(fitted.prior_precision))
    assert abs(float(slope)) < 1e-3 * float(l2m.tuning.effective_parameters(fitted))


def test_fixed_and_free_leaves_keep_their_bases(rotated, covariance):
    head = l2m.restrict(rotated, "head")
    size = sum(leaf.size for leaf in jax.tree.leaves(rotated.mean["body"]))
    np.testing.assert_allclose(
        flat(l2m.variance(head))[size:], np.diag(covariance)[size:], rtol=1e-4
    )
    assert np.all(flat(l2m.variance(head))[:size] == 0)
    freed = l2m.release(head, "body")
    np.testing.assert_allclose(flat(l2m.variance(freed))[:size], 0.25, rtol=1e-6)
    again = dense_covariance(freed)
    np.testing.assert_allclose(again[size:, size:], covariance[size:, size:], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        l2m.posterior.entropy(freed), stats.multivariate_normal(None, again).entropy(), rtol=1e-5
    )


def test_a_mean_gradient_is_subtracted_in_the_basis():
    params = network_params(jax.random.key(0))
    moment = rotated_moment(params)
    mu = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), params)
    moment = moment._replace(mu=mu, mu_decay=0.5)
    built = l2m.laplace(params, moment, num_data=50, batch_size=5, centered=True)
    plain = l2m.laplace(params, moment, num_data=50, batch_size=5)
    head = built.second_moment.basis["head"]["kernel"]
    rotated_mean = 0.1 * np.ones((5, 3)) @ np.asarray(head.right)
    scale, nu = float(built.data_scale), np.asarray(moment.nu["head"]["kernel"])
    expected = scale * np.maximum(nu - rotated_mean**2, 0) / (1 - 1 / 3)
    found = l2m.posterior.data_precision(built)["head"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, l2m.posterior.data_precision(plain)["head"]["kernel"])


def test_diagnosis_compares_in_the_space_of_the_parameters(rotated):
    """The exact diagonal as a reference: a ratio of 1 and a correlation of 1."""
    precision = l2m.posterior.precision(rotated)
    reference = jax.tree_util.tree_map_with_path(
        lambda path, p: 0.5 * p - DELTA[path[0].key], precision
    )
    found = l2m.diagnose(rotated, reference=reference).total
    np.testing.assert_allclose(found.ratio, 1.0, rtol=1e-4)
    np.testing.assert_allclose(found.log_correlation, 1.0, rtol=1e-4)


def test_an_ensemble_of_posteriors_in_their_bases():
    def build(key):
        params = network_params(key)
        return l2m.laplace(params, rotated_moment(params), num_data=50, batch_size=5)

    keys = jax.random.split(jax.random.key(0), 2)
    members = jax.vmap(build)(keys)
    together = jax.vmap(l2m.variance)(members)
    draws = jax.vmap(lambda k, p: l2m.sample(k, p, 2))(keys, members)
    for i, key in enumerate(keys):
        alone = build(key)
        one = jax.tree.map(lambda x, i=i: x[i], (together, draws))
        expected = (l2m.variance(alone), l2m.sample(key, alone, 2))
        np.testing.assert_allclose(flat(one), flat(expected), rtol=1e-4, atol=1e-5)


def test_parameters_of_low_precision_keep_their_dtype():
    params = network_params(jax.random.key(0), jnp.bfloat16)
    posterior = l2m.laplace(params, rotated_moment(params), num_data=50, batch_size=5)
    draws = l2m.sample(jax.random.key(1), posterior, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves(draws)} == {jnp.dtype(jnp.bfloat16)}
    variance = l2m.variance(posterior)
    assert {leaf.dtype for leaf in jax.tree.leaves(variance)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(flat(variance), np.diag(dense_covariance(posterior)), rtol=1e-4)
