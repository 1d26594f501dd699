"""What a network may return, and that no example's outputs depend on another's: one law for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import network
from jax import export

import l2m_optax as l2m

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 4))

WHOLE = {
    "linearized": lambda f, p, x: l2m.linearized(KEY, f, p, x, num_samples=3),
    "monte_carlo": lambda f, p, x: l2m.monte_carlo(KEY, f, p, x, num_samples=3),
}
CHUNKS = {
    "linearized in chunks": lambda f, p, x: l2m.linearized(
        KEY, f, p, x, num_samples=3, chunk_size=2
    ),
    "monte_carlo in chunks": lambda f, p, x: l2m.monte_carlo(
        KEY, f, p, x, num_samples=3, chunk_size=2
    ),
}
DRAWN = WHOLE | CHUNKS
EXACT = {
    "output_variance": l2m.output_variance,
    "output_covariance": l2m.output_covariance,
    "regress": lambda f, p, x: l2m.regress(f, p, x).epistemic,
}
MADE_ONCE = {
    "apply_ensemble": lambda f, p, x: l2m.predict.apply_ensemble(f, l2m.sample(KEY, p, 3), x),
    "make_predictive": lambda f, p, x: l2m.make_predictive(KEY, f, p, num_samples=3)(x),
    "make_predictive of draws": lambda f, p, x: l2m.make_predictive(
        KEY, f, p, kind="monte_carlo", num_samples=3
    )(x),
}
OTHERS = {
    "predict_dataset": lambda f, p, x: l2m.predict_dataset(
        l2m.make_predictive(KEY, f, p, num_samples=3), [x]
    ),
    "tabulate": l2m.predict.tabulate,
    "last_layer": lambda f, p, x: l2m.last_layer(f, p.mean, x),
    "classify": l2m.classify,
    "novelty": l2m.decisions.novelty,
    "elbo": lambda f, p, x: l2m.tuning.elbo(KEY, f, p, x, jnp.zeros(len(x), int)),
    "check_scale": lambda f, p, x: l2m.tuning.check_scale(f, p, x, jnp.zeros(len(x), int)),
}
EVERY = DRAWN | EXACT | MADE_ONCE | OTHERS

WRONG = {
    "dict": (lambda p, x: {"logits": network(p, x)}, r"a dict of float32\["),
    "tuple": (lambda p, x: (network(p, x), 0.5), r"a tuple of float32\[.*\], (0.5|float32\[\])"),
    "integers": (lambda p, x: jnp.argmax(network(p, x), 1), r"int32\["),
    "none": (lambda p, x: None, "a NoneType of "),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", EVERY)
def test_outputs_that_are_not_one_array_are_refused(posterior, name, wrong):
    apply_fn, got = WRONG[wrong]
    match = f"apply_fn: expected one array of real outputs, got {got}"
    with pytest.raises(TypeError, match=match) as raised:
        EVERY[name](apply_fn, posterior, X)
    assert "return the outputs alone" in str(raised.value)


def test_the_message_names_a_few_outputs_only(posterior):
    with pytest.raises(TypeError) as raised:
        l2m.monte_carlo(KEY, lambda p, x: [network(p, x)] * 50, posterior, X, num_samples=2)
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize("name", ["classify", "check_scale"])
def test_an_error_in_the_network_says_how_it_was_called(posterior, name):
    def swapped(x, params):
        return network(params, x)

    with pytest.raises(TypeError) as raised:
        EVERY[name](swapped, posterior, X)
    assert any("apply_fn(params, inputs)" in note for note in raised.value.__notes__)


COUPLED = {
    "batch normalisation": lambda p, x: network(p, (x - x.mean(0)) / x.std(0)),
    "centring": lambda p, x: network(p, x - x.mean(0)),
    "attention": lambda p, x: network(p, jax.nn.softmax(x @ x.T) @ x),
}


@pytest.mark.parametrize(
    ("name", "network_name"),
    [(name, "batch normalisation") for name in DRAWN | EXACT | MADE_ONCE]
    + [(name, other) for name in ("linearized", "output_variance") for other in COUPLED],
)
def test_coupled_examples_are_refused_and_nan_under_jit(posterior, name, network_name):
    function, apply_fn = EVERY[name], COUPLED[network_name]
    with pytest.raises(ValueError, match="depend on that example only, got outputs that change"):
        function(apply_fn, posterior, X)
    assert np.isnan(jax.jit(lambda p, x: function(apply_fn, p, x))(posterior, X)).all()


def test_coupled_examples_are_refused_for_a_whole_dataset(posterior):
    summary = {"summary": l2m.classification, "num_samples": 3}
    made = l2m.make_predictive(KEY, COUPLED["centring"], posterior, **summary)
    with pytest.raises(ValueError, match="depend on that example only"):
        l2m.predict_dataset(made, X, batch_size=3)


def test_a_first_call_with_one_input_does_not_hide_that_examples_are_coupled(posterior):
    predictive = l2m.make_predictive(KEY, COUPLED["centring"], posterior, num_samples=3)
    predictive(X[:1])
    with pytest.raises(ValueError, match="depend on that example only"):
        predictive(X)


@pytest.mark.parametrize("name", ["linearized", "make_predictive"])
def test_a_program_for_any_number_of_inputs_looks_at_them_too(posterior, name):
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("n, 4"), jnp.float32)
    for apply_fn, numbers in ((network, []), (COUPLED["centring"], [3, 6])):
        program = jax.jit(lambda x, f=apply_fn: EVERY[name](f, posterior, x))
        run = export.export(program)(shape).call
        assert [n for n in (1, 3, 6) if np.isnan(run(X[:n])).any()] == numbers


def test_a_later_call_of_a_predictive_looks_at_nothing_but_the_draws(posterior):
    """Once a shape was looked at, neither calls nor programs around them pay for it again."""
    predictive = l2m.make_predictive(KEY, network, posterior, num_samples=3)

    def steps():
        return len(jax.make_jaxpr(lambda x: predictive(x))(X).eqns)

    assert steps() > 1
    predictive(X)
    assert steps() == 1


def dropped(params, x):
    """Dropout with a fixed key: another mask for each place in the batch."""
    kept = jax.random.bernoulli(KEY, 0.5, (len(x), 5))
    hidden = jnp.where(kept, jnp.tanh(x @ params["body"]["kernel"]), 0.0)
    return hidden @ params["head"]["kernel"]


SOUND = {
    "dropout with a fixed key": (dropped, X),
    "a graph of six nodes": (lambda p, x: network(p, jnp.tri(6) @ x), X),
    "inputs without rows": (lambda p, x: network(p, x * jnp.ones(4)), jnp.ones(())),
    "one input": (COUPLED["centring"], X[:1]),
    "inputs of unlike sizes": (
        lambda p, x: network(p, x["x"] - x["of"].mean()),
        {"x": X, "of": jnp.arange(3.0)},
    ),
    "one size of batch": (lambda p, x: network(p, x.reshape(6, 4)), X),
    "NaN in an input": (network, X.at[0, 0].set(jnp.nan)),
}


# Chunks are of draws, and coupled are examples: a case of each kind shows them together.
@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in WHOLE | MADE_ONCE for case in SOUND]
    + [(name, case) for name in CHUNKS for case in ("a graph of six nodes", "one input")],
)
def test_what_is_no_coupling_is_not_taken_for_it(posterior, name, case):
    apply_fn, inputs = SOUND[case]
    outputs = EVERY[name](apply_fn, posterior, inputs)
    jitted = jax.jit(lambda p, x: EVERY[name](apply_fn, p, x))(posterior, inputs)
    np.testing.assert_allclose(outputs, jitted, rtol=1e-4, atol=1e-5)
    assert np.isfinite(np.asarray(outputs)[:, 1:]).all()


@pytest.mark.parametrize("name", EXACT)
def test_independent_examples_are_the_same_under_jit(posterior, name):
    eager = EXACT[name](network, posterior, X)
    jitted = jax.jit(lambda p, x: EXACT[name](network, p, x))(posterior, X)
    np.testing.assert_allclose(eager, jitted, rtol=1e-5)
    assert np.isfinite(eager).all()
