"""The tuned temperature against a dense search with the same draws, and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network
from scipy import optimize

import l2m_optax as l2m


@pytest.fixture
def labelled(posterior):
    inputs = jax.random.normal(jax.random.key(2), (300, 4))
    logits = 0.3 * network(posterior.mean, inputs)
    return inputs, jax.random.categorical(jax.random.key(3), logits)


def test_temperature_minimises_the_validation_loss(posterior, labelled):
    inputs, labels = labelled
    key = jax.random.key(9)
    fitted, info = l2m.tune(posterior, network, inputs, labels, key=key, num_samples=64)
    assert info.converged
    assert not info.edge

    def loss(log_temperature):
        candidate = posterior._replace(temperature=jnp.exp(log_temperature))
        logits = l2m.linearized(key, network, candidate, inputs, num_samples=64, antithetic=True)
        return float(l2m.metrics.negative_log_likelihood(l2m.classification(logits).probs, labels))

    best = optimize.minimize_scalar(loss, bounds=(-8, 6), method="bounded")
    np.testing.assert_allclose(loss(np.log(info.value)), best.fun, atol=1e-4)
    assert float(fitted.temperature) == float(info.value)


def test_own_temperature_plays_no_part_and_draws_repeat(posterior, labelled):
    first = l2m.tune(posterior, network, *labelled).info.value
    hotter = posterior._replace(temperature=jnp.float32(30.0))
    assert float(l2m.tune(hotter, network, *labelled).info.value) == float(first)


def test_regression_targets_use_the_exact_variance(posterior, inputs):
    x = jax.random.normal(jax.random.key(2), (200, 4))
    posterior = posterior._replace(noise_variance=jnp.float32(0.1), temperature=jnp.float32(1.0))
    unit = l2m.output_variance(network, posterior, x)
    mean = network(posterior.mean, x)
    noise = jax.random.normal(jax.random.key(8), mean.shape)
    targets = mean + jnp.sqrt(0.1 + 4.0 * unit) * noise
    info = l2m.tune(posterior, network, x, targets).info
    assert info.converged
    np.testing.assert_allclose(info.value, 4.0, rtol=0.4)


def test_a_bound_is_reported_and_not_returned(posterior):
    inputs = jax.random.normal(jax.random.key(2), (50, 4))
    sure = jnp.argmax(network(posterior.mean, inputs), axis=-1)
    fitted, info = l2m.tune(posterior, network, inputs, sure, bounds=(1e-3, 1e-1))
    assert info.edge
    assert not info.converged
    assert float(fitted.temperature) == float(posterior.temperature)


def test_nan_outputs_are_refused_by_input(posterior, labelled):
    inputs, labels = labelled
    with pytest.raises(FloatingPointError, match="NaN for input 7 and 1 more"):
        l2m.tune(posterior, network, inputs.at[7:9, 0].set(jnp.nan), labels)


def linear(params, x):
    return x @ params


@pytest.fixture
def overconfident():
    """A linear model whose errors ask for a finite prior precision and a finite temperature."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) * np.array([3.0, 9.0])
    precision = np.array([0.5, 60.0])
    epistemic = 4.0 * np.square(x) @ (1.0 / (precision + 2.0))
    y = np.sqrt(0.3 + epistemic) * rng.normal(size=400)
    moment = l2m.SecondMoment(nu=jnp.asarray(precision[:, None] / 100, jnp.float32))
    posterior = l2m.laplace(
        jnp.zeros((2, 1)), moment, num_data=100, batch_size=1, with_replacement=True
    )
    posterior = posterior._replace(noise_variance=jnp.float32(0.3), data_scale=jnp.float32(9.0))

    def loss(logs):
        prior, temperature = np.exp(logs)
        total = 0.3 + temperature * np.square(x) @ (1.0 / (precision + prior))
        return np.mean(0.5 * (np.log(2 * np.pi * total) + np.square(y) / total))

    return posterior, jnp.asarray(x), jnp.asarray(y[:, None]), loss


def test_both_are_what_scipy_finds_by_the_closed_form(overconfident):
    posterior, x, y, loss = overconfident
    names = ("prior_precision", "temperature")
    fitted, info = l2m.tune(posterior, linear, x, y, over=names)
    best = optimize.minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6})
    assert all(info.converged.values())
    found = np.log([info.value[name] for name in names])
    np.testing.assert_allclose(found, best.x, atol=0.02)
    np.testing.assert_allclose(loss(found), best.fun, atol=1e-6)
    assert float(fitted.prior_precision) == float(info.value["prior_precision"])


