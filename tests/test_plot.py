"""Pictures: their artists hold the numbers of the metrics; what they refuse; where they draw."""

import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest

import l2m_optax as l2m
from l2m_optax import metrics, plot

matplotlib.use("agg")
from matplotlib import pyplot as plt

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.ones(4), 200).astype(np.float32)
LABELS = RNG.integers(0, 4, 200)
UNCERTAINTY, LOSSES = np.round(RNG.uniform(size=(2, 100)), 1).astype(np.float32)
INSIDE, OUTSIDE = RNG.uniform(0.0, 0.8, 60), RNG.uniform(0.4, 1.3, 90)
X = RNG.permutation(np.linspace(-1.0, 1.0, 20))
PREDICTION = l2m.regression(jnp.asarray(X + RNG.normal(size=(6, 20))), 0.3)
PARAMS = {"body": {"w": jnp.zeros((5, 8)), "b": jnp.zeros(8)}, "head": jnp.zeros(3)}
NU = {
    "body": {"w": jnp.asarray(RNG.exponential(size=(5, 8))).at[0].set(0.0), "b": None},
    "head": jnp.array([0.1, 0.2, 0.4]),
}
POSTERIOR = l2m.laplace(
    PARAMS,
    l2m.SecondMoment(nu=NU),
    num_data=100,
    batch_size=10,
    prior_precision={"body": 300.0, "head": 2.0},
)

TRACKER = l2m.evidence_weight_decay(num_data=100, batch_size=10, every=5)


@jax.jit
def train(state):
    """The states of 110 steps, of which the first search ends the hundredth."""

    def step(state, loss):
        grads = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size)).reshape(p.shape), PARAMS)
        params = jax.tree.map(jnp.ones_like, PARAMS)
        state = TRACKER.update(grads, state, params, value=loss)[1]
        return state, state

    return jax.lax.scan(step, state, jnp.linspace(2.0, 1.0, 110))[1]


STATES = train(TRACKER.init(PARAMS))
HISTORIES = {
    "stacked states": (STATES, optax.EmptyState()),
    "stacked records": STATES.record(),
    "a list of states": [jax.tree.map(lambda x, i=i: x[i], STATES) for i in range(110)],
    "a list of records": [jax.tree.map(lambda x, i=i: x[i], STATES).record() for i in range(110)],
}

