"""What cannot raise under `jit` gives NaN, never a wrong number; what is closed over raises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flat, moment_of, network_params

import l2m_optax as l2m

PARAMS = network_params(jax.random.key(0))
MOMENT = moment_of(PARAMS)
COUNTS = {"num_data": 50, "batch_size": 5}


def build(moment=MOMENT, params=PARAMS, **kwargs):
    return l2m.laplace(params, moment, **{**COUNTS, **kwargs})


def everywhere(posterior):
    """All that is made of a posterior's numbers."""
    precision, variance = l2m.posterior.precision(posterior), l2m.variance(posterior)
    numbers = l2m.posterior.entropy(posterior), l2m.log_prob(posterior, posterior.mean)
    return precision, variance, numbers


def tracked(count):
    state = l2m.transforms.TrackSecondMomentState(count, jnp.float32(0.9), MOMENT.nu)
    return build(l2m.second_moment(state, PARAMS))


# Each takes the bad number, which is traced.
BAD = {
    "negative prior": (lambda x: build(prior_precision=x), -1e-9),
    "prior 0": (lambda x: build(prior_precision=x), 0.0),
    "infinite prior": (lambda x: build(prior_precision=x), np.inf),
    "negative temperature": (lambda x: build(temperature=x), -1.0),
    "NaN temperature": (lambda x: build(temperature=x), np.nan),
    "infinite temperature": (lambda x: build(temperature=x), np.inf),
    "loss scale 0": (lambda x: build(loss_scale=x), 0.0),
    "batches beyond the data": (lambda x: build(MOMENT._replace(micro_steps=x)), 10),
    "no update": (lambda x: build(MOMENT._replace(count=x)), 0),
    "no update, tracked": (tracked, 0),
    "weight 0": (lambda x: build(MOMENT._replace(weight=x)), 0.0),
    "negative weight": (lambda x: build(MOMENT._replace(weight=x)), -0.1),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_numbers_that_are_traced_give_nan(case):
    function, number = BAD[case]
    found = jax.jit(lambda x: everywhere(function(x)))(jnp.asarray(number))
    assert np.all(np.isnan(flat(found)))
    with pytest.raises(ValueError, match=r": expected .*, got .*; "):
        function(jnp.asarray(number))


@pytest.mark.parametrize("bad", [-1.0, -1e-12, np.nan, np.inf])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_a_bad_entry_that_is_traced_gives_nan_there(bad, offset):
    nu = jnp.array([1.0, bad, 0.5])

    def variance(nu):
        moment = l2m.SecondMoment(nu=nu, offset=offset)
        posterior = l2m.laplace(jnp.ones(3), moment, **COUNTS)
        return l2m.variance(posterior), l2m.posterior.entropy(posterior)

    each, total = jax.jit(variance)(nu)
    assert np.isnan(each).tolist() == [False, True, False]
    assert np.isnan(total)


def test_a_bad_entry_that_is_traced_gives_nan_when_centered():
    def variance(nu):
        moment = l2m.SecondMoment(nu=nu, mu=jnp.ones(2), mu_decay=0.9)
        return l2m.variance(l2m.laplace(jnp.ones(2), moment, **COUNTS, centered=True))

    assert np.isnan(jax.jit(variance)(jnp.array([2.0, -1.0]))).tolist() == [False, True]


def test_centering_without_memory_gives_nan_where_it_is_traced():
    def variance(b):
        moment = l2m.SecondMoment(nu=jnp.ones(2), mu=jnp.array([0.0, 1.0]), mu_decay=b)
        return l2m.variance(l2m.laplace(jnp.ones(2), moment, **COUNTS, centered=True))

    assert np.all(np.isnan(jax.jit(variance)(0.0)))
    with pytest.raises(ValueError, match=r"centered=True: expected a decay between 0 and 1, got 0"):
        variance(0.0)


@pytest.mark.parametrize("traced", ["params", "nu", "prior_mean", "nothing"])
def test_arrays_that_are_closed_over_are_checked_inside_jit(traced):
    prior_mean = jax.tree.map(jnp.zeros_like, PARAMS)
    arguments = {"params": PARAMS, "nu": MOMENT.nu, "prior_mean": prior_mean, "nothing": 0.0}

    def variance(x):
        own = {**arguments, traced: x}
        moment = MOMENT._replace(nu=own["nu"])
        return l2m.variance(build(moment, own["params"], prior_mean=own["prior_mean"]))

    expected = flat(l2m.variance(build()))
    found = jax.jit(variance)(arguments[traced])
    np.testing.assert_allclose(flat(found), expected, rtol=1e-6)

    def step(carry, _):
        return carry, variance(arguments[traced])

    _, scanned = jax.lax.scan(step, 0, None, length=2)
    jax.tree.map(lambda a: np.testing.assert_array_equal(a[0], a[1]), scanned)


def test_what_is_closed_over_is_refused_inside_jit():
    nan = jax.tree.map(lambda x: x.at[0].set(jnp.nan), PARAMS)
    with pytest.raises(FloatingPointError, match=r"params\['body'\]\['bias'\]"):
        jax.jit(lambda: build(params=nan).data_scale)()
    with pytest.raises(FloatingPointError, match=r"nu\['body'\]\['bias'\]"):
        jax.jit(lambda: build(MOMENT._replace(nu=nan)).data_scale)()


def test_temperature_0_is_exactly_the_mode(posterior):
    for mode in (
        build(temperature=0.0),
        build(temperature=0),
        posterior._replace(temperature=jnp.zeros(())),
        jax.jit(lambda t: build(temperature=t))(0.0),
    ):
        assert np.all(flat(l2m.variance(mode)) == 0)
        assert np.all(np.isposinf(flat(l2m.posterior.precision(mode))))
        draws = l2m.sample(jax.random.key(0), mode, 3)
        jax.tree.map(
            lambda d, m: np.testing.assert_array_equal(d, jnp.stack([m] * 3)), draws, mode.mean
        )
        for function in (l2m.posterior.entropy, lambda p: l2m.log_prob(p, p.mean)):
            with pytest.raises(ValueError, match=r"temperature: expected a positive .*, got 0"):
                function(mode)
            assert np.isnan(jax.jit(function)(mode))


@pytest.mark.parametrize("temperature", [-1.0, -0.0, np.nan])
def test_density_needs_a_positive_temperature(posterior, temperature):
    cold = posterior._replace(temperature=temperature)
    with pytest.raises(ValueError, match="temperature: expected a positive"):
        l2m.posterior.entropy(cold)
