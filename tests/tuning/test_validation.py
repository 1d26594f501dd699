"""The tuned temperature against a dense search with the same draws, and its edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network
from scipy import optimize

import l2m_optax as l2m

DRAWS = 8
tune = functools.partial(l2m.tune, num_samples=DRAWS)
"""Most tests share its program: they have the network, draws and shapes in common."""


@pytest.fixture
def labelled(posterior):
    inputs = jax.random.normal(jax.random.key(2), (300, 4))
    logits = 0.3 * network(posterior.mean, inputs)
    return inputs, jax.random.categorical(jax.random.key(3), logits)


def test_temperature_minimises_the_validation_loss(posterior, labelled):
    inputs, labels = labelled
    key = jax.random.key(0)
    fitted, info = tune(network, posterior, inputs, labels)
    assert info.converged
    assert not info.edge

    @jax.jit
    def loss(log_temperature):
        candidate = posterior._replace(temperature=jnp.exp(log_temperature))
        logits = l2m.linearized(key, network, candidate, inputs, num_samples=DRAWS, antithetic=True)
        return l2m.metrics.negative_log_likelihood(l2m.classification(logits).probs, labels)

    best = optimize.minimize_scalar(loss, bounds=(-8, 6), method="bounded")
    np.testing.assert_allclose(loss(np.log(info.value)), best.fun, atol=1e-4)
    assert float(fitted.temperature) == float(info.value)


def test_own_temperature_plays_no_part_and_draws_repeat(posterior, labelled):
    first = tune(network, posterior, *labelled).info.value
    hotter = posterior._replace(temperature=jnp.float32(30.0))
    assert float(tune(network, hotter, *labelled).info.value) == float(first)


def test_regression_targets_use_the_exact_variance(posterior, inputs):
    x = jax.random.normal(jax.random.key(2), (200, 4))
    posterior = posterior._replace(noise_variance=jnp.float32(0.1), temperature=jnp.float32(1.0))
    unit = l2m.output_variance(network, posterior, x)
    mean = network(posterior.mean, x)
    noise = jax.random.normal(jax.random.key(8), mean.shape)
    targets = mean + jnp.sqrt(0.1 + 4.0 * unit) * noise
    info = tune(network, posterior, x, targets).info
    assert info.converged
    np.testing.assert_allclose(info.value, 4.0, rtol=0.4)


@pytest.fixture
def certain(posterior):
    """Inputs with the very labels that the mode predicts: it cannot be improved upon."""
    inputs = jax.random.normal(jax.random.key(2), (300, 4))
    return inputs, jnp.argmax(network(posterior.mean, inputs), axis=-1)


@pytest.mark.parametrize("kind", ["linearized", "monte_carlo", "exact"])
@pytest.mark.parametrize("bounds", [None, (1e-3, 1e-1), (0.5, 2.0)])
def test_where_the_mode_predicts_best_the_temperature_is_zero(posterior, certain, kind, bounds):
    fitted, info = tune(network, posterior, *certain, kind=kind, bounds=bounds)
    assert info.edge
    assert not info.converged
    assert float(fitted.temperature) == float(info.value) == 0.0


@pytest.mark.parametrize("kind", ["linearized", "exact"])
def test_at_the_mode_the_prior_stays(posterior, certain, kind):
    names = ("prior_precision", "temperature")
    fitted, info = tune(network, posterior, *certain, over=names, kind=kind)
    assert float(fitted.temperature) == float(info.value["temperature"]) == 0.0
    assert float(fitted.prior_precision) == float(info.value["prior_precision"]) == 2.0
    assert all(info.edge.values())
    assert not any(info.converged.values())


@pytest.mark.parametrize("kind", ["linearized", "exact"])
@pytest.mark.parametrize("end", ["lower", "upper"])
def test_a_temperature_on_a_bound_is_kept_with_a_warning(posterior, labelled, kind, end):
    """The mode is worse than these bounds, or else it would be taken."""
    best = float(tune(network, posterior, *labelled, kind=kind).info.value)
    bound, other = (1.5 * best, 100 * best) if end == "lower" else (best / 1.5, best / 100)
    message = f"temperature: expected a best value between .*, got the {end} bound, and keeps it"
    with pytest.warns(UserWarning, match=message):
        fitted, info = tune(network, posterior, *labelled, kind=kind, bounds=sorted((bound, other)))
    assert info.edge
    assert not info.converged
    np.testing.assert_allclose([info.value, fitted.temperature], bound, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linearized", "exact"])
def test_a_best_value_beside_a_bound_is_no_edge(posterior, labelled, kind):
    """Between a bound and its neighbour on the first grid."""
    best = float(tune(network, posterior, *labelled, kind=kind).info.value)
    for bounds in ((best / 1.1, best * 1e4), (best / 1e4, best * 1.1)):
        info = tune(network, posterior, *labelled, kind=kind, bounds=bounds).info
        assert not info.edge
        assert info.converged
        np.testing.assert_allclose(info.value, best, rtol=0.03)


def test_a_prior_alone_on_a_bound_is_left_as_it_was(posterior, certain):
    bounds = (1e-3, 1e-2)
    with pytest.warns(UserWarning, match="prior_precision: .* upper bound, and leaves it as it"):
        fitted, info = tune(network, posterior, *certain, over="prior_precision", bounds=bounds)
    assert info.edge
    assert float(fitted.prior_precision) == float(info.value) == 2.0
    assert float(fitted.temperature) == 0.5


def test_a_prior_on_a_bound_beside_a_tuned_temperature_is_kept(posterior, labelled):
    """The temperature was found for it, and for no other."""
    names = ("temperature", "prior_precision")
    bounds = {"prior_precision": (1e-2, 1.0)}
    options = {"over": names, "bounds": bounds}
    with pytest.warns(UserWarning, match="prior_precision: .* bound, and keeps it"):
        fitted, info = tune(network, posterior, *labelled, **options)
    assert info.edge["prior_precision"]
    assert float(fitted.prior_precision) == 1.0
    alone = tune(
        network,
        posterior._replace(prior_precision=fitted.prior_precision),
        *labelled,
    ).info.value
    np.testing.assert_allclose(info.value["temperature"], alone, rtol=0.05)


def test_where_nothing_is_finite_all_stays_as_it_was(posterior, labelled):
    def nothing(outputs, targets):
        return jnp.full(outputs.shape[:-1], -jnp.inf)

    for over in ("temperature", ("temperature", "prior_precision")):
        with pytest.warns(UserWarning, match="temperature.*: expected a finite loss, got none"):
            fitted, info = tune(network, posterior, *labelled, over=over, likelihood=nothing)
        assert np.all(jax.tree.leaves(info.edge))
        assert float(fitted.temperature) == 0.5
        assert float(fitted.prior_precision) == 2.0


def test_by_elbo_the_mode_never_wins(posterior, certain):
    """Its divergence from the prior is infinite."""
    with pytest.warns(UserWarning, match="lower bound, and keeps it"):
        info = tune(network, posterior, *certain, objective="elbo", bounds=(100.0, 200.0)).info
    np.testing.assert_allclose(info.value, 100.0, rtol=1e-5)


def test_under_jit_edges_give_no_warning(posterior, certain, labelled):
    tuned = jax.jit(lambda p, x, y: tune(network, p, x, y, bounds=(1e-4, 1e-2)).info)
    for data, value in ((certain, 0.0), (labelled, 1e-2)):
        info = tuned(posterior, *data)
        assert info.edge
        np.testing.assert_allclose(info.value, value, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*bound, and keeps it:UserWarning")
@pytest.mark.parametrize("scale", [0.03, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("over", ["temperature", ("prior_precision", "temperature")])
def test_what_is_tuned_is_never_worse_than_the_mode(posterior, scale, over):
    inputs = jax.random.normal(jax.random.key(2), (300, 4))
    logits = network(posterior.mean, inputs)
    labels = jax.random.categorical(jax.random.key(3), scale * logits)
    fitted, info = tune(network, posterior, inputs, labels, over=over)
    probs = jax.nn.softmax(logits)
    mode = float(l2m.metrics.negative_log_likelihood(probs, labels))
    if float(fitted.temperature) > 0:
        drawn = l2m.linearized(
            jax.random.key(0), network, fitted, inputs, num_samples=DRAWS, antithetic=True
        )
        found = l2m.metrics.negative_log_likelihood(l2m.classification(drawn).probs, labels)
        assert float(found) <= mode * (1 + 1e-6)
    else:
        assert np.all(jax.tree.leaves(info.edge))


def test_nan_outputs_are_refused_by_input(posterior, labelled):
    inputs, labels = labelled
    with pytest.raises(FloatingPointError, match="NaN for input 7 and 1 more"):
        tune(network, posterior, inputs.at[7:9, 0].set(jnp.nan), labels)


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


def test_both_are_what_scipy_finds(overconfident):
    posterior, x, y, loss = overconfident
    names = ("prior_precision", "temperature")
    fitted, info = tune(linear, posterior, x, y, over=names)
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
    info = tune(linear, posterior, x, y, over=over).info
    own = {"prior_precision": 3.0, "temperature": 2.0}

    def along(log):
        values = own | {over: np.exp(log)}
        return loss(np.log([values["prior_precision"], values["temperature"]]))

    best = optimize.minimize_scalar(along, bounds=(-6, 6), method="bounded")
    np.testing.assert_allclose(np.log(info.value), best.x, atol=2e-3)


def test_newton_on_exact_covariances_agrees_with_a_dense_search(posterior, labelled):
    inputs, labels = labelled
    info = tune(network, posterior, inputs, labels, kind="exact").info
    mean = network(posterior.mean, inputs)
    unit = l2m.output_covariance(network, posterior._replace(temperature=1.0), inputs)

    @jax.jit
    def loss(log_temperature):
        probs = l2m.predict.softmax_integral(mean, jnp.exp(log_temperature) * unit).probs
        return l2m.metrics.negative_log_likelihood(probs, labels)

    best = optimize.minimize_scalar(loss, bounds=(-8, 6), method="bounded")
    assert info.converged
    np.testing.assert_allclose(loss(np.log(info.value)), best.fun, atol=1e-6)


def test_monte_carlo_is_tuned_on_its_own_draws(posterior, labelled):
    inputs, labels = labelled
    key = jax.random.key(0)
    info = tune(network, posterior, inputs, labels, kind="monte_carlo").info
    logs = np.linspace(-6, 6, 49)

    @jax.jit
    def loss(log_temperature):
        hot = posterior._replace(temperature=jnp.exp(log_temperature))
        logits = l2m.monte_carlo(key, network, hot, inputs, num_samples=DRAWS, antithetic=True)
        return l2m.metrics.negative_log_likelihood(l2m.classification(logits).probs, labels)

    assert loss(np.log(info.value)) <= min(map(loss, logs)) + 1e-5


@pytest.mark.parametrize("kind", ["linearized", "exact"])
def test_a_loader_gives_what_the_arrays_give(posterior, labelled, kind):
    inputs, labels = (np.asarray(a) for a in labelled)
    loader = [(inputs[i : i + 128], labels[i : i + 128]) for i in range(0, 300, 128)]
    whole = tune(network, posterior, inputs, labels, kind=kind).info
    parts = tune(network, posterior, loader, kind=kind).info
    np.testing.assert_allclose(parts.value, whole.value, rtol=1e-3)


def test_a_likelihood_of_ones_own_is_averaged_over_draws(posterior, labelled):
    inputs, labels = labelled
    default = tune(network, posterior, inputs, labels).info
    own = tune(
        network,
        posterior,
        inputs,
        labels,
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
        (X, TypeError, "targets: expected an array, got none"),
        ({"x": X}, TypeError, "targets: expected an array, got none, with a dict"),
        ([(X, Y), (X, Y + 1)], ValueError, "classes from 0 to 2"),
        ([(X, Y[:3])], ValueError, r"class numbers of shape \(4,\)"),
        ([(X, Y), (X, np.eye(4, 3))], ValueError, "both, in different batches"),
        ([(X, np.array(["a"] * 4))], TypeError, "arrays of numbers"),
        ([(X[:0], Y[:0])], ValueError, "leading axis"),
        (3, TypeError, "an iterable"),
    ],
    ids=[
        "iterator",
        "empty",
        "ends early",
        "no pairs",
        "inputs alone",
        "a dict of inputs alone",
        "label",
        "shape",
        "two kinds",
        "text",
        "0 rows",
        "int",
    ],
)
def test_bad_loaders_are_refused(posterior, loader, error, message):
    with pytest.raises(error, match=message):
        l2m.tune(network, posterior, loader)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, p: (p, f, X, Y), "apply_fn: expected a function, got a Posterior; pass"),
        (lambda f, p: (f, X, p, Y), "posterior: expected a Posterior, got a ndarray; pass"),
    ],
    ids=["the old order", "inputs before the posterior"],
)
def test_another_order_of_arguments_is_refused(posterior, change, message):
    with pytest.raises(TypeError, match=message):
        l2m.tune(*change(network, posterior))


def test_a_prior_cannot_be_tuned_at_temperature_zero(posterior):
    cold = posterior._replace(temperature=jnp.float32(0.0))
    with pytest.raises(ValueError, match=r"posterior\.temperature.*no prior has an influence"):
        l2m.tune(network, cold, X, Y, over="prior_precision")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"over": "noise"}, "over"),
        ({"over": ()}, "over"),
        ({"over": 3}, "over: expected names among prior_precision, temperature, got 3"),
        ({"over": ["temperature"] * 2}, "over"),
        ({"over": ["x" * 1000] * 50}, r"over: expected names.{,300}$"),
        ({"bounds": {"temperature": 3}}, "bounds: expected 0 < low < high, got 3"),
        ({"bounds": (1, 2, 3)}, "bounds: expected 0 < low < high"),
        ({"over": ("temperature", "prior_precision"), "bounds": (1, 2)}, "bounds: expected pairs"),
        ({"chunk_size": 0}, "chunk_size: expected at least 1"),
        ({"objective": "loss"}, "objective"),
        ({"kind": "sampled"}, "kind"),
        ({"kind": "exact", "objective": "elbo"}, "exact"),
        ({"bounds": {"prior_precision": (1, 2)}}, "bounds"),
        ({"bounds": (1.0, 0.5)}, "low < high"),
        ({"num_samples": 0}, "num_samples"),
    ],
)
def test_unknown_names_are_refused(posterior, kwargs, message):
    with pytest.raises(ValueError, match=message):
        l2m.tune(network, posterior, X, Y, **kwargs)


def test_coupled_examples_are_refused_and_not_tuned_under_jit(posterior, labelled):
    inputs, labels = labelled

    def normalised(params, x):
        outputs = network(params, x)
        return (outputs - outputs.mean(0)) / outputs.std(0)

    with pytest.raises(ValueError, match="depend on that example only"):
        l2m.tune(normalised, posterior, inputs, labels)
    fit = jax.jit(lambda p: l2m.tune(normalised, p, inputs, labels, num_samples=2))(posterior)
    assert not bool(fit.info.converged)
    np.testing.assert_array_equal(fit.posterior.temperature, posterior.temperature)
