"""`fit`: what it chooses, that it is never worse than the network, what it says and refuses."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, network_params

import l2m_optax as l2m
from l2m_optax.fitting._data import sample, share_seen
from l2m_optax.fitting._fit import _by_validation
from l2m_optax.fitting._judges import Verdict, judge_of
from l2m_optax.fitting._report import Candidate, Report, of_the_scale
from l2m_optax.tuning._fit import Fit, FitInfo

TX = optax.adam(2e-2)


def loss_of_labels(params, x, y):
    return -jnp.mean(l2m.likelihoods.categorical(network(params, x), y))


def loss_of_numbers(params, x, y):
    return jnp.mean(jnp.square(network(params, x) - y))


def train(loss, x, y, steps, batch_size=16):
    """Batches in order, as a scan."""

    def step(carry, i):
        params, state = carry
        rows = (i * batch_size + jnp.arange(batch_size)) % len(x)
        updates, state = TX.update(jax.grad(loss)(params, x[rows], y[rows]), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = network_params(jax.random.key(0))
    return jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps))[0])((params, TX.init(params)))


def inputs_and_logits(seed, number):
    x = jax.random.normal(jax.random.key(seed), (number, 4))
    truth = network_params(jax.random.key(11))
    return x, network(truth, x)


def labelled(seed, number):
    x, logits = inputs_and_logits(seed, number)
    return x, jax.random.categorical(jax.random.key(seed + 100), logits)


def measured(seed, number):
    x, means = inputs_and_logits(seed, number)
    return x, means + jax.random.normal(jax.random.key(seed + 100), means.shape)


@pytest.fixture(scope="module")
def overfitted():
    """48 examples with random parts, fitted to the end: too sure of everything."""
    data = labelled(1, 48)
    return *train(loss_of_labels, *data, 3000), data


@pytest.fixture(scope="module")
def regression():
    data = measured(1, 48)
    return *train(loss_of_numbers, *data, 3000), data


def nll(posterior, x, y):
    return float(l2m.metrics.negative_log_likelihood(l2m.classify(network, posterior, x).probs, y))


def test_without_validation_data_it_beats_a_network_that_is_too_sure(overfitted):
    params, state, data = overfitted
    posterior, report = l2m.fit(network, params, state, tx=TX, data=data, batch_size=16)
    x, y = labelled(2, 500)
    network_alone = nll(posterior._replace(temperature=jnp.zeros(())), x, y)
    assert nll(posterior, x, y) < network_alone
    assert report.chosen == "all layers" and not report.validated
    assert 0 < float(posterior.temperature) <= 0.01


def test_validation_data_choose_what_predicts_them_best(overfitted):
    params, state, data = overfitted
    held_out = labelled(3, 300)
    posterior, report = l2m.fit(
        network, params, state, tx=TX, data=data, batch_size=16, validation=held_out
    )
    by_name = {c.name: c for c in report.candidates}
    best = by_name[report.chosen]
    assert report.validated and best.gain > best.standard_error
    assert best.gain == max(c.gain for c in report.candidates)
    np.testing.assert_allclose(best.nll, nll(posterior, *held_out), rtol=1e-4)
    np.testing.assert_allclose(by_name["network"].nll - best.gain, best.nll, rtol=1e-4)
    assert set(best.figures) == {"accuracy", "ECE"}
    x, y = labelled(2, 500)
    alone = jax.nn.softmax(network(params, x))
    assert nll(posterior, x, y) < float(l2m.metrics.negative_log_likelihood(alone, y))
    scale = best.logit_scale
    assert 0 < scale < 1 and f"times {scale:.2f}" in str(report) and "logits ×" in str(report)
    np.testing.assert_allclose(
        network(posterior.mean, x), scale * network(params, x), rtol=1e-4, atol=1e-5
    )


def test_few_labels_that_are_all_right_do_not_make_it_sure_of_everything(overfitted):
    """Their likelihood alone asks for logits without bound."""
    params, state, data = overfitted
    x, _ = inputs_and_logits(3, 12)
    held_out = x, network(params, x).argmax(-1)
    _, report = l2m.fit(
        network, params, state, tx=TX, data=data, batch_size=16, validation=held_out
    )
    assert all(c.logit_scale < 3 for c in report.candidates)


def told(temperature, *log_probs):
    """In the place of a posterior: what it says of each held-out observation."""
    values = {"logit_scale": 0.5, "temperature": temperature}
    return SimpleNamespace(temperature=temperature, log_probs=np.array(log_probs), values=values)


KNOWING = SimpleNamespace(
    mode=lambda posterior, network: told(0.0, *network),
    tuned=lambda posterior, network: Fit(posterior, FitInfo(posterior.values, 1, True, False)),
    verdict=lambda posterior, network: Verdict(
        posterior.log_probs, -posterior.log_probs.mean(), {}
    ),
)


def test_a_gain_is_a_mean_over_observations():
    proposed = {"last layer": told(0.5, -1.0, -2.0), "all layers": told(0.1, -1.5, -3.5)}
    found = _by_validation(proposed, (-2.0, -4.0), KNOWING)
    assert found.chosen == "last layer" and found.posterior is proposed["last layer"]
    assert found.candidates == (
        ("network", 0.0, 3.0, 0.0, 0.0, {}, 1.0),
        ("last layer", 0.5, 1.5, 1.5, pytest.approx(0.5), {}, 0.5),
        ("all layers", 0.1, 2.5, 0.5, 0.0, {}, 0.5),
    )


def test_one_observation_has_no_standard_error_and_a_tie_leaves_the_network():
    found = _by_validation({"all layers": told(0.1, -2.0)}, (-2.0,), KNOWING)
    assert found.chosen == "network"
    assert [c.standard_error for c in found.candidates] == [np.inf, np.inf]


def unsure(params, x):
    """Logits in which no leaf is linear."""
    return 3.0 * jnp.tanh(network(params, x))


@pytest.mark.parametrize("apply_fn", [network, unsure])
def test_a_network_that_is_unsure_gets_no_spread(apply_fn):
    """After a few steps of training no spread helps, only larger logits; the alarm still works."""
    data = labelled(1, 256)
    params, state = train(loss_of_labels, *data, 30)
    x, _ = inputs_and_logits(3, 200)
    held_out = x, apply_fn(params, x).argmax(-1)  # it is right on all of them, and does not know
    posterior, report = l2m.fit(
        apply_fn, params, state, tx=TX, data=data, batch_size=16, validation=held_out
    )
    assert float(posterior.temperature) == 0.0
    scale = max(c.logit_scale for c in report.candidates if c.name == report.chosen)
    assert (scale > 1) == (apply_fn is network)
    assert ("the network alone; none" in str(report)) == (apply_fn is unsure)
    expected = jax.nn.softmax(scale * apply_fn(params, x))
    np.testing.assert_allclose(l2m.classify(apply_fn, posterior, x).probs, expected, rtol=1e-4)
    assert np.all(l2m.decisions.novelty(apply_fn, posterior, x) > 0)


def test_the_training_loss_is_measured_for_the_alarm():
    """It is that of labels, in nats; a loss of numbers depends on their noise."""
    x, labels = labelled(1, 256)
    params, state = train(loss_of_labels, x, labels, 30)
    expected = loss_of_labels(params, x, labels)
    for named in ("categorical", lambda f, y: l2m.likelihoods.categorical(f, y)):
        posterior, _ = l2m.fit(
            network, params, state, tx=TX, data=(x, labels), batch_size=16, likelihood=named
        )
        np.testing.assert_allclose(posterior.training_loss, expected, rtol=1e-5)
    held_out = labelled(2, 96)
    posterior, _ = l2m.fit(
        network, params, state, tx=TX, data=(x, labels), batch_size=16, validation=held_out
    )
    scaled = loss_of_labels(posterior.mean, x, labels)  # of the mode that is returned
    assert abs(float(scaled) - float(expected)) > 1e-3
    np.testing.assert_allclose(posterior.training_loss, scaled, rtol=1e-5)
    numbers = measured(1, 256)
    posterior, _ = l2m.fit(
        network, params, state, tx=TX, data=numbers, batch_size=16, likelihood="gaussian"
    )
    assert posterior.training_loss is None


@pytest.mark.parametrize("validated", [False, True])
def test_numbers_have_intervals_that_hold(regression, validated):
    params, state, data = regression
    posterior, report = l2m.fit(
        network,
        params,
        state,
        tx=TX,
        data=data,
        batch_size=16,
        likelihood="gaussian",
        loss_scale=2.0 / 3.0,
        validation=measured(3, 200) if validated else None,
    )
    x, y = measured(2, 500)
    p = l2m.regress(network, posterior, x)
    residual = float(jnp.mean(jnp.square(network(params, data[0]) - data[1])))

    def of(variance):
        return float(jnp.mean(l2m.metrics.gaussian_negative_log_likelihood(p.mean, variance, y)))

    assert of(p.total) < of(jnp.full_like(p.total, residual))
    if validated:
        assert 0.86 < float(l2m.metrics.interval_coverage(p.mean, p.total, y, level=0.9)) < 0.94
        assert "in 90%" in str(report) and "RMSE" in str(report)


def test_without_validation_data_the_noise_is_the_residuals_over_few_parameters(posterior):
    """The evidence's noise is RSS / (N K - γ); at T = 0.03 only 0.03 γ parameters are spent."""
    assert posterior.num_data == 50
    noisy = posterior._replace(noise_variance=jnp.asarray(0.5))
    gamma = float(l2m.tuning.effective_parameters(noisy))
    cold = judge_of("gaussian", network).cold(noisy, 3)
    assert 1 < gamma < 50 and cold.temperature == pytest.approx(0.03)
    residuals = 0.5 * (150 - gamma)
    np.testing.assert_allclose(cold.noise_variance, residuals / (150 - 0.03 * gamma), rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["gaussian", lambda f, y: y * f - jnp.exp(f)])