@pytest.mark.parametrize("over", ["prior_precision", "temperature"])
def test_one_is_what_scipy_finds_with_the_other_as_it_is(overconfident, over):
    posterior, x, y, loss = overconfident
    posterior = posterior._replace(prior_precision=jnp.float32(3.0), temperature=jnp.float32(2.0))
    info = l2m.tune(posterior, linear, x, y, over=over).info
    own = {"prior_precision": 3.0, "temperature": 2.0}

    def along(log):
        values = own | {over: np.exp(log)}
        return loss(np.log([values["prior_precision"], values["temperature"]]))

    best = optimize.minimize_scalar(along, bounds=(-6, 6), method="bounded")
    np.testing.assert_allclose(np.log(info.value), best.x, atol=2e-3)


def test_newton_on_the_mean_field_agrees_with_a_dense_search(posterior, labelled):
    inputs, labels = labelled
    info = l2m.tune(posterior, network, inputs, labels, kind="closed_form").info
    mean = network(posterior.mean, inputs)
    unit = l2m.output_covariance(network, posterior._replace(temperature=1.0), inputs)

    def loss(log_temperature):
        probs = l2m.predict.mean_field(mean, jnp.exp(log_temperature) * unit)
        return float(l2m.metrics.negative_log_likelihood(probs, labels))

    best = optimize.minimize_scalar(loss, bounds=(-8, 6), method="bounded")
    assert info.converged
    np.testing.assert_allclose(loss(np.log(info.value)), best.fun, atol=1e-6)


def test_monte_carlo_is_tuned_on_its_own_draws(posterior, labelled):
    inputs, labels = labelled
    key = jax.random.key(9)
    kwargs = {"kind": "monte_carlo", "key": key, "num_samples": 8}
    info = l2m.tune(posterior, network, inputs, labels, **kwargs).info
    logs = np.linspace(-6, 6, 49)

    def loss(log_temperature):
        hot = posterior._replace(temperature=jnp.exp(log_temperature))
        logits = l2m.monte_carlo(key, network, hot, inputs, num_samples=8, antithetic=True)
        return float(l2m.metrics.negative_log_likelihood(l2m.classification(logits).probs, labels))

    assert loss(np.log(info.value)) <= min(map(loss, logs)) + 1e-5


@pytest.mark.parametrize("kind", ["linearized", "closed_form"])
def test_a_loader_gives_what_the_arrays_give(posterior, labelled, kind):
    inputs, labels = (np.asarray(a) for a in labelled)
    loader = [(inputs[i : i + 128], labels[i : i + 128]) for i in range(0, 300, 128)]
    whole = l2m.tune(posterior, network, inputs, labels, kind=kind, num_samples=8).info
    parts = l2m.tune(posterior, network, loader, kind=kind, num_samples=8).info
    np.testing.assert_allclose(parts.value, whole.value, rtol=1e-3)


def test_a_likelihood_of_ones_own_is_averaged_over_draws(posterior, labelled):
    inputs, labels = labelled
    default = l2m.tune(posterior, network, inputs, labels, num_samples=8).info
    own = l2m.tune(
        posterior,
        network,
        inputs,
        labels,
        num_samples=8,
        likelihood=l2m.likelihoods.categorical,
    ).info
    assert float(own.value) == float(default.value)


class Stops:
    """Says that it holds three batches, and yields one."""

    def __len__(self):
        return 3

    def __iter__(self):
        yield np.ones((2, 4), np.float32), np.array([0, 1])


X, Y = np.ones((4, 4), np.float32), np.array([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (iter([(X, Y)]), ValueError, "used once"),
        ([], ValueError, "at least one batch, got 0"),
        (Stops(), ValueError, "expected 3 batches, got 1"),
        ([X], TypeError, "pairs"),
        ([(X, Y), (X, Y + 1)], ValueError, "labels from 0 to 2"),
        ([(X, Y[:3])], ValueError, r"non-empty \(4,\)"),
        ([(X, np.array(["a"] * 4))], TypeError, "arrays of numbers"),
        ([(X[:0], Y[:0])], ValueError, "leading axis"),
        (3, TypeError, "an iterable"),
    ],
    ids=["iterator", "empty", "ends early", "no pairs", "label", "shape", "text", "0 rows", "int"],
)
def test_bad_loaders_are_refused(posterior, loader, error, message):
    with pytest.raises(error, match=message):
        l2m.tune(posterior, network, loader)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"over": "noise"}, "over"),
        ({"over": ()}, "over"),
        ({"objective": "loss"}, "objective"),
        ({"kind": "exact"}, "kind"),
        ({"kind": "closed_form", "objective": "elbo"}, "closed_form"),
        ({"bounds": {"prior_precision": (1, 2)}}, "bounds"),
        ({"bounds": (1.0, 0.5)}, "low < high"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
def test_unknown_names_are_refused(posterior, kwargs, message):
    with pytest.raises(ValueError, match=message):
        l2m.tune(posterior, network, X, Y, **kwargs)