PLOTS = {
    "reliability_diagram": (PROBS, LABELS),
    "risk_coverage": (UNCERTAINTY, LOSSES),
    "entropy_histogram": (INSIDE, OUTSIDE),
    "regression_band": (X, PREDICTION),
    "posterior_layers": (POSTERIOR,),
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def line(ax, start):
    """The data of the line whose label starts so."""
    return next(x for x in ax.lines if x.get_label().startswith(start)).get_data()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("name", PLOTS)
def test_draws_on_the_axes_given_or_on_a_figure_of_its_own(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    _, (left, right) = plt.subplots(1, 2)
    assert getattr(plot, name)(*PLOTS[name], ax=left) is left
    assert left.has_data() and not right.has_data() and len(plt.get_fignums()) == 1
    own = getattr(plot, name)(*PLOTS[name])
    assert own.figure is not left.figure and len(plt.get_fignums()) == 2
    assert own.get_xlabel() and own.get_title() == ""
    own.figure.canvas.draw()


def test_reliability_diagram_holds_the_reliability_curve():
    ax = plot.reliability_diagram(PROBS, LABELS)
    curve = metrics.reliability_curve(PROBS, LABELS)
    np.testing.assert_array_equal(line(ax, "accuracy"), (curve.confidence, curve.accuracy))
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(heights, np.asarray(curve.size) / 200)
    np.testing.assert_allclose([bar.get_x() for bar in ax.patches], np.arange(15) / 15)
    error = metrics.expected_calibration_error(PROBS, LABELS)
    assert f"accuracy (ECE {error:.3f})" in legend(ax)
    gaps = ax.collections[0].get_segments()
    expected = np.abs(curve.accuracy - curve.confidence)[curve.size > 0]
    np.testing.assert_allclose([np.ptp(s[:, 1]) for s in gaps], expected, atol=1e-6)


def test_a_softmax_in_bfloat16_is_drawn():
    probs = jax.nn.softmax(jnp.log(PROBS).astype(jnp.bfloat16), axis=1)
    ax = plot.reliability_diagram(probs, LABELS)
    curve = metrics.reliability_curve(probs, LABELS)
    np.testing.assert_array_equal(line(ax, "accuracy"), (curve.confidence, curve.accuracy))


def test_risk_coverage_holds_the_curve_and_the_lowest_possible():
    ax = plot.risk_coverage(UNCERTAINTY, LOSSES)
    curve = metrics.risk_coverage_curve(UNCERTAINTY, LOSSES)
    np.testing.assert_array_equal(line(ax, "by uncertainty"), curve)
    lowest = np.cumsum(np.sort(LOSSES)) / np.arange(1, 101)
    np.testing.assert_allclose(line(ax, "lowest")[1], lowest, rtol=1e-5)
    assert f"by uncertainty (AURC {metrics.aurc(UNCERTAINTY, LOSSES):.3g})" in legend(ax)


def test_entropy_histogram_holds_shares_in_common_bins():
    ax = plot.entropy_histogram(INSIDE, OUTSIDE)
    edges = np.linspace(0, OUTSIDE.max(), 31)
    for artist, values in zip(ax.patches, [INSIDE, INSIDE, OUTSIDE, OUTSIDE], strict=True):
        shares, drawn_edges, _ = artist.get_data()
        np.testing.assert_allclose(drawn_edges, edges)
        np.testing.assert_allclose(shares, np.histogram(values, edges)[0] / len(values))
        np.testing.assert_allclose(shares.sum(), 1.0)
    scores, outside = np.concatenate([INSIDE, OUTSIDE]), np.arange(150) >= 60
    expected = f"out of distribution (AUROC {metrics.auroc(scores, outside):.3f})"
    assert legend(ax) == ["in distribution", expected]


def test_entropies_that_are_all_zero_are_drawn():
    ax = plot.entropy_histogram(jnp.zeros(3), jnp.full(2, -1e-7))
    assert [artist.get_data()[0].sum() for artist in ax.patches] == [1.0] * 4
    ax.figure.canvas.draw()


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_regression_band_holds_the_gaussian_intervals(shape):
    prediction = l2m.predict.Regression(*(field.reshape(shape) for field in PREDICTION))
    ax = plot.regression_band(X.reshape(shape), prediction)
    order = np.argsort(X)
    np.testing.assert_array_equal(line(ax, "mean"), (X[order], PREDICTION.mean[order]))
    for band, variance in zip(
        ax.collections, [PREDICTION.total, PREDICTION.epistemic], strict=True
    ):
        lower, upper = metrics.gaussian_interval(PREDICTION.mean, variance, level=0.95)
        corners = band.get_paths()[0].vertices
        for i in range(20):
            at = corners[corners[:, 0] == X[i], 1]
            np.testing.assert_allclose([at.min(), at.max()], [lower[i], upper[i]], rtol=1e-5)


def test_posterior_layers_holds_the_precisions_and_leaves_out_fixed_leaves():
    ax = plot.posterior_layers(POSTERIOR)
    data = l2m.posterior.data_precision(POSTERIOR)
    precisions = [np.asarray(data["body"]["w"]), np.asarray(data["head"])]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["body.w (40)", "head (3)"]
    medians, rows = line(ax, "median")
    np.testing.assert_allclose(medians, [np.median(f) for f in precisions], rtol=1e-6)
    np.testing.assert_array_equal(rows, [0, 1])
    np.testing.assert_array_equal(line(ax, "prior")[0], [300.0, 2.0])
    shares = [f"{np.mean(precisions[0] < 300.0):.0%}", f"{np.mean(precisions[1] < 2.0):.0%}"]
    assert [text.get_text() for text in ax.texts][:2] == shares
    for lines, reach in zip(ax.collections, [0.05, 0.25], strict=True):
        for segment, f in zip(lines.get_segments(), precisions, strict=True):
            np.testing.assert_allclose(segment[:, 0], np.quantile(f, [reach, 1 - reach]), rtol=1e-6)


def test_a_leaf_made_uncertain_again_is_all_prior():
    ax = plot.posterior_layers(l2m.release(POSTERIOR, "b"))
    ax.figure.canvas.draw()
    assert ax.get_yticklabels()[0].get_text() == "body.b (8)"
    assert ax.texts[0].get_text() == "100%" and ax.get_xlim()[0] > 0


def test_an_empty_leaf_is_left_out():
    nu = {"none": jnp.zeros((0, 3)), "some": jnp.ones(2)}
    moment = l2m.SecondMoment(nu=nu)
    ax = plot.posterior_layers(l2m.laplace(nu, moment, num_data=100, batch_size=10))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["some (2)"]


@pytest.mark.parametrize("name", HISTORIES)
def test_training_holds_what_the_states_held(name):
    loss, evidence, gamma, delta = plot.training(HISTORIES[name])
    np.testing.assert_array_equal(loss.lines[0].get_xdata(), np.arange(1, 111))
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), STATES.loss)
    drawn = evidence.lines[0].get_ydata()
    assert np.all(np.isnan(drawn[:99]))  # before the first search
    np.testing.assert_array_equal(drawn[99:], STATES.log_evidence[99:])
    assert legend(gamma) == legend(delta) == ["body", "head"]
    body = STATES.effective_parameters["body"]
    np.testing.assert_allclose(line(gamma, "body")[1][99:], (body["w"] + body["b"])[99:], rtol=1e-6)
    np.testing.assert_array_equal(line(delta, "head")[1], STATES.prior_precision["head"])
    loss.figure.canvas.draw()