def test_outputs_without_an_axis_are_one_for_each_example(regression, likelihood):
    """(N,) and (N, 1) have the same temperature and the same noise."""
    params, state, (x, y) = regression
    counts = jnp.round(jnp.abs(y[:, 0]))
    options = {"tx": TX, "batch_size": 16, "loss_scale": 2.0, "likelihood": likelihood}
    flat, _ = l2m.fit(lambda p, x: network(p, x)[:, 0], params, state, data=(x, counts), **options)
    column, _ = l2m.fit(
        lambda p, x: network(p, x)[:, :1], params, state, data=(x, counts[:, None]), **options
    )
    np.testing.assert_allclose(flat.temperature, column.temperature, rtol=1e-4)
    np.testing.assert_allclose(flat.noise_variance, column.noise_variance, rtol=1e-4)


def test_a_likelihood_of_ones_own(overfitted):
    params, state, data = overfitted

    def likelihood(outputs, targets):
        return l2m.likelihoods.categorical(outputs, targets)

    options = {"tx": TX, "data": data, "batch_size": 16, "validation": labelled(3, 300)}
    _, report = l2m.fit(network, params, state, likelihood=likelihood, **options)
    _, by_name = l2m.fit(network, params, state, **options)
    own, named = ({c.name: c.nll for c in r.candidates} for r in (report, by_name))
    assert own[report.chosen] == min(own.values()) < own["network"]
    np.testing.assert_allclose(own["network"], named["network"], rtol=1e-5)
    np.testing.assert_allclose(min(own.values()), min(named.values()), atol=0.05)


