"""The scale: on conjugate linear regression the posterior's precision is known exactly."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import train_linear

import l2m_optax as l2m

STEPS = 20_000


def half_mean(residuals):
    return 0.5 * jnp.mean(jnp.square(residuals))


def mean(residuals):
    return jnp.mean(jnp.square(residuals))


def half_sum(residuals):
    return 0.5 * jnp.sum(jnp.square(residuals))


def adam():
    return optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))


def precision_ratio(data, params, state, **kwargs):
    posterior = l2m.laplace(params, state, num_data=2000, prior_precision=1e-6, **kwargs)
    return np.asarray(l2m.posterior.precision(posterior)["w"]) / data.hessian_diagonal


@pytest.mark.parametrize("batch_size", [1, 16, 128, 1000])
def test_precision_is_the_hessian_diagonal_at_any_batch_size(regression, batch_size):
    params, state = train_linear(
        adam(), regression, half_mean, batch_size=batch_size, steps=STEPS, seed=0
    )
    moment = l2m.second_moment(state, tx=adam())
    ratio = precision_ratio(
        regression, params, moment, batch_size=batch_size, loss_scale=regression.noise_variance
    )
    assert np.all((ratio > 0.85) & (ratio < 1.15)), ratio


@pytest.mark.parametrize(
    ("loss", "scale_over_noise"),
    [(half_mean, 1.0), (mean, 2.0), (half_sum, 16.0)],
    ids=["half_mean", "mean", "half_sum"],
)
def test_loss_scale_undoes_what_the_loss_multiplies(regression, loss, scale_over_noise):
    params, state = train_linear(adam(), regression, loss, batch_size=16, steps=STEPS, seed=1)
    ratio = precision_ratio(
        regression,
        params,
        l2m.second_moment(state, tx=adam()),
        batch_size=16,
        loss_scale=scale_over_noise * regression.noise_variance,
    )
    assert np.all((ratio > 0.85) & (ratio < 1.15)), ratio


def test_batches_with_replacement_leave_out_the_finite_population_factor(regression):
    moment = l2m.SecondMoment(nu={"w": jnp.ones(10)})
    kwargs = {"num_data": 2000, "batch_size": 1000}
    shuffled = l2m.laplace({"w": jnp.ones(10)}, moment, **kwargs)
    replaced = l2m.laplace({"w": jnp.ones(10)}, moment, **kwargs, with_replacement=True)
    np.testing.assert_allclose(shuffled.data_scale / replaced.data_scale, 1999 / 1000, rtol=1e-6)
    np.testing.assert_allclose(replaced.data_scale, 2000 * 1000)


def test_centering_removes_the_mean_gradient_far_from_the_mode(regression):
    """At fixed weights off the mode the moment is noise plus the squared mean; mu tells them apart.

    mu averages 19 batches, so its square is itself noisy: b1 near 1 and the mean over coordinates.
    """
    tx = optax.chain(optax.scale_by_adam(b1=0.99), optax.scale(0.0))
    params, state = train_linear(tx, regression, half_mean, batch_size=16, steps=STEPS, seed=2)
    per_example = -regression.x * (regression.y - regression.x @ params["w"])[:, None]
    exact = np.var(np.asarray(per_example, np.float64), axis=0) * 2000
    moment = l2m.second_moment(state, tx=tx)
    kwargs = {"num_data": 2000, "batch_size": 16}
    plain = l2m.posterior.data_precision(l2m.laplace(params, moment, **kwargs))["w"]
    centered = l2m.posterior.data_precision(l2m.laplace(params, moment, **kwargs, centered=True))[
        "w"
    ]
    assert np.max(plain / exact) > 2.0
    assert np.all((centered / exact > 0.7) & (centered / exact < 1.4)), centered / exact


def test_evidence_finds_the_noise_without_data_to_spare(regression):
    params, state = train_linear(adam(), regression, mean, batch_size=16, steps=STEPS, seed=3)
    posterior = l2m.laplace(params, state, tx=adam(), num_data=2000, batch_size=16, loss_scale=2.0)

    def predict(params, x):
        return x @ params["w"]

    residuals = regression.y - predict(params, regression.x)
    posterior, info = l2m.fit_noise_variance(predict, posterior, regression.x, regression.y)
    assert bool(info.converged)
    gamma = float(l2m.tuning.effective_parameters(posterior))
    rss = float(jnp.sum(jnp.square(residuals)))
    np.testing.assert_allclose(info.value, rss / (2000 - gamma), rtol=1e-4)
    np.testing.assert_allclose(info.value, regression.noise_variance, rtol=0.1)
    ratio = np.asarray(l2m.posterior.data_precision(posterior)["w"]) / regression.hessian_diagonal
    assert np.all((ratio > 0.8) & (ratio < 1.25)), ratio


def annealed(rate=1e-2):
    return optax.cosine_decay_schedule(rate, SHORT)


SHORT = 8_000
OPTIMIZERS = {
    "adadelta": lambda: optax.adadelta(annealed(1.0), rho=0.999),
    "adamw": lambda: optax.adamw(annealed(), weight_decay=0.0),
    "ademamix": lambda: optax.contrib.ademamix(annealed()),
    "adopt": lambda: optax.contrib.adopt(annealed(), b2=0.999),
    "amsgrad": lambda: optax.amsgrad(annealed()),
    "lamb": lambda: optax.lamb(annealed()),
    "nadam": lambda: optax.nadam(annealed()),
    "radam": lambda: optax.radam(annealed()),
    "rmsprop": lambda: optax.rmsprop(annealed(), decay=0.999),
    "tracked sgd": lambda: optax.chain(l2m.track_second_moment(0.999), optax.sgd(annealed(0.1))),
    "tracked lion": lambda: optax.chain(l2m.track_second_moment(0.999), optax.lion(annealed())),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_that_converges_gives_the_hessian_diagonal(regression, name):
    tx = l2m.expose_second_moment(OPTIMIZERS[name]())
    params, state = train_linear(tx, regression, half_mean, batch_size=16, steps=SHORT, seed=4)
    ratio = precision_ratio(
        regression, params, state, batch_size=16, loss_scale=regression.noise_variance
    )
    assert np.all((ratio > 0.8) & (ratio < 1.25)), ratio
