"""What `diagnose` says, against shares known by construction and gradients made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import train_linear

import l2m_optax as l2m

STEPS = 6_000


def half_mean(residuals):
    return 0.5 * jnp.mean(jnp.square(residuals))


@pytest.fixture(scope="module")
def trained(regression):
    """A converged state, and one at fixed weights far from the mode."""
    annealed = optax.adam(optax.cosine_decay_schedule(2e-2, STEPS))
    # One draw of mu is itself noisy; b1=0.99 averages 199 batches where 0.9 averages 19.
    fixed = optax.chain(optax.scale_by_adam(b1=0.99), optax.scale(0.0))
    results = {}
    for name, tx in {"converged": annealed, "far": fixed}.items():
        params, state = train_linear(tx, regression, half_mean, batch_size=16, steps=STEPS, seed=0)
        moment = l2m.second_moment(state, params, tx=tx)
        posterior = l2m.laplace(
            params, moment, num_data=2000, batch_size=16, loss_scale=regression.noise_variance
        )
        results[name] = posterior, moment
    return results


def exact_share(data, params):
    per_example = np.asarray(-data.x * (data.y - data.x @ params["w"])[:, None], np.float64)
    mean_square = np.sum(per_example.mean(0) ** 2)
    noise = np.sum(per_example.var(0)) / 16 * (2000 - 16) / 1999
    return mean_square / (mean_square + noise)


@pytest.mark.parametrize("state", ["converged", "far"])
def test_share_of_the_mean_gradient(regression, trained, state):
    posterior, moment = trained[state]
    expected = exact_share(regression, posterior.mean)
    diagnosis = l2m.diagnose(posterior, moment)
    np.testing.assert_allclose(diagnosis.total.mean_gradient, expected, atol=0.1)
    warned = any("the mean gradient is" in text for text in diagnosis.warnings())
    assert warned == (state == "far")


def test_reference_is_the_per_example_gradients(regression, trained):
    posterior, moment = trained["converged"]

    def loss_fn(params, example):
        x, y = example
        return 0.5 * jnp.square(y - x @ params["w"]) / regression.noise_variance

    data = (regression.x, regression.y)
    fisher = l2m.jacobians.empirical_fisher(loss_fn, posterior.mean, data, num_data=2000)
    grads = jax.vmap(jax.grad(loss_fn), (None, 0))(posterior.mean, data)["w"]
    np.testing.assert_allclose(fisher["w"], jnp.sum(jnp.square(grads), axis=0), rtol=1e-4)
    total = l2m.diagnose(posterior, moment, reference=fisher).total
    ours = np.asarray(l2m.posterior.data_precision(posterior)["w"], np.float64)
    exact = np.asarray(fisher["w"], np.float64)
    np.testing.assert_allclose(total.ratio, ours.sum() / exact.sum(), rtol=1e-4)
    correlation = np.corrcoef(np.log(ours), np.log(exact))[0, 1]
    np.testing.assert_allclose(total.log_correlation, correlation, atol=1e-4)


def test_shares_counts_and_sums():
    params = {"a": jnp.zeros(4), "b": jnp.zeros(2)}
    moment = l2m.SecondMoment(
        nu={"a": jnp.array([0.0, 0.0, 1.0, 1e-4]), "b": jnp.ones(2)}, count=30, decay=0.9
    )
    posterior = l2m.laplace(params, moment, num_data=101, batch_size=1, prior_precision=1.0)
    diagnosis = l2m.diagnose(posterior)
    a, b, total = diagnosis.leaves["['a']"], diagnosis.leaves["['b']"], diagnosis.total
    assert (float(a.zeros), float(a.prior_dominated)) == (0.5, 0.75)
    assert (float(b.zeros), float(b.prior_dominated)) == (0.0, 0.0)
    np.testing.assert_allclose(total.zeros, 2 / 6, rtol=1e-6)
    np.testing.assert_allclose(
        total.effective, l2m.tuning.effective_parameters(posterior), rtol=1e-6
    )
    np.testing.assert_allclose(diagnosis.window, 19.0, rtol=1e-5)
    text = str(diagnosis)
    assert "averages 19 batches" in text
    assert "33% of the second moments are exactly 0" in text
    assert len({len(line) for line in text.splitlines()[:4]}) == 1


def test_fixed_leaves_are_left_out_and_everything_can_be_traced(posterior):
    last = l2m.restrict(posterior, "head")
    diagnosis = jax.jit(l2m.diagnose)(last)
    assert set(diagnosis.leaves) == {"['head']['bias']", "['head']['kernel']"}
    np.testing.assert_allclose(
        diagnosis.total.effective, l2m.tuning.effective_parameters(last), rtol=1e-5
    )
    assert "total" in str(diagnosis)


def test_a_wrong_scale_is_warned_of(posterior):
    reference = jax.tree.map(lambda f: 10.0 * f, l2m.posterior.data_precision(posterior))
    warnings = l2m.diagnose(posterior, reference=reference).warnings()
    assert any("F is 0.1 times the reference" in text for text in warnings)


def test_a_reference_of_another_shape_is_refused(posterior):
    with pytest.raises(ValueError, match=r"reference\['body'\]"):
        l2m.diagnose(posterior, reference={"head": posterior.mean["head"]})


def warnings_of(**kwargs):
    """The warnings about 1,400 parameters, each with F = 100 kept by δ = `prior`."""
    prior, num_data = kwargs.pop("prior"), kwargs.pop("num_data")
    moment = l2m.SecondMoment(nu=jnp.full(1400, 1.0), count=5000, decay=0.99, **kwargs)
    posterior = l2m.laplace(
        jnp.ones(1400), moment, num_data=num_data, batch_size=1, prior_precision=prior
    )
    return l2m.diagnose(posterior).warnings()


@pytest.mark.parametrize(
    ("prior", "num_data", "warned"), [(46.5, 1400, True), (1.0, 1400, True), (46.5, 10_000, False)]
)
def test_as_many_parameters_as_examples_are_warned_of(prior, num_data, warned):
    found = warnings_of(prior=prior, num_data=num_data)
    effective = 1400 * num_data / (num_data + prior)
    text = f"{effective:,.0f} parameters with {num_data:,} examples; possible causes:"
    assert [text in warning for warning in found] == [True] * warned


def test_an_unknown_number_of_examples_is_no_reason_to_warn(posterior):
    unknown = l2m.diagnose(posterior._replace(num_data=None))
    assert np.isnan(unknown.num_data)
    assert not any("examples" in text for text in unknown.warnings())


def test_warnings_name_possible_causes_each_with_its_remedy(posterior):
    """A ragged last batch raises nu and the mean gradient alike, so neither names one cause."""
    moment = posterior.second_moment._replace(
        mu=jax.tree.map(jnp.sqrt, posterior.second_moment.nu), mu_decay=0.9, decay=0.999
    )
    fisher = jax.tree.map(lambda f: 0.1 * f, l2m.posterior.data_precision(posterior))
    texts = l2m.diagnose(posterior, moment, reference=fisher).warnings()
    mean_gradient = next(text for text in texts if "mean gradient" in text)
    assert "the last batch of each epoch is smaller" in mean_gradient
    scale = next(text for text in texts if "times the reference" in text)
    for cause in ("clipped", "last batch", "early stopping", "restart of the learning rate"):
        assert cause in scale
    early = next(text for text in texts if "early training" in text)
    assert "possible cause" in early


def test_a_ragged_last_batch_is_named_as_a_possible_cause(regression):
    """A last batch of 1 after four of 400: nu is (4/400 + 1)/5 · 400 = 81 times too large."""
    x, y = regression.x[:1601], regression.y[:1601]
    w = jnp.linalg.lstsq(x, y)[0]
    rng, tx = np.random.default_rng(0), optax.adam(1e-3, b2=0.99)
    state, update = tx.init(w), jax.jit(tx.update)
    gradient = jax.jit(jax.grad(lambda w, x, y: 0.5 * jnp.mean(jnp.square(y - x @ w))))
    for _ in range(100):
        order = rng.permutation(1601)
        for batch in [*order[:1600].reshape(-1, 400), order[1600:]]:
            _, state = update(gradient(w, x[batch], y[batch]), state, w)
    posterior = l2m.laplace(w, state, tx=tx, num_data=1601, batch_size=400)
    fisher = jnp.sum(jnp.square(x * (y - x @ w)[:, None]), axis=0)
    moment = l2m.second_moment(state, w, tx=tx)
    diagnosis = l2m.diagnose(posterior, moment, reference=fisher)
    scale = next(text for text in diagnosis.warnings() if "times the reference" in text)
    assert "a last batch smaller than the others (pass the sizes" in scale


def evidence_state(nats):
    tx = optax.chain(l2m.evidence_weight_decay(num_data=100, batch_size=10), optax.sgd(0.1))
    found, *others = tx.init({"w": jnp.zeros(2)})
    return (found._replace(nats_per_parameter=jnp.float32(nats)), *others)


@pytest.mark.parametrize(
    ("balance", "said"),
    [(1.0, ""), (0.4, ""), (0.2, "back, for the prior"), (-0.1, "back, for"), (1.6, "outwards")],
)
def test_weights_that_are_on_their_way_are_said(balance, said):
    """Before the second search nothing is."""
    moment = l2m.SecondMoment(nu={"w": jnp.ones(2)}, count=10_000, decay=0.99)
    posterior = l2m.laplace({"w": jnp.ones(2)}, moment, num_data=100, batch_size=10)

    def text(*slopes):
        found, *others = evidence_state(1.0)
        found = found._replace(slopes=jnp.float32(slopes))
        return str(l2m.diagnose(posterior, training=(found, *others)))

    square = balance**2 + 0.01**2  # an error of 0.01
    assert ("not in balance" in text(balance, square, 1.0, 1.0)) == bool(said)
    assert f"on their way {said}" in text(balance, square, 1.0, 1.0) or not said
    assert "in balance" not in text(balance, balance**2 + 1.0, 1.0, 1.0)
    assert "in balance" not in text(balance, balance**2, jnp.inf, 1.0)
    assert "in balance" not in text(0.0, 0.0, 0.0, 0.0)
    assert np.isnan(l2m.diagnose(posterior).balance)


@pytest.mark.parametrize(("nats", "said"), [(0.1, True), (0.5, False), (0.0, False)])
def test_a_fit_that_is_almost_perfect_is_said(nats, said):
    """0 is a state that was not told the loss."""
    moment = l2m.SecondMoment(nu={"w": jnp.ones(2)}, count=10_000, decay=0.99)
    posterior = l2m.laplace({"w": jnp.ones(2)}, moment, num_data=100, batch_size=10)
    diagnosis = l2m.diagnose(posterior, training=evidence_state(nats))
    text = "warning: the loss is 0.1 nats for each parameter that the data determine"
    assert (text in str(diagnosis)) == said
    assert np.isnan(l2m.diagnose(posterior).nats_per_parameter)
    assert np.isnan(l2m.diagnose(posterior, training=optax.EmptyState()).nats_per_parameter)