def test_a_loader_is_as_good_as_arrays(overfitted):
    params, state, (x, y) = overfitted
    loader = [(x[i : i + 20], y[i : i + 20]) for i in range(0, 48, 20)]
    one, _ = l2m.fit(network, params, state, tx=TX, data=(x, y), batch_size=16)
    other, _ = l2m.fit(network, params, state, tx=TX, data=loader, batch_size=[16, 16, 16])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_the_share_of_inputs_that_were_trained_on():
    x, y = labelled(1, 8)
    held_out = sample((x, y), "validation", 8)
    assert share_seen(held_out, (x[2:], y[2:])) == 0.75
    assert share_seen(held_out, iter([(x, y)])) == 0.0


def test_validation_data_that_were_trained_on_are_noticed(overfitted):
    params, state, data = overfitted
    _, report = l2m.fit(network, params, state, tx=TX, data=data, batch_size=16, validation=data)
    assert any("100% of the validation inputs" in text for text in report.warnings)
    assert "warning: 100%" in str(report)


X, Y = np.ones((20, 4), np.float32), np.zeros(20, np.int32)
BAD = {
    "labels out of range": ({"data": (X, Y + 3)}, ValueError, "classes from 0 to 2"),
    "one label for many": ({"data": (X, Y[:1])}, ValueError, "leading axis"),
    "a row of numbers": (
        {"data": (X, np.zeros(20, np.float32)), "likelihood": "gaussian"},
        ValueError,
        "targets",
    ),
    "no data": ({"data": (X[:0], Y[:0])}, ValueError, "leading axis"),
    "an empty loader": ({"data": []}, ValueError, "at least one batch"),
    "inputs alone": ({"data": X}, TypeError, "a pair of arrays"),
    "lists": ({"data": (X.tolist(), Y.tolist())}, TypeError, "got a tuple of list, list; pass"),
    "a loader of inputs": ({"data": [X]}, TypeError, "pairs"),
    "a list of two": ({"data": [X, Y]}, TypeError, r"pass a tuple \(x, y\), or let the loader"),
    "NaN": ({"data": (X * np.nan, Y)}, FloatingPointError, "NaN"),
    "an unknown likelihood": ({"likelihood": "poisson"}, ValueError, "'categorical' or 'gaussian'"),
    "labels as numbers": ({"likelihood": "gaussian"}, ValueError, "real numbers for"),
    "bad validation data": ({"validation": (X, Y + 3)}, ValueError, "classes from 0 to 2"),
}


