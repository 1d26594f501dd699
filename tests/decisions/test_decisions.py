"""Decisions against brute force, and conformal coverage in simulated splits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from test_readme import run_blocks

import l2m_optax as l2m
from l2m_optax import decisions


@pytest.mark.parametrize("risk", [0.01, 0.1, 0.25, 0.9])
def test_threshold_keeps_most_at_the_wanted_risk(risk):
    rng = np.random.default_rng(0)
    uncertainty = np.round(rng.uniform(size=200), 2)  # with ties
    losses = (rng.uniform(size=200) < uncertainty).astype(float)
    found = decisions.selective_threshold(uncertainty, losses, risk=risk)
    kept = {u: losses[uncertainty <= u] for u in np.unique(uncertainty)}
    fitting = [u for u, own in kept.items() if own.mean() <= risk]
    best = max(fitting)
    np.testing.assert_allclose(found.threshold, best, rtol=1e-6)
    np.testing.assert_allclose(found.coverage, len(kept[best]) / 200, rtol=1e-6)
    np.testing.assert_allclose(found.risk, kept[best].mean(), atol=1e-6)


def test_nothing_is_kept_where_all_are_wrong():
    found = decisions.selective_threshold(jnp.arange(3.0), jnp.ones(3), risk=0.5)
    assert float(found.threshold) == -np.inf
    assert float(found.coverage) == 0.0
    assert float(found.risk) == 0.0


def test_under_jit_an_unknown_loss_makes_the_threshold_unknown():
    losses = jnp.array([0.0, jnp.nan])
    threshold = jax.jit(lambda x: decisions.selective_threshold(jnp.arange(2.0), x, risk=0.5))
    found = threshold(losses)
    assert all(np.isnan(x) for x in found)


def test_scores_are_their_definitions():
    logits = np.random.default_rng(0).normal(size=(6, 5, 4))
    scores = decisions.out_of_distribution_scores(logits)
    probs = special.softmax(logits, axis=-1)
    mean = probs.mean(0)
    np.testing.assert_allclose(scores.entropy, stats.entropy(mean, axis=-1), rtol=1e-5)
    mutual = stats.entropy(mean, axis=-1) - stats.entropy(probs, axis=-1).mean(0)
    np.testing.assert_allclose(scores.mutual_information, mutual, rtol=1e-4)
    np.testing.assert_allclose(decisions.bald_scores(logits), mutual, rtol=1e-4)
    np.testing.assert_allclose(scores.max_probability, 1 - mean.max(-1), rtol=1e-5)
    energy = -special.logsumexp(logits, axis=-1).mean(0)
    np.testing.assert_allclose(scores.energy, energy, rtol=1e-5)


def test_what_a_label_teaches_is_the_loss_of_entropy_of_a_gaussian():
    prediction = l2m.predict.Regression(*(jnp.array([v]) for v in (0.0, 5.0, 2.0, 3.0)))
    before, after = stats.norm(0, np.sqrt(5.0)).entropy(), stats.norm(0, np.sqrt(2.0)).entropy()
    found = decisions.regression_bald_scores(prediction)
    np.testing.assert_allclose(found, [before - after], rtol=1e-5)


def test_interval_is_scipys():
    prediction = l2m.predict.Regression(*(jnp.array([v]) for v in (1.0, 5.0, 2.0, 3.0)))
    found = decisions.prediction_interval(prediction, level=0.8)
    np.testing.assert_allclose(
        np.ravel(found), stats.norm(1.0, np.sqrt(5.0)).interval(0.8), rtol=1e-5
    )


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("number", [19, 20, 100])
def test_quantile_is_the_rank_of_exact_arithmetic(level, number):
    scores = np.random.default_rng(0).permutation(number).astype(float)
    rank = -(-(number + 1) * round(level * 100) // 100)  # in whole numbers
    assert float(decisions.conformal_quantile(scores, level=level)) == rank - 1


def test_intervals_cover_however_wrong_the_variances():
    """Over many splits the coverage lies between level and level + 1/(n + 1)."""
    splits, held, new = 400, 49, 20
    rng = np.random.default_rng(0)
    spread = np.exp(rng.normal(size=(splits, held + new)))
    y = jnp.asarray(spread * rng.standard_t(3, size=(splits, held + new)), jnp.float32)
    claimed = jnp.asarray(0.01 * spread, jnp.float32)  # variances of the wrong size and shape

    def covered(y, claimed):
        made = l2m.predict.Regression(jnp.zeros_like(y), claimed, claimed, jnp.zeros_like(y))
        before = jax.tree.map(lambda x: x[:held], made)
        after = jax.tree.map(lambda x: x[held:], made)
        scores = decisions.residual_scores(before, y[:held])
        lower, upper = decisions.conformal_interval(
            after, decisions.conformal_quantile(scores, level=0.8)
        )
        return jnp.mean((lower <= y[held:]) & (y[held:] <= upper))

    shares = np.asarray(jax.jit(jax.vmap(covered))(y, claimed))
    error = shares.std() / np.sqrt(splits)
    assert 0.8 - 3 * error < shares.mean() < 0.8 + 1 / (held + 1) + 3 * error


def test_sets_cover_however_wrong_the_probabilities():
    splits, held, new = 400, 49, 20
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(splits, held + new, 4))
    labels = np.argmax(truth + rng.gumbel(size=truth.shape), axis=-1)
    probs = jax.nn.softmax(5.0 * truth + rng.normal(size=truth.shape), axis=-1)  # overconfident

    def covered(probs, labels):
        scores = decisions.label_scores(probs[:held], labels[:held])
        sets = decisions.conformal_set(
            probs[held:], decisions.conformal_quantile(scores, level=0.8)
        )
        return jnp.mean(jnp.take_along_axis(sets, labels[held:, None], axis=1))

    shares = np.asarray(jax.jit(jax.vmap(covered))(probs, labels))
    error = shares.std() / np.sqrt(splits)
    assert 0.8 - 3 * error < shares.mean() < 0.8 + 1 / (held + 1) + 3 * error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decisions.conformal_quantile(jnp.ones(8), level=0.9), "at least 9, got 8"),
        (lambda: decisions.conformal_quantile(jnp.ones(8), level=1.0), "below 1"),
        (lambda: decisions.conformal_quantile(jnp.array([jnp.nan] * 9)), "9 NaN"),
        (lambda: decisions.conformal_set(jnp.ones((1, 2)) / 2, jnp.nan), "quantile"),
        (lambda: decisions.conformal_set(jnp.full((1, 2), jnp.nan), 0.1), "probs"),
        (lambda: decisions.label_scores(jnp.ones((1, 2)), jnp.array([0])), "sum to 1"),
        (lambda: decisions.label_scores(jnp.ones((1, 2)) / 2, jnp.array([2])), "0 to 1"),
        (lambda: decisions.selective_threshold(jnp.ones(2), jnp.ones(3), risk=0.1), "shape"),
        (lambda: decisions.selective_threshold(jnp.ones(2), jnp.ones(2), risk=0.0), "risk"),
        (lambda: decisions.bald_scores(jnp.ones(2)), "logit_samples"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_page_on_decisions_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = run_blocks("docs/decisions.md")
    held = page["sets"][jnp.arange(500), page["labels"]]
    assert 0.9 <= float(jnp.mean(held)) < 0.92
    inside = (page["lower"] <= page["targets"]) & (page["targets"] <= page["upper"])
    assert 0.9 <= float(jnp.mean(inside)) < 0.92
    assert float(jnp.mean(page["wrong"][page["answer"]])) <= 0.1
