"""The posterior pytree: it aliases what it was given, and its parts are the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import flat, moment_of

import l2m_optax as l2m


def test_arrays_are_the_optimizers_own(params):
    tx = optax.adam(1e-3)
    _, state = tx.update(params, tx.init(params), params)
    posterior = l2m.laplace(
        params, l2m.second_moment(state, params, tx=tx), num_data=50, batch_size=5
    )
    for mine, theirs in [(posterior.mean, params), (posterior.second_moment.nu, state[0].nu)]:
        pairs = zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True)
        assert all(a is b for a, b in pairs)


def test_a_posterior_adds_no_arrays_but_scalars(params):
    before = {id(a) for a in jax.live_arrays()}
    moment = moment_of(params)
    known = before | {id(a) for a in jax.live_arrays()}
    posterior = l2m.restrict(l2m.laplace(params, moment, num_data=50, batch_size=5), "head")
    assert all(a.size == 1 for a in jax.live_arrays() if id(a) not in known)
    assert posterior.second_moment.nu["head"]["bias"] is moment.nu["head"]["bias"]


def test_precision_and_variance_are_the_formulas(posterior):
    nu = flat(posterior.second_moment.nu)
    expected = (50 * 5 * (49 / 45) * nu + 2.0) / 0.5
    np.testing.assert_allclose(flat(l2m.posterior.precision(posterior)), expected, rtol=1e-6)
    np.testing.assert_allclose(flat(l2m.variance(posterior)), 1 / expected, rtol=1e-6)


@pytest.mark.parametrize("weight", [{"mu_weight": 0.5}, {}])
def test_centered_subtracts_the_squared_mean(weight):
    b, nu, mu = 0.9, np.array([4.0, 1.0]), np.array([0.5, 2.0])
    moment = l2m.SecondMoment(nu=jnp.array(nu), mu=jnp.array(mu), mu_decay=b, **weight)
    posterior = l2m.laplace(jnp.zeros(2), moment, num_data=100, batch_size=1, centered=True)
    mean = mu / weight.get("mu_weight", 1.0)
    expected = 100 * np.maximum(nu - mean**2, 0) * (1 + b) / (2 * b)
    np.testing.assert_allclose(l2m.posterior.data_precision(posterior), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("head", {"head"}),
        (lambda path: path[0] == "body", {"body"}),
        ({"body": False, "head": True}, {"head"}),
        ({"body": {"kernel": True, "bias": True}, "head": False}, {"body"}),
    ],
    ids=["key", "predicate", "prefix", "tree"],
)
def test_restrict_fixes_the_others(posterior, where, kept):
    variance = l2m.variance(l2m.restrict(posterior, where))
    for module in ("body", "head"):
        assert np.all((flat(variance[module]) > 0) == (module in kept))
    assert np.all(
        np.isinf(flat(l2m.posterior.precision(l2m.restrict(posterior, where))))
        == (flat(variance) == 0)
    )


def test_fixed_leaves_take_part_in_nothing(posterior, inputs):
    from helpers import network

    last = l2m.restrict(posterior, "head")
    head_only = l2m.laplace(
        posterior.mean["head"],
        l2m.SecondMoment(nu=posterior.second_moment.nu["head"]),
        num_data=50,
        batch_size=5,
        prior_precision=2.0,
        temperature=0.5,
    )
    draws = l2m.sample(jax.random.key(0), last, 3)
    assert np.all(draws["body"]["kernel"] == last.mean["body"]["kernel"])
    for statistic in (
        l2m.posterior.entropy,
        l2m.tuning.log_evidence,
        l2m.tuning.effective_parameters,
    ):
        np.testing.assert_allclose(statistic(last), statistic(head_only), rtol=1e-5)
    np.testing.assert_allclose(
        l2m.log_prob(last, jax.tree.map(jnp.ones_like, last.mean)),
        l2m.log_prob(head_only, jax.tree.map(jnp.ones_like, head_only.mean)),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        l2m.fit_prior_precision(last).info.value,
        l2m.fit_prior_precision(head_only).info.value,
        rtol=1e-4,
    )

    def head_network(head, x):
        return network({"body": posterior.mean["body"], "head": head}, x)

    np.testing.assert_allclose(
        l2m.output_variance(network, last, inputs),
        l2m.output_variance(head_network, head_only, inputs),
        rtol=1e-5,
    )


def test_released_leaves_have_their_prior(posterior, inputs):
    from helpers import network

    released = l2m.release(l2m.restrict(posterior, "head"), lambda path: path[-1] == "kernel")
    variance = l2m.variance(released)
    np.testing.assert_allclose(variance["body"]["kernel"], 0.5 / 2.0)
    assert np.all(variance["body"]["bias"] == 0)
    np.testing.assert_array_equal(
        variance["head"]["kernel"], l2m.variance(posterior)["head"]["kernel"]
    )
    more = l2m.output_variance(network, released, inputs)
    assert np.all(more > l2m.output_variance(network, l2m.restrict(posterior, "head"), inputs))
    gained = l2m.tuning.effective_parameters(released) - l2m.tuning.effective_parameters(
        l2m.restrict(posterior, "head")
    )
    np.testing.assert_allclose(gained, 0.0, atol=1e-5)


def test_prior_mean_moves_the_prior_only(params):
    moment = moment_of(params)
    kwargs = {"num_data": 50, "batch_size": 5, "prior_precision": 3.0}
    at_params = l2m.laplace(params, moment, prior_mean=params, **kwargs)
    at_zero = l2m.laplace(params, moment, **kwargs)
    difference = l2m.tuning.log_evidence(at_params) - l2m.tuning.log_evidence(at_zero)
    np.testing.assert_allclose(difference, 1.5 * np.sum(flat(params) ** 2), rtol=1e-4)
