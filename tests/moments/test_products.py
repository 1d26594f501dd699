"""Tracked products of gradients against dense means of outer products, made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import dense_basis, flat, orthogonal, train_linear
from scipy import linalg
from test_second_moment import gradients, run

import l2m_optax as l2m
from l2m_optax.transforms import Stacked

DECAY, COUNT = 0.9, 6
PARAMS = {
    "kernel": jnp.ones((4, 5)),
    "bias": jnp.ones(3),
    "conv": jnp.ones((2, 2, 3, 2)),
    "table": jnp.ones((30, 2)),
    "s": jnp.ones(()),
    "stack": jnp.ones((2, 3, 2)),
}
GRADS = gradients(PARAMS)[:COUNT]
LABELS = {
    "kernel": "kronecker",
    "bias": "full",
    "conv": "kronecker",
    "table": "kronecker",
    "s": "full",
    "stack": Stacked("kronecker", 1),
}


def tracked(**kwargs):
    return l2m.track_second_moment(DECAY, **{"structure": LABELS, "max_side": 20} | kwargs)


def weights(count, decay=DECAY):
    powers = decay ** np.arange(count)[::-1]
    return powers / powers.sum()


def mean_products(grads, shape, decay=DECAY):
    """The means of G Gᵀ and of Gᵀ G, for gradients folded into `shape`, in float64."""
    folded = [np.asarray(g, np.float64).reshape(shape) for g in grads]
    pairs = zip(weights(len(grads), decay), folded, strict=True)
    lefts, rights = zip(*((w * g @ g.T, w * g.T @ g) for w, g in pairs), strict=True)
    return sum(lefts), sum(rights)


def kronecker(left, right):
    return np.kron(left, right) / np.trace(left)


def dense(moment, name):
    """The second moment of all entries of a leaf, from what was read."""
    q = dense_basis(moment.basis[name], moment.nu[name].shape)
    return (q * np.ravel(moment.nu[name])) @ q.T


def expected(name, grads, decay=DECAY):
    leaves = [g[name] for g in grads]
    if name == "bias":
        return mean_products(leaves, (3, 1), decay)[0]
    if name == "s":
        return mean_products(leaves, (1, 1), decay)[0]
    if name == "stack":
        members = [[g[i] for g in leaves] for i in range(2)]
        return linalg.block_diag(*(kronecker(*mean_products(m, (3, 2), decay)) for m in members))
    left, right = mean_products(
        leaves, {"kernel": (4, 5), "conv": (4, 6), "table": (30, 2)}[name], decay
    )
    return kronecker(np.diag(np.diag(left)) if name == "table" else left, right)


def check(moment, grads=GRADS, decay=DECAY):
    for name in PARAMS:
        np.testing.assert_allclose(
            dense(moment, name), expected(name, grads, decay), rtol=1e-4, atol=1e-5
        )


def test_what_is_read_is_the_kronecker_product_of_the_means():
    moment = l2m.second_moment(run(tracked(), PARAMS, GRADS), PARAMS)
    check(moment)
    assert moment.basis["table"].left is None
    assert moment.basis["s"] is None


def test_the_trace_is_that_of_the_diagonal():
    state = run(tracked(), PARAMS, GRADS)
    plain = run(l2m.track_second_moment(DECAY), PARAMS, GRADS)
    moment = l2m.second_moment(state, PARAMS)
    for name in PARAMS:
        np.testing.assert_array_equal(state.nu[name], plain.nu[name])
        np.testing.assert_allclose(np.sum(moment.nu[name]), np.sum(plain.nu[name]), rtol=1e-6)
        for side in jax.tree.leaves(state.factors[name]):
            trace = jnp.trace(side, axis1=-2, axis2=-1)
            np.testing.assert_allclose(np.sum(trace), np.sum(plain.nu[name]), rtol=1e-6)


def test_updates_pass_through_bit_for_bit():
    tx = tracked(every=2)
    state = tx.init(PARAMS)
    for g in GRADS[:3]:
        updates, state = tx.update(g, state)
        jax.tree.map(np.testing.assert_array_equal, updates, g)


@pytest.mark.parametrize("count", [4, 5])
def test_every_third_gradient_is_taken(count):
    """The first and the fourth, with the decay of three steps between them."""
    tx = tracked(every=3)
    state = run(jax.tree_util.Partial(lambda: tx)(), PARAMS, GRADS[:count])
    moment = l2m.second_moment(state, PARAMS)
    assert int(moment.count) == 2
    np.testing.assert_allclose(moment.decay, DECAY**3, rtol=1e-6)
    check(moment, GRADS[0:4:3], DECAY**3)


def test_other_gradients_are_computed_only_when_they_are_taken():
    calls = []

    def others(g):
        jax.debug.callback(lambda: calls.append(1))
        return jax.tree.map(lambda x: 2.0 * x, g)

    tx = tracked(every=3)
    step = jax.jit(lambda g, s: tx.update(g, s, moment_updates=lambda: others(g))[1])
    state = tx.init(PARAMS)
    for g in GRADS[:5]:
        state = step(g, state)
    jax.effects_barrier()
    assert len(calls) == 2
    doubled = [jax.tree.map(lambda x: 2.0 * x, g) for g in GRADS[0:4:3]]
    check(l2m.second_moment(state, PARAMS), doubled, DECAY**3)


def test_a_stack_of_micro_batches_is_averaged():
    tx = tracked()
    stack = jax.tree.map(lambda *g: jnp.stack(g), *GRADS[:2])
    _, state = tx.update(GRADS[0], tx.init(PARAMS), moment_updates=stack)
    check(l2m.second_moment(state, PARAMS), GRADS[:2], 1 - 1e-12)


def test_stacks_of_different_numbers_are_refused():
    tx = tracked()
    stack = jax.tree.map(lambda *g: jnp.stack(g), *GRADS[:2])
    mixed = {**GRADS[0], next(iter(stack)): next(iter(stack.values()))}
    with pytest.raises(ValueError, match=r"moment_updates: expected as many .*, got 1, 2; pass"):
        tx.update(GRADS[0], tx.init(PARAMS), moment_updates=mixed)


@pytest.mark.parametrize("every", [1, 3])
def test_roots_of_mean_squares_are_refused_where_products_are_kept(every):
    squares = jax.tree.map(jnp.square, GRADS[0])
    roots = l2m.jacobians.ExampleMoments(jnp.zeros(()), GRADS[0], squares, 1).root_mean_square
    few = l2m.track_second_moment(
        DECAY, structure=lambda path, _: LABELS["bias"] if "bias" in path else "diagonal"
    )
    expected = r"moment_updates\['bias'\]: expected gradients with their signs"
    for tx, given in ((few, roots), (tracked(every=every), lambda: roots)):
        with pytest.raises(ValueError, match=expected):
            tx.update(GRADS[0], tx.init(PARAMS), moment_updates=given)
    plain = l2m.track_second_moment(DECAY)
    _, state = plain.update(GRADS[0], plain.init(PARAMS), moment_updates=lambda: roots)
    np.testing.assert_allclose(flat(state.nu), flat(squares), rtol=1e-6)


CHAINS = {
    "alone": lambda tx: tx,
    "before adam": lambda tx: optax.chain(tx, optax.adam(1e-3)),
    "exposed": lambda tx: l2m.expose_second_moment(optax.chain(tx, optax.adam(1e-3))),
    "injected": lambda tx: optax.inject_hyperparams(
        lambda lr: optax.chain(tx, optax.adam(lr))
    )(lr=0.1),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("every", [1, 3])
def test_the_transformation_reads_it_too(chain, every):
    tx = CHAINS[chain](tracked(every=every))
    grads = GRADS[:4]
    moment = l2m.second_moment(run(tx, PARAMS, grads), PARAMS, tx=tx)
    assert int(moment.count) == len(grads[::every])
    np.testing.assert_allclose(moment.decay, DECAY**every, rtol=1e-5)
    check(moment, grads[::every], DECAY**every)


def test_accumulated_gradients_and_masked_leaves():
    labels = {name: "one" if name in ("kernel", "bias") else "two" for name in PARAMS}
    inside = optax.multi_transform(
        {"one": optax.chain(tracked(), optax.sgd(0.1)), "two": optax.set_to_zero()}, labels
    )
    tx = optax.MultiSteps(inside, 2)
    moment = l2m.second_moment(run(tx, PARAMS, GRADS), PARAMS, tx=tx)
    assert moment.micro_steps == 2
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *GRADS[i : i + 2]) for i in range(0, COUNT, 2)]
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(dense(moment, name), expected(name, means), rtol=1e-4, atol=1e-5)
    assert moment.nu["conv"] is None
    built = l2m.laplace(PARAMS, moment, num_data=100, batch_size=5)
    assert np.all(l2m.variance(built)["conv"] == 0)


def test_a_function_of_path_and_shape_chooses():
    def choose(path, shape):
        return "kronecker" if path == ("kernel",) and shape == (4, 5) else "diagonal"

    state = tracked(structure=choose).init(PARAMS)
    assert [name for name, held in state.factors.items() if held] == ["kernel"]
    plain = tracked(structure="diagonal").init(PARAMS)
    assert plain.factors is None
    assert plain.phase is None


def test_full_where_it_fits_and_kronecker_elsewhere():
    factors = tracked(structure="full").init(PARAMS).factors
    assert factors["kernel"].left.shape == (20, 20)
    assert factors["kernel"].right is None
    assert [side.shape for side in factors["conv"]] == [(4, 4), (6, 6)]


REFUSED = {
    "a label": ({"structure": {**LABELS, "bias": "low-rank"}}, r"structure\['bias'\]"),
    "too many axes": ({"structure": Stacked("kronecker", 3)}, r"structure\['bias'\]"),
    "no prefix": ({"structure": {"kernel": "full"}}, "a prefix of the parameters"),
    "memory": ({"structure": "kronecker", "max_bytes": 400}, "max_bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_tracked_is_refused(case):
    kwargs, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tracked(**kwargs).init(PARAMS)


def test_memory_is_refused_before_it_is_allocated():
    huge = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)
    tx = l2m.track_second_moment(0.9, structure="kronecker", max_side=2**16)
    with pytest.raises(
        ValueError, match=r"structure: expected at most 4,294,967,296 bytes, got 34,359,738,368"
    ):
        jax.eval_shape(tx.init, huge)


@pytest.mark.parametrize("name", ["every", "max_side", "max_bytes"])
def test_numbers_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1"):
        l2m.track_second_moment(0.9, **{name: 0})


def test_low_precision_is_kept_in_float32():
    params, grads = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, GRADS[:3]))
    state = run(tracked(), params, grads)
    assert {x.dtype for x in jax.tree.leaves(state.factors)} == {jnp.dtype(jnp.float32)}
    check(l2m.second_moment(state, params), grads)


def test_an_ensemble_is_tracked_and_read_by_vmap():
    tx = tracked()
    other = [jax.tree.map(lambda x: x**2, g) for g in GRADS[:3]]
    stacked = [
        jax.tree.map(lambda a, b: jnp.stack([a, b]), *pair)
        for pair in zip(GRADS[:3], other, strict=True)
    ]
    state = jax.vmap(tx.init)(jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS))
    for g in stacked:
        _, state = jax.vmap(tx.update)(g, state)
    moments = jax.vmap(lambda s: l2m.second_moment(s, PARAMS))(state)
    for i, grads in enumerate((GRADS[:3], other)):
        check(jax.tree.map(lambda x, i=i: x[i], moments), grads)


def test_a_state_that_was_never_updated_is_refused():
    with pytest.raises(ValueError, match="at least one update"):
        l2m.second_moment(tracked().init(PARAMS), PARAMS)


def test_leaves_without_gradients_and_without_entries():
    params = {"dead": jnp.ones((3, 2)), "empty": jnp.ones((0, 4)), "w": jnp.ones((2, 2))}
    tx = l2m.track_second_moment(0.9, structure="kronecker")
    grads = {**jax.tree.map(jnp.zeros_like, params), "w": jnp.eye(2)}
    _, state = tx.update(grads, tx.init(params))
    built = l2m.laplace(params, state, num_data=100, batch_size=5, prior_precision=2.0)
    np.testing.assert_allclose(l2m.variance(built)["dead"], 0.5, rtol=1e-6)


def test_the_full_moment_is_the_hessian_of_a_linear_regression(regression):
    """Eigenvalues within 10% of the Hessian's, and of the empirical Fisher's in any direction."""
    rate = optax.cosine_decay_schedule(0.01, 20_000)
    tx = optax.chain(l2m.track_second_moment(0.9995, structure="full"), optax.adam(rate))
    params, state = train_linear(
        tx, regression, lambda r: jnp.mean(r**2), batch_size=20, steps=20_000, seed=0
    )
    built = l2m.laplace(
        params, state, num_data=2000, batch_size=20, loss_scale=2 * regression.noise_variance
    )
    q = dense_basis(built.second_moment.basis["w"], (10,))
    found = (q * flat(l2m.posterior.data_precision(built))) @ q.T
    x = np.asarray(regression.x, np.float64)
    hessian = x.T @ x / regression.noise_variance
    np.testing.assert_allclose(linalg.eigvalsh(found), linalg.eigvalsh(hessian), rtol=0.1)
    residuals = np.asarray(regression.y - regression.x @ params["w"], np.float64)
    each = x * (residuals / regression.noise_variance)[:, None]
    np.testing.assert_allclose(linalg.eigvalsh(found, each.T @ each), 1.0, atol=0.1)


def test_kronecker_is_exact_for_independent_inputs_and_residuals():
    """Gradients a dᵀ of one example each, with a and d drawn apart from one another."""
    number, mix = 40_000, np.asarray(orthogonal(0, (3,)), np.float64) * [3.0, 1.0, 0.3]
    rng = np.random.default_rng(0)
    a, d = rng.normal(size=(number, 3)) @ mix.T, rng.normal(size=(number, 2)) * [1.0, 0.2]
    tx = l2m.track_second_moment(0.0, structure="kronecker")
    g = jnp.asarray(a[:, :, None] * d[:, None, :], jnp.float32)
    _, state = tx.update(g[0], tx.init(g[0]), moment_updates=g)
    moment = l2m.second_moment(state, g[0])
    q = dense_basis(moment.basis, (3, 2))
    vectors = np.asarray(g, np.float64).reshape(number, -1)
    ratio = linalg.eigvalsh((q * np.ravel(moment.nu)) @ q.T, vectors.T @ vectors / number)
    np.testing.assert_allclose(ratio, 1.0, atol=0.05)


@pytest.mark.parametrize("every", [1, 3])
def test_a_state_without_its_types_is_read_by_the_transformation(every):
    tx = optax.chain(tracked(every=every), optax.adam(1e-3))
    state = run(tx, PARAMS, GRADS[:4])
    fields = state[0]._asdict()
    fields["factors"] = {
        name: None if held is None else held._asdict() for name, held in fields["factors"].items()
    }
    plain = [fields, [state[1][0]._asdict(), {}]]
    check(l2m.second_moment(plain, PARAMS, tx=tx), GRADS[:4:every], DECAY**every)


def test_the_diagnosis_counts_parameters_without_gradients_and_no_eigenvalues():
    params = {"w": jnp.ones((4, 3))}
    tx = l2m.track_second_moment(0.9, structure="kronecker")
    one = jnp.outer(jnp.array([1.0, 2.0, 0.0, 4.0]), jnp.array([1.0, -1.0, 0.5]))
    _, state = tx.update({"w": one}, tx.init(params))
    built = l2m.laplace(params, state, num_data=100, batch_size=5)
    np.testing.assert_allclose(l2m.diagnose(built).total.zeros, 0.25)


def test_identification_leaves_the_transformation_as_it_was():
    """JAX remembers what it traced: states made before and after are those with products."""
    tx = tracked(every=3)
    before = jax.eval_shape(tx.init, PARAMS)
    l2m.identify(tx, PARAMS)
    l2m.second_moment(run(tx, PARAMS, GRADS[:1]), PARAMS, tx=tx)
    for after in (jax.eval_shape(tx.init, PARAMS), jax.jit(tx.init)(PARAMS), tx.init(PARAMS)):
        assert jax.tree.structure(after) == jax.tree.structure(before)
    fresh = tracked(every=3)
    l2m.identify(fresh, PARAMS)
    assert jax.tree.structure(jax.eval_shape(fresh.init, PARAMS)) == jax.tree.structure(before)
