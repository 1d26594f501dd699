"""Predictives made once: equal to what they are made of, compiled once, exported, streamed."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network
from jax import export
from test_readme import run_blocks

import l2m_optax as l2m

KEY = jax.random.key(0)
KINDS = {"linearized": l2m.linearized, "monte_carlo": l2m.monte_carlo}
X = jax.random.normal(jax.random.key(1), (50, 4))


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_draws_made_once_are_those_of_the_functions(posterior, kind, chunk_size):
    posterior = l2m.restrict(posterior, "head")
    expected = KINDS[kind](KEY, network, posterior, X, num_samples=5)
    reused = l2m.make_predictive(
        KEY, network, posterior, kind=kind, num_samples=5, chunk_size=chunk_size
    )
    np.testing.assert_allclose(reused(X), expected, atol=1e-5)
    # Fixed leaves are not repeated for every draw.
    sizes = [leaf.size for leaf in jax.tree.leaves(reused.draws)]
    assert sum(sizes) == 5 * sum(leaf.size for leaf in jax.tree.leaves(posterior.mean["head"]))


@pytest.mark.parametrize("kind", KINDS)
def test_one_trace_serves_new_values(posterior, kind):
    traces = []

    def counted(params, x):
        traces.append(1)
        return network(params, x)

    seen = []
    for seed in range(3):
        warmer = posterior._replace(temperature=jnp.float32(1.0 + seed))
        predictive = l2m.make_predictive(
            jax.random.key(seed), counted, warmer, kind=kind, summary=l2m.classification
        )
        predictive(X)
        predictive(X)
        seen.append(len(traces))
    assert seen == [2, 2, 2]  # the program, and the look at a few examples before


def test_a_predictive_is_an_argument_of_jit(posterior):
    predictive = l2m.make_predictive(KEY, network, posterior, summary=l2m.classification)
    passed = jax.jit(lambda p, x: p(x).probs)(predictive, X)
    np.testing.assert_allclose(passed, predictive(X).probs, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"kind": "exact"}, ValueError),
        ({"num_samples": 0}, ValueError),
        ({"chunk_size": 0}, ValueError),
        ({"summary": {}}, TypeError),
    ],
)
def test_unsound_arguments_are_refused(posterior, kwargs, error):
    with pytest.raises(error, match=next(iter(kwargs))):
        l2m.make_predictive(KEY, network, posterior, **kwargs)


IN_ANOTHER_PROCESS = """
import sys
import numpy as np
from jax import export

for kind in sys.argv[1:]:
    program = export.deserialize(bytearray(open(f"{kind}.bin", "rb").read()))
    np.save(f"{kind}.npy", program.call(np.load("x.npy"))["probs"])
assert not {"l2m_optax", "flax", "optax"} & set(sys.modules)
"""


def test_an_exported_predictive_runs_without_the_package(posterior, tmp_path):
    expected = {}
    for kind in KINDS:
        predictive = l2m.make_predictive(
            KEY, network, posterior, kind=kind, summary=l2m.classification
        )
        expected[kind] = predictive(X).probs
        shape = jax.ShapeDtypeStruct(export.symbolic_shape("n, 4"), jnp.float32)
        served = jax.jit(lambda x, predictive=predictive: predictive(x)._asdict())
        (tmp_path / f"{kind}.bin").write_bytes(export.export(served)(shape).serialize())
    np.save(tmp_path / "x.npy", X)
    subprocess.run([sys.executable, "-c", IN_ANOTHER_PROCESS, *KINDS], cwd=tmp_path, check=True)
    for kind, probs in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{kind}.npy"), probs, atol=1e-6)


def test_the_page_on_serving_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = run_blocks("docs/serving.md")
    np.testing.assert_allclose(page["probs"], page["predictions"].probs[:5], atol=1e-6)


@pytest.fixture
def predictive(posterior):
    return l2m.make_predictive(KEY, network, posterior, num_samples=4, summary=l2m.classification)


class Tensor:
    """What numpy's protocol reads, as it does tensors of torch."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values