def test_training_draws_on_the_axes_given():
    given = plt.subplots(2, 2)[1]
    assert plot.training(STATES, axes=given) == tuple(given.ravel())
    assert len(plt.get_fignums()) == 1
    one = plot.training(jax.tree.map(lambda x: x[:1], STATES))
    assert one[0].lines[0].get_marker() == "o"
    assert legend(one[3]) == ["all"]  # where all are at the start


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ({"body": {"w": 0, "b": 1}, "head": 1}, ["body.b, head", "body.w"]),
        (None, ["all"]),
    ],
)
def test_training_names_groups_by_what_is_in_them(groups, names):
    record = STATES.record()
    labels = jax.tree.map(lambda _: 0, PARAMS) if groups is None else groups
    delta = jax.tree.map(lambda label: jnp.full(110, 1.0 + label), labels)
    axes = plot.training(record._replace(prior_precision=delta))
    assert sorted(legend(axes[3])) == names


REFUSALS = {
    "no states": ("training", ([1.0, 2.0],), "history: expected states of evidence_weight_decay"),
    "the same step": ("training", ([STATES, STATES],), "history: expected steps that increase"),
    "an ensemble": (
        "training",
        (jax.tree.map(lambda x: jnp.stack([x, x], 1), STATES),),
        "history.step: expected a number a step",
    ),
    "NaN evidence": (
        "training",
        (STATES._replace(log_evidence=STATES.log_evidence * jnp.nan),),
        "history: expected finite numbers",
    ),
    "logits": ("reliability_diagram", (PROBS * 3, LABELS), "probs: expected rows that sum to 1"),
    "NaN losses": ("risk_coverage", (UNCERTAINTY, LOSSES * np.nan), "losses: expected numbers"),
    "NaN entropy": (
        "entropy_histogram",
        (INSIDE, OUTSIDE * np.nan),
        "out_of_distribution: expected finite numbers, got 90 NaN",
    ),
    "no entropies": ("entropy_histogram", (INSIDE[:0], OUTSIDE), "in_distribution: expected shape"),
    "a table": ("entropy_histogram", (PROBS, OUTSIDE), "in_distribution: expected shape"),
    "negative": (
        "entropy_histogram",
        (-INSIDE, OUTSIDE),
        "in_distribution: expected nothing below",
    ),
    "two inputs": ("regression_band", (PROBS, PREDICTION), r"x: expected shape \(N,\)"),
    "no inputs": ("regression_band", (X[:0], PREDICTION), r"x: expected shape \(N,\)"),
    "lengths": ("regression_band", (X[:3], PREDICTION), r"prediction.mean: expected shape \(3,\)"),
    "NaN mean": (
        "regression_band",
        (X, PREDICTION._replace(mean=PREDICTION.mean * jnp.nan)),
        "prediction.mean: expected finite numbers",
    ),
    "negative variance": (
        "regression_band",
        (X, PREDICTION._replace(epistemic=-PREDICTION.epistemic)),
        "prediction.epistemic: expected variances",
    ),
    "fixed leaves only": (
        "posterior_layers",
        (POSTERIOR._replace(second_moment=l2m.SecondMoment(nu={"body": None, "head": None})),),
        "posterior: expected a leaf",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_come_before_any_figure(case):
    name, arguments, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        getattr(plot, name)(*arguments)
    assert plt.get_fignums() == []


def test_traced_states_are_refused():
    with pytest.raises(ValueError, match=r"expected values, got a traced array"):
        jax.jit(plot.training)(STATES)


def test_five_axes_are_refused():
    with pytest.raises(ValueError, match="axes: expected four of them, got 5"):
        plot.training(STATES, axes=plt.subplots(1, 5)[1])


@pytest.mark.parametrize("name", PLOTS)
def test_traced_arrays_are_refused(name):
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match=r"expected values, got a traced array"):
        jax.jit(lambda *args: getattr(plot, name)(*args, ax=ax))(*PLOTS[name])


@pytest.mark.parametrize("name", [*PLOTS, "training"])
def test_without_matplotlib_the_error_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'l2m-optax\[plot\]'"):
        getattr(plot, name)(*PLOTS.get(name, (STATES,)))