class Ending:
    """A loader that says it holds two batches, and yields one."""

    def __len__(self):
        return 2

    def __iter__(self):
        yield X, Y


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name, overfitted):
    params, state, data = overfitted
    change, error, message = BAD[name]
    with pytest.raises(error, match=message):
        l2m.fit(network, params, state, **({"tx": TX, "data": data, "batch_size": 16} | change))


def test_a_loader_that_ends_early_is_refused(overfitted):
    params, state, _ = overfitted
    with pytest.raises(ValueError, match="2 batches"):
        l2m.fit(network, params, state, tx=TX, data=Ending(), batch_size=16)


def trained_by_the_evidence(likelihood, loss, x, y, steps=400):
    """With `evidence_weight_decay` before Adam."""
    tx = optax.chain(
        l2m.evidence_weight_decay(
            num_data=x.shape[0] * (3 if likelihood == "gaussian" else 1),
            batch_size=16 * (3 if likelihood == "gaussian" else 1),
            loss_scale=2.0 if likelihood == "gaussian" else 1.0,
            likelihood=likelihood,
        ),
        TX,
    )

    def step(carry, i):
        params, state = carry
        rows = (i * 16 + jnp.arange(16)) % len(x)
        value, grads = jax.value_and_grad(loss)(params, x[rows], y[rows])
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    params = network_params(jax.random.key(0))
    return jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps))[0])((params, tx.init(params)))


LIKELIHOODS = {
    "categorical": (loss_of_labels, labelled),
    "gaussian": (loss_of_numbers, measured),
}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_prior_of_a_training_is_taken_over(likelihood):
    """And the noise, without being told; and what the state says of the fit."""
    loss, draw = LIKELIHOODS[likelihood]
    data = draw(1, 96)
    params, state = trained_by_the_evidence(likelihood, loss, *data)
    found = state[0]
    assert float(found.prior_precision["head"]["kernel"]) != 1.0
    if likelihood == "categorical":
        state = (found._replace(nats_per_parameter=jnp.float32(0.1)), *state[1:])
    kwargs = {"data": data, "batch_size": 16, "likelihood": likelihood}
    posterior, report = l2m.fit(network, params, state, **kwargs)
    said = any("fitted almost perfectly" in text for text in report.warnings)
    assert said == (likelihood == "categorical")
    jax.tree.map(np.testing.assert_array_equal, posterior.prior_precision, found.prior_precision)
    noise = 1.0 if found.noise_variance is None else found.noise_variance
    np.testing.assert_allclose(posterior.noise_variance, noise, rtol=1e-6)


@pytest.mark.parametrize(
    ("posterior", "empirical", "true", "off"),
    [
        (1.0, 0.8, 0.9, 0),
        (4.0, 1.0, 2.0, 0),
        (2.9, 1.0, 1.0, 0),
        (3.1, 1.0, 1.0, 1),
        (0.35, 1.0, 1.0, 0),
        (0.32, 1.0, 1.0, 1),
        (4.0, 1.0, np.nan, 1),
        (4.0, 0.0, 2.0, 0),
        (0.0, 1.0, 1.0, 1),
    ],
)
def test_a_scale_is_off_if_it_is_far_from_both_references(posterior, empirical, true, off):
    scale = l2m.tuning.ScaleCheck(*map(jnp.asarray, (posterior, empirical, true)), 60)
    assert len(list(of_the_scale(scale))) == off


FIGURES = ({"ECE": 0.08, "accuracy": 0.9}, {"ECE": 0.02, "accuracy": math.nan})
CANDIDATES = (
    Candidate("network", 0.0, 0.5, 0.0, 0.0, FIGURES[0]),
    Candidate("all layers", 0.025, 0.25, 0.25, 0.0321, FIGURES[1]),
)
SCALE = l2m.tuning.ScaleCheck(*map(jnp.asarray, (2.5, 2.0, 1.0)), 1024)
TABLE = """\
scale: the state's F was 1.2 times the exact one of 1,024 examples; it was divided by that
   candidate       T    NLL   gain  ± s.e.    ECE  accuracy
{}  network         0  0.500  0.000   0.000  0.080     0.900
{}  all layers  0.025  0.250  0.250   0.032  0.020         -
chosen: {}"""


@pytest.mark.parametrize(
    ("chosen", "validated", "said"),
    [
        ("all layers", True, "all layers, 0.25 ± 0.03 nats an observation better than the {}"),
        ("network", True, "the {}; none predicts these data better"),
        (
            "all layers",
            False,
            "all layers, at a small temperature; pass validation= to see the gain",
        ),
    ],
)
def test_the_report_in_print(chosen, validated, said):
    report = Report(SCALE, CANDIDATES, chosen, validated, ("one", "two"))
    marks = ["→" if name == chosen else " " for name in ("network", "all layers")]
    expected = TABLE.format(*marks, said.format("network alone"))
    assert str(report) == f"{expected}\nwarning: one\nwarning: two"