ROWS = [np.asarray(X[i : i + 20]) for i in range(0, 50, 20)]
LOADERS = {
    "array": lambda: X,
    "numpy array": lambda: np.asarray(X),
    "list": lambda: ROWS,
    "generator": lambda: (rows for rows in ROWS),
    "with labels": lambda: [(rows, "labels of any kind") for rows in ROWS],
    "as torch collates": lambda: [[Tensor(rows), Tensor(rows[:, 0])] for rows in ROWS],
}


@pytest.mark.parametrize("name", LOADERS)
def test_a_dataset_is_predicted_as_if_at_once(predictive, name):
    whole = predictive(X)
    streamed = l2m.predict_dataset(predictive, LOADERS[name](), batch_size=20)
    assert isinstance(streamed.probs, np.ndarray)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), streamed, whole)


def test_dicts_of_inputs_are_cut_and_iterated(posterior):
    def apply_fn(params, inputs):
        return network(params, inputs["x"])

    predictive = l2m.make_predictive(KEY, apply_fn, posterior, summary=l2m.classification)
    cut = l2m.predict_dataset(predictive, {"x": X}, batch_size=20)
    iterated = l2m.predict_dataset(predictive, [{"x": rows} for rows in ROWS])
    np.testing.assert_allclose(cut.probs, iterated.probs, atol=1e-6)


def test_a_shorter_last_batch_compiles_nothing_new(posterior):
    shapes = []

    def watched(params, x):
        shapes.append(x.shape)
        return network(params, x)

    predictive = l2m.make_predictive(KEY, watched, posterior, summary=l2m.classification)
    l2m.predict_dataset(predictive, ROWS)
    assert shapes == [(4, 4), (20, 4)]  # a few examples are looked at, once


@pytest.mark.parametrize("num_samples", [4, 20])
def test_draws_in_front_are_not_taken_for_examples(posterior, num_samples):
    raw = l2m.make_predictive(KEY, network, posterior, num_samples=num_samples)
    with pytest.raises(ValueError, match="leading axis of examples"):
        l2m.predict_dataset(raw, ROWS)


def test_square_outputs_are_taken_for_what_they_are():
    outputs = l2m.predict_dataset(lambda x: x[:, :3], jnp.ones((7, 4)), batch_size=3)
    assert outputs.shape == (7, 3)


@pytest.mark.parametrize(
    ("kind", "message"), [("monte_carlo", r"input 33 in draw 0 \(4 of 4 draws\)")]
)
def test_nan_predictions_name_input_and_draw(posterior, kind, message):
    predictive = l2m.make_predictive(
        KEY, network, posterior, kind=kind, num_samples=4, summary=l2m.classification
    )
    with pytest.raises(FloatingPointError, match=message):
        l2m.predict_dataset(predictive, X.at[33].set(jnp.nan), batch_size=20)


def test_one_draw_that_overflows_is_named(posterior):
    def brittle(params, x):
        outputs = network(params, x)
        moved = jnp.any(params["head"]["bias"] > 0.05)
        return jnp.where(moved & (x[:, :1] > 0), jnp.nan, outputs)

    predictive = l2m.make_predictive(
        KEY, brittle, posterior, kind="monte_carlo", num_samples=8, summary=l2m.classification
    )
    moved = np.asarray(predictive.draws["head"]["bias"] > 0.05).any(axis=1)
    first, number = int(np.argmax(np.asarray(X[:, 0] > 0))), int(moved.sum())
    assert 0 < number < 8
    wanted = rf"probs: .*input {first} in draw {np.argmax(moved)} \({number} of 8 draws\)"
    with pytest.raises(FloatingPointError, match=wanted):
        l2m.predict_dataset(predictive, X)


class Stops:
    """Says that it holds three batches, and yields two."""

    def __len__(self):
        return 3

    def __iter__(self):
        yield from ROWS[:2]


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ([], ValueError, "at least one batch"),
        (Stops(), ValueError, "expected 3 batches, got 2"),
        (np.ones((0, 4)), ValueError, "leading axis"),
        (3, TypeError, "an iterable"),
        ([np.array(["a"])], TypeError, "arrays of numbers"),
    ],
    ids=["empty", "ends early", "no rows", "no iterable", "text"],
)
def test_bad_loaders_are_refused(predictive, loader, error, message):
    with pytest.raises(error, match=message):
        l2m.predict_dataset(predictive, loader)
