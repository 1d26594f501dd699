"""The weight decay of the evidence: its step, its fixed point, its state, and what reads that."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from helpers import flat, network, network_params
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_readme import run_blocks

import l2m_optax as l2m

N, B = 1000, 10
PARAMS = network_params(jax.random.key(0))


def decay(**kwargs):
    """The same transformation for the same numbers, so that what it compiles to is shared."""
    try:
        return _decay(tuple(kwargs.items()))
    except TypeError:  # trees cannot be remembered
        return _decay.__wrapped__(kwargs.items())


@functools.cache
def _decay(items):
    return l2m.evidence_weight_decay(
        **({"num_data": N, "batch_size": B, "decay": 0.99} | dict(items))
    )


STRUCTURED = {"structure": "kronecker", "every": 2}
STRUCTURES = {"diagonal": {}, "kronecker": STRUCTURED}


def gradient(step, params=PARAMS):
    """Random, and the same for the same step."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(5), step), len(leaves))
    draws = [
        0.02 * jax.random.normal(k, p.shape, p.dtype) for k, p in zip(keys, leaves, strict=True)
    ]
    return treedef.unflatten(draws)


@functools.partial(jax.jit, static_argnums=0)
def update(tx, grads, state, params=PARAMS, value=0.7):
    return tx.update(grads, state, params, value=value)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_between(tx, frozen, carry, numbers, value=0.7):
    """Updates from the first number to the second, by the gradient of each, or always the third."""
    first, last, stride = numbers

    def step(number, carry):
        params, state = carry
        updates, state = tx.update(gradient(stride * number, params), state, params, value=value)
        return (params if frozen else optax.apply_updates(params, updates), state)

    return jax.lax.fori_loop(first, last, step, carry)


def run(tx, steps, params=PARAMS, *, state=None, start=0, frozen=True, stride=1):
    """The parameters and the state after some updates, in one loop."""
    state = tx.init(params) if state is None else state
    return run_between(tx, frozen, (params, state), (start, start + steps, stride))


def oracle(posterior, overcount=10.0):
    """With F as the search sees it."""
    return posterior._replace(data_scale=posterior.data_scale / overcount)


@pytest.fixture(scope="module")
def converged():
    return run(decay(), 2000)[1]


ORIGIN = jax.tree.map(lambda p: p - 0.1, PARAMS)
PRIOR_MEANS = {"zero": None, "another": ORIGIN}


@pytest.mark.parametrize(("prior_mean", "loss_scale"), [("zero", 32.0), ("another", 1.0)])
def test_a_step_adds_the_gradient_of_the_prior(prior_mean, loss_scale):
    origin = PRIOR_MEANS[prior_mean]
    tx = decay(prior_mean=origin, loss_scale=loss_scale, start=3.0)
    _, state = run(tx, 120)
    grads = gradient(120)
    updates, state = update(tx, grads, state)
    origin = jax.tree.map(jnp.zeros_like, PARAMS) if origin is None else origin

    def expected(g, delta, p, p0):
        return g + loss_scale * delta / N * (p - p0)

    wanted = jax.tree.map(expected, grads, state.prior_precision, PARAMS, origin)
    np.testing.assert_allclose(flat(updates), flat(wanted), rtol=1e-6, atol=1e-8)
    assert float(state.prior_precision["head"]["kernel"]) != 3.0


def test_before_the_first_search_it_is_a_constant_decay():
    tx = decay(start=3.0)
    updates, _ = update(tx, gradient(0), tx.init(PARAMS))
    plain, _ = optax.add_decayed_weights(3.0 / N).update(gradient(0), optax.EmptyState(), PARAMS)
    np.testing.assert_allclose(flat(updates), flat(plain), rtol=1e-6)
    assert set(flat(run(tx, 99)[1].prior_precision)) == {3.0}


MODULES = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, PARAMS)
GROUPS = {
    "modules": ({}, MODULES),
    "one": ({"groups": None}, None),
}


@pytest.mark.parametrize(("name", "overcount"), [("modules", 10.0), ("one", 1.0)])
def test_the_fixed_point_is_the_evidence_s_maximum(name, overcount):
    given, groups = GROUPS[name]
    given = given if overcount == 10.0 else given | {"overcount": overcount}  # 10 is the default
    _, state = run(decay(**given), 2000)
    posterior = l2m.laplace(PARAMS, state.read_second_moment(), num_data=N, batch_size=B)
    fitted, info = l2m.fit_prior_precision(oracle(posterior, overcount), groups=groups)
    assert np.all(jax.tree.leaves(info.converged))
    wanted = jax.tree.map(lambda p, d: jnp.full_like(p, d), PARAMS, broad(fitted.prior_precision))
    got = jax.tree.map(lambda p, d: jnp.full_like(p, d), PARAMS, state.prior_precision)
    # The moment moves on, and δ follows with a memory of 100 updates.
    np.testing.assert_allclose(flat(got), flat(wanted), rtol=0.02)


def broad(prior):
    return prior if isinstance(prior, dict) else jax.tree.map(lambda _: prior, PARAMS)


def constant(tx, steps=3000):
    """The state after many updates by the same gradient, whose square the moment is."""
    return run(tx, steps, stride=0)[1]


def test_the_fixed_point_is_exact_for_a_constant_moment():
    state = constant(decay())
    posterior = l2m.laplace(PARAMS, state.read_second_moment(), num_data=N, batch_size=B)
    fitted, _ = l2m.fit_prior_precision(oracle(posterior), groups=MODULES)
    np.testing.assert_allclose(flat(state.prior_precision), flat(fitted.prior_precision), rtol=1e-4)
    held = oracle(posterior)._replace(prior_precision=state.prior_precision)
    gamma = l2m.tuning.effective_parameters(held)
    np.testing.assert_allclose(sum(flat(state.effective_parameters)), gamma, rtol=1e-5)
    evidence = l2m.tuning.log_evidence(held, -N * 0.7)
    np.testing.assert_allclose(state.log_evidence, evidence, rtol=1e-5)


def test_the_noise_s_fixed_point_is_exact_for_a_constant_moment():
    """As `fit_noise_variance`, with the prior of each module, and its own s²."""
    tx = decay(likelihood="gaussian", loss_scale=2.0, overcount=1.0, groups=None)
    state = constant(tx)
    moment = state.read_second_moment()
    posterior = l2m.laplace(PARAMS, moment, num_data=N, batch_size=B, loss_scale=2.0)
    x = jnp.zeros((N, 1))
    fitted, info = l2m.fit_noise_variance(
        lambda params, x: x, posterior, x, jnp.full((N, 1), jnp.sqrt(0.7))
    )
    assert info.converged
    np.testing.assert_allclose(state.noise_variance, info.value, rtol=1e-4)
    np.testing.assert_allclose(
        state.prior_precision["head"]["bias"], fitted.prior_precision, rtol=1e-3
    )
    s2 = float(info.value)
    log_likelihood = -0.5 * N * (np.log(2 * np.pi * s2) + 0.7 / s2)
    np.testing.assert_allclose(
        state.log_evidence, l2m.tuning.log_evidence(fitted, log_likelihood), rtol=1e-4
    )
    updates, state = update(tx, gradient(0), state)
    step = flat(updates) - flat(gradient(0))
    wanted = 2.0 * s2 * float(fitted.prior_precision) / N * flat(PARAMS)
    np.testing.assert_allclose(step, wanted, rtol=2e-3, atol=1e-7)


def conjugate(seed=0, features=12, noise=0.5):
    """A design of orthogonal columns, some of which the data hardly determine."""
    rng = np.random.default_rng(seed)
    columns = np.linalg.qr(rng.normal(size=(N, features)))[0] * np.sqrt(N)
    x = columns * np.geomspace(1.0, 0.002, features)
    y = x @ rng.normal(size=features) + noise * rng.normal(size=N)
    return x, y


def evidence_of_regression(x, y):
    """MacKay's fixed point, with exact modes, in float64."""
    delta, s2 = 1.0, float(np.var(y))
    for _ in range(2000):
        precision = x.T @ x / s2
        w = np.linalg.solve(precision + delta * np.eye(x.shape[1]), x.T @ y / s2)
        gamma = np.trace(np.linalg.solve(precision + delta * np.eye(x.shape[1]), precision))
        delta, s2 = gamma / (w @ w), np.sum((y - x @ w) ** 2) / (len(y) - gamma)
    return w, delta, s2, gamma


def test_a_linear_regression_finds_the_exact_evidence():
    x, y = conjugate()
    w, delta, s2, gamma = evidence_of_regression(x, y)
    assert 4 < gamma < 10  # neither all parameters nor none
    tx = optax.chain(
        l2m.evidence_weight_decay(
            num_data=N, batch_size=B, likelihood="gaussian", overcount=1.0, decay=0.9995
        ),
        optax.adam(optax.cosine_decay_schedule(0.03, 20_000, alpha=0.003)),
    )
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def step(carry, rows):
        params, state = carry
        value, grads = jax.value_and_grad(
            lambda p: 0.5 * jnp.mean(jnp.square(y[rows] - x[rows] @ p["w"]))
        )(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    params = {"w": jnp.zeros(x.shape[1])}
    orders = np.random.default_rng(1).permuted(np.tile(np.arange(N), (200, 1)), axis=1)
    (params, state), _ = jax.jit(lambda *args: jax.lax.scan(step, *args))(
        (params, tx.init(params)), orders.reshape(-1, B)
    )
    found = state[0]
    np.testing.assert_allclose(params["w"], w, atol=0.03)
    np.testing.assert_allclose(found.noise_variance, s2, rtol=0.02)
    np.testing.assert_allclose(found.effective_parameters["w"], gamma, rtol=0.03)
    np.testing.assert_allclose(found.prior_precision["w"], delta, rtol=0.05)
    assert not found.edge["w"]
    # The posterior, from the same numbers, has the squared gradients of all examples.
    residual = y - x @ jnp.asarray(w, jnp.float32)
    squares = jnp.sum(jnp.square(x * residual[:, None]), axis=0) / s2**2
    posterior = l2m.laplace(params, state, num_data=N, batch_size=B)
    np.testing.assert_allclose(l2m.variance(posterior)["w"], 1 / (squares + delta), rtol=0.05)
    precision = jnp.square(x).sum(0) / s2 + delta
    likelihood = -0.5 * (N * np.log(2 * np.pi * s2) + jnp.sum(jnp.square(residual)) / s2)
    penalty = delta * np.sum(np.square(w)) + jnp.sum(jnp.log(precision / delta))
    np.testing.assert_allclose(found.log_evidence, likelihood - 0.5 * penalty, atol=2.0)
    # It is at the mode of the two, as far as the noise of batches shows.
    assert abs(float(found.balance) - 1.0) < 3 * float(found.balance_error)


def test_the_balance_of_loss_and_decay():
    """Of a constant gradient: its slope away from θ0, over that of the decay."""
    origin = PRIOR_MEANS["another"]
    tx = decay(likelihood="gaussian", loss_scale=2.0, prior_mean=origin)
    moved = flat(PARAMS) - flat(origin)
    slope = -np.sum(flat(gradient(0)) * moved)
    _, first = run(tx, 100, stride=0)
    np.testing.assert_allclose(first.slopes[0], slope, rtol=1e-5)
    assert np.isnan(first.balance_error)  # of one batch
    state = constant(tx)
    np.testing.assert_allclose(state.slopes[0], slope, rtol=1e-5)
    held = jax.tree.map(
        lambda delta, p, p0: 2.0 * state.noise_variance * delta / N * jnp.sum(jnp.square(p - p0)),
        state.prior_precision,
        PARAMS,
        origin,
    )
    np.testing.assert_allclose(state.balance, slope / sum(flat(held)), rtol=1e-4)
    assert float(state.balance_error) < 0.01 * abs(float(state.balance))  # all batches are alike


@pytest.mark.parametrize("steps", [120, 400])
def test_the_error_of_the_balance_is_that_of_a_weighted_mean(steps):
    """Of the batches at the searches, with the weights that they have."""
    _, state = run(decay(), steps)
    slopes = np.array(
        [-np.sum(flat(gradient(i)) * flat(PARAMS)) for i in range(99, steps, 10)]  # from the 100th
    )
    weights = 0.99 ** (10 * np.arange(len(slopes)))[::-1]
    weights /= weights.sum()
    np.testing.assert_allclose(state.slopes[0], weights @ slopes, rtol=1e-4)
    spread = weights @ np.square(slopes - weights @ slopes) / (1 - weights @ weights)
    error = np.sqrt(spread * (weights @ weights))
    np.testing.assert_allclose(
        state.balance_error / state.balance, error / (weights @ slopes), rtol=1e-3
    )


OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-2),
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "lion": lambda: optax.lion(1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_chain_is_the_optimizer_on_decayed_gradients(name):
    """120 updates, the search included, one by one by hand."""
    tx, alone, inner = optax.chain(decay(), OPTIMIZERS[name]()), decay(), OPTIMIZERS[name]()
    trained, state = run(tx, 120, frozen=False)

    @jax.jit
    def following(params, grads, second):
        updates, second = inner.update(grads, second, params)
        return optax.apply_updates(params, updates), second

    carry = PARAMS, alone.init(PARAMS), inner.init(PARAMS)
    for number in range(120):
        params, first, second = carry
        grads, first = update(alone, gradient(number, params), first, params)
        params, second = following(params, grads, second)
        carry = params, first, second
    np.testing.assert_allclose(flat(trained), flat(carry[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(flat(state[0]), flat(carry[1]), rtol=1e-5, atol=1e-6)


RHYTHMS = {
    "each": ({"every": 1}, 1, 1),
    "seventh": ({"every": 7}, 1, 7),
    "structured": ({"structure": "kronecker", "every": 3}, 3, 30),
}


@pytest.mark.parametrize("name", RHYTHMS)
def test_searches_are_made_every_so_often(name):
    kwargs, of_moment, of_search = RHYTHMS[name]
    tx = decay(**kwargs)

    def step(state, number):
        state = tx.update(gradient(number), state, PARAMS, value=0.7)[1]
        return state, state.prior_precision["head"]["bias"]

    state, found = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(160)))(tx.init(PARAMS))
    moved = np.flatnonzero(np.diff(found)) + 2  # the count of the first update is 1
    assert list(moved) == [n for n in range(100, 161) if n % of_search == 0]
    assert int(state.count) == 160
    assert int(state.moment.count) == -(-160 // of_moment)


def test_how_often_it_searches_hardly_matters(converged):
    _, seldom = run(decay(every=50), 2000)
    np.testing.assert_allclose(
        flat(seldom.prior_precision), flat(converged.prior_precision), rtol=0.02
    )


@pytest.mark.parametrize("name", STRUCTURES)
def test_it_goes_on_bit_for_bit_from_what_was_saved(name):
    kwargs = STRUCTURES[name] | {"likelihood": "gaussian", "prior_mean": PRIOR_MEANS["another"]}
    tx = optax.chain(decay(**kwargs), optax.adam(0.01))
    whole = run(tx, 245, frozen=False)
    params, state = run(tx, 121, frozen=False)
    leaves, treedef = jax.tree.flatten((params, state))
    saved = [np.asarray(leaf).tobytes() for leaf in leaves]
    restored = [
        jnp.asarray(np.frombuffer(raw, leaf.dtype).reshape(leaf.shape))
        for raw, leaf in zip(saved, leaves, strict=True)
    ]
    params, state = treedef.unflatten(restored)
    rest = run(tx, 124, params, state=state, start=121, frozen=False)
    jax.tree.map(np.testing.assert_array_equal, whole, rest)


def test_a_state_keeps_its_types_and_shapes():
    for kwargs in ({}, {"likelihood": "gaussian"}, STRUCTURED):
        tx = decay(**kwargs)
        for dtype in (jnp.float32, jnp.bfloat16):
            params = network_params(jax.random.key(0), dtype)
            state = tx.init(params)
            made = jax.eval_shape(tx.update, params, state, params, value=jnp.float16(1.0))
            assert [leaf.dtype for leaf in jax.tree.leaves(made[0])] == [dtype] * 4
            jax.tree.map(
                lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or 1 / 0,
                *((state, made[1])),
            )


def test_members_of_an_ensemble_have_a_prior_each():
    params, tx = jax.tree.map(lambda p: jnp.stack([p, 2.0 * p]), PARAMS), decay()
    train = functools.partial(run_inside, tx, 200)
    both = jax.jit(jax.vmap(lambda p: train(p, tx.init(p))))(params)
    _, alone = run(tx, 200, jax.tree.map(lambda p: 2.0 * p, PARAMS))
    np.testing.assert_allclose(
        flat(jax.tree.map(lambda x: x[1], both.prior_precision)),
        flat(alone.prior_precision),
        rtol=1e-4,
    )
    for number in ("balance", "balance_error"):
        np.testing.assert_allclose(getattr(both, number)[1], getattr(alone, number), rtol=1e-3)
    with pytest.raises(ValueError, match=r"prior_precision\['body'\].*got shape \(2,\).*jax.vmap"):
        l2m.laplace(params, both, num_data=N, batch_size=B)
    posteriors = jax.vmap(lambda p, s: l2m.laplace(p, s, num_data=N, batch_size=B))(params, both)
    assert posteriors.prior_precision["head"]["bias"].shape == (2,)


def run_inside(tx, steps, params, state):
    """As `run`, where the caller compiles it."""

    def step(state, number):
        return tx.update(gradient(number, params), state, params)[1], None

    return jax.lax.scan(step, state, jnp.arange(steps))[0]


# A structure


@pytest.fixture(scope="module")
def structured():
    return run(decay(**STRUCTURED), 160)[1]


def test_a_structure_s_posterior_has_its_basis_and_the_prior_of_the_training(structured):
    posterior = l2m.laplace(PARAMS, structured, num_data=N, batch_size=B)
    assert posterior.second_moment.basis["body"]["kernel"].left.shape == (4, 4)
    jax.tree.map(
        np.testing.assert_array_equal, posterior.prior_precision, structured.prior_precision
    )
    gamma = l2m.tuning.effective_parameters(posterior)  # that of the last search, undivided
    np.testing.assert_allclose(sum(flat(structured.effective_parameters)), gamma, rtol=1e-5)
    evidence = l2m.tuning.log_evidence(posterior, -N * 0.7)
    np.testing.assert_allclose(structured.log_evidence, evidence, rtol=1e-5)


def test_a_structure_s_moment_is_the_tracker_s(structured):
    tracker = l2m.track_second_moment(0.99, structure="kronecker", every=2)
    state = tracker.init(PARAMS)
    follow = jax.jit(lambda number, state: tracker.update(gradient(number), state)[1])
    state = jax.lax.fori_loop(0, 160, follow, state)
    np.testing.assert_allclose(flat(structured.moment), flat(state), rtol=1e-5, atol=1e-12)


def correlated(seed=0, features=8, noise=0.5):
    """A design that a diagonal counts wrongly, some directions of which are hardly determined."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, features)) @ orthogonal_rows(rng, features)
    y = x @ rng.normal(size=features) + noise * rng.normal(size=N)
    return x, y


def orthogonal_rows(rng, n):
    return np.geomspace(1.0, 0.005, n)[:, None] * np.linalg.qr(rng.normal(size=(n, n)))[0]


@pytest.mark.parametrize(("structure", "holds"), [("full", True), ("diagonal", False)])
def test_a_full_structure_finds_the_dense_evidence(structure, holds):
    """At the exact mode: γ, δ and s² of the dense matrix, which a diagonal does not find."""
    x, y = correlated()
    w, delta, s2, gamma = evidence_of_regression(x, y)
    assert 4 < gamma < 7
    tx = decay(structure=structure, likelihood="gaussian", overcount=1.0, decay=0.9995, every=1)
    params = {"w": jnp.asarray(w, jnp.float32)}
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def step(state, rows):
        value, grads = jax.value_and_grad(
            lambda p: 0.5 * jnp.mean(jnp.square(y[rows] - x[rows] @ p["w"]))
        )(params)
        return tx.update(grads, state, params, value=value)[1], None

    orders = np.random.default_rng(1).permuted(np.tile(np.arange(N), (30, 1)), axis=1)
    state, _ = jax.jit(lambda *args: jax.lax.scan(step, *args))(
        tx.init(params), orders.reshape(-1, B)
    )
    found = [
        float(np.sum(flat(state.effective_parameters))),
        float(state.prior_precision["w"]),
        float(state.noise_variance),
    ]
    assert np.allclose(found, [gamma, delta, s2], rtol=0.05) == holds, (found, gamma, delta, s2)


def test_a_bad_gradient_leaves_the_products_as_they_were(structured):
    """The next update of the moment is then made by the next gradient."""
    _, state = update(decay(**STRUCTURED), with_bad(jnp.nan), structured)
    assert int(state.skipped) == 1
    jax.tree.map(
        np.testing.assert_array_equal, state._replace(skipped=structured.skipped), structured
    )


def test_the_loss_for_each_determined_parameter(converged):
    gamma = sum(flat(converged.effective_parameters))
    np.testing.assert_allclose(converged.nats_per_parameter, N * 0.7 / gamma, rtol=1e-5)
    assert decay(likelihood="gaussian").init(PARAMS).nats_per_parameter is None


def test_a_loss_that_is_passed_now_and_then_has_its_mean():
    tx = decay()
    without = jax.jit(lambda state: tx.update(gradient(0), state, PARAMS)[1])
    state, losses = tx.init(PARAMS), (0.7, 0.3, 0.4)
    for loss in losses:
        for _ in range(5):
            state = without(state)
        _, state = update(tx, gradient(0), state, value=loss)
    weights = 0.99 ** np.arange(3)[::-1]
    np.testing.assert_allclose(state.loss, weights @ losses / weights.sum(), rtol=1e-5)


def test_a_record_holds_the_state_s_numbers(converged):
    record = converged.record()
    assert int(record.step) == 2000
    assert record.prior_precision is converged.prior_precision
    assert len(jax.tree.leaves(record)) == 3 + 2 * 4


def test_products_that_take_too_much_memory_are_refused():
    with pytest.raises(ValueError, match=r"structure.*expected at most 10 bytes"):
        decay(structure="kronecker", max_bytes=10).init(PARAMS)
    with pytest.raises(ValueError, match=r"structure"):
        decay(structure="blocks").init(PARAMS)
    state = decay(structure="kronecker", max_side=4).init(PARAMS)
    assert state.moment.factors["body"]["kernel"].right is None


# What cannot be found


def with_bad(value):
    grads = gradient(300)
    kernel = grads["body"]["kernel"].at[0, 0].set(value)
    return {**grads, "body": {**grads["body"], "kernel": kernel}}


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30], ids=["NaN", "inf", "infinite square"])
def test_bad_gradients_leave_the_state_as_it_was(converged, bad):
    grads = with_bad(bad)
    updates, state = update(decay(), grads, converged)
    assert int(state.skipped) == 1
    assert int(converged.skipped) == 0
    jax.tree.map(
        np.testing.assert_array_equal, state._replace(skipped=converged.skipped), converged
    )
    # The optimizer sees what came, and may refuse it.
    np.testing.assert_array_equal(
        updates["body"]["kernel"][0, 0], bad if bad != 1e30 else jnp.float32(1e30)
    )
    assert np.all(np.isfinite(flat(updates["head"])))


def test_a_bad_gradient_that_no_moment_sees_leaves_the_state_as_it_was():
    """At a search: between two updates of the moment, and where other gradients are squared."""
    cases = decay(**STRUCTURED), {}, 159, decay(), {"moment_updates": gradient(0)}, 109
    for tx, given, steps in (cases[:3], cases[3:]):
        _, before = run(tx, steps)
        after = tx.update(with_bad(jnp.nan), before, PARAMS, value=0.7, **given)[1]
        assert int(after.skipped) == 1
        jax.tree.map(np.testing.assert_array_equal, after._replace(skipped=before.skipped), before)


def test_a_bad_loss_leaves_the_state_as_it_was(converged):
    _, state = update(decay(), gradient(300), converged, value=jnp.nan)
    assert int(state.skipped) == 1
    assert np.all(np.isfinite(flat(state)))


EDGES = {
    "at the prior mean": (jnp.zeros(3), jnp.full(3, 0.1)),
    "without gradients": (jnp.ones(3), jnp.zeros(3)),
    "without entries": (jnp.zeros((0, 3)), jnp.zeros((0, 3))),
    "another": (jnp.ones(3), jnp.full(3, 0.1)),
}


def test_a_group_without_a_maximum_keeps_its_prior_and_says_so():
    params, grads = ({name: {"w": pair[i]} for name, pair in EDGES.items()} for i in (0, 1))
    state = repeated(decay(start=2.0), grads, params)
    for name in EDGES:
        at_edge = name != "another"
        assert bool(state.edge[name]["w"]) == at_edge, name
        assert (float(state.prior_precision[name]["w"]) == 2.0) == at_edge, name
    assert np.all(np.isfinite(flat(state)))


@functools.partial(jax.jit, static_argnums=0)
def repeated(tx, grads, params, value=0.05):
    """The state after 3,000 times the same gradient."""
    return jax.lax.fori_loop(
        0, 3000, lambda _, s: tx.update(grads, s, params, value=value)[1], tx.init(params)
    )


@pytest.mark.parametrize(("size", "bound"), [(1e-6, 1e6), (1e4, 1e-4)])
def test_a_prior_stays_between_bounds_and_says_so(size, bound):
    params, grads = {"w": jnp.full(3, size)}, {"w": jnp.full(3, 3.0)}
    tx = decay(every=1)
    state = repeated(tx, grads, params)
    assert bool(state.edge["w"])
    np.testing.assert_allclose(state.prior_precision["w"], bound, rtol=1e-4)


REFUSALS = {
    "full batch": ({"batch_size": N}, ValueError, "full batch"),
    "fractional data": ({"num_data": 10.5}, TypeError, "num_data: expected an integer"),
    "no batch": ({"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
    "decay 1": ({"decay": 1.0}, ValueError, "decay: expected 0 <= decay < 1"),
    "every 0": ({"every": 0}, ValueError, "every: expected at least 1"),
    "start 0": ({"start": 0.0}, ValueError, "start: expected a positive"),
    "starts": ({"start": jnp.ones(2)}, ValueError, "start: expected one number"),
    "start NaN": ({"start": float("nan")}, ValueError, "start: expected a positive"),
    "loss scale 0": ({"loss_scale": 0.0}, ValueError, "loss_scale: expected a positive"),
    "overcount": ({"overcount": -1.0}, ValueError, "overcount: expected a positive"),
    "likelihood": ({"likelihood": "normal"}, ValueError, "likelihood: expected 'categorical' or"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_numbers_are_refused_at_once(name):
    given, error, message = REFUSALS[name]
    with pytest.raises(error, match=message):
        decay(**given)


def test_what_does_not_fit_the_parameters_is_refused_by_init():
    with pytest.raises(ValueError, match=r"groups: expected a prefix of params"):
        decay(groups={"nothing": 0}).init(PARAMS)
    with pytest.raises(ValueError, match=r"prior_mean\['body'\]"):
        decay(prior_mean={"head": PARAMS["head"]}).init(PARAMS)
    with pytest.raises(FloatingPointError, match="prior_mean"):
        decay(prior_mean=jax.tree.map(lambda p: p * jnp.nan, PARAMS)).init(PARAMS)
    with pytest.raises(TypeError, match="a real floating-point array"):
        decay().init({"w": jnp.arange(3)})
    with pytest.raises(ValueError, match="params: expected at least one array"):
        decay().init({})


def test_what_an_update_needs_is_asked_for():
    tx = decay()
    with pytest.raises(ValueError, match=r"params: expected the parameters"):
        tx.update(gradient(0), tx.init(PARAMS))
    with pytest.raises(ValueError, match=r"value: expected one number, got shape \(2,\)"):
        tx.update(gradient(0), tx.init(PARAMS), PARAMS, value=jnp.ones(2))
    tx = decay(likelihood="gaussian")
    with pytest.raises(ValueError, match=r"value: expected the loss.*value=loss"):
        tx.update(gradient(0), tx.init(PARAMS), PARAMS)


# What reads the state


def laplace(state, **kwargs):
    return l2m.laplace(PARAMS, state, **{"num_data": N, "batch_size": B, **kwargs})


def test_laplace_takes_moment_and_prior_from_the_state():
    origin = PRIOR_MEANS["another"]
    tx = optax.chain(decay(likelihood="gaussian", prior_mean=origin), optax.adam(1e-3))
    _, state = run(tx, 150)
    posterior = laplace(state)
    found = state[0]
    jax.tree.map(np.testing.assert_array_equal, posterior.prior_precision, found.prior_precision)
    jax.tree.map(np.testing.assert_array_equal, posterior.prior_mean, origin)
    assert posterior.second_moment.nu["head"]["bias"] is found.moment.nu["head"]["bias"]
    assert float(posterior.noise_variance) == float(found.noise_variance) != 1.0
    # The F of the search is this one, divided by the overcount.
    gamma = l2m.tuning.effective_parameters(oracle(posterior))
    np.testing.assert_allclose(gamma, sum(flat(found.effective_parameters)), rtol=1e-5)
    explicit = laplace(state, prior_precision=5.0, prior_mean=PARAMS)
    assert explicit.prior_precision == 5.0
    jax.tree.map(np.testing.assert_array_equal, explicit.prior_mean, PARAMS)
    moment = l2m.second_moment(state, PARAMS)
    assert float(laplace(moment).prior_precision) == 1.0


def plain(state):
    """Lists and dictionaries in place of the types, as some checkpoints have them."""
    if hasattr(state, "_asdict"):
        return plain(state._asdict())
    if isinstance(state, dict):
        return {name: plain(value) for name, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, tuple) else state


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_state_without_its_types_has_its_prior_and_noise(name):
    tx = optax.chain(decay(likelihood="gaussian", **STRUCTURES[name]), optax.adam(1e-3))
    _, state = run(tx, 120)
    posterior, expected = laplace(plain(state), tx=tx), laplace(state)
    jax.tree.map(np.testing.assert_array_equal, posterior, expected)
    x, y = jax.random.normal(jax.random.key(1), (N, 4)), jnp.ones((N, 3))
    fitted, _ = l2m.fit(
        network, PARAMS, plain(state), tx=tx, data=(x, y), batch_size=B, likelihood="gaussian"
    )
    jax.tree.map(np.testing.assert_array_equal, fitted.prior_precision, expected.prior_precision)


WRAPPERS = {
    "tx": lambda tx: tx,
    "exposed": l2m.expose_second_moment,
    "injected": lambda tx: optax.inject_hyperparams(lambda lr: optax.chain(tx, optax.sgd(lr)))(0.1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_it_is_read_through_wrappers_with_tx(name):
    tx = WRAPPERS[name](optax.chain(decay(), optax.adam(1e-3)))
    _, state = run(tx, 120)
    posterior = l2m.laplace(PARAMS, state, tx=tx, num_data=N, batch_size=B)
    _, plain = run(decay(), 120)
    np.testing.assert_allclose(flat(posterior.second_moment.nu), flat(plain.moment.nu), rtol=1e-5)
    np.testing.assert_allclose(
        flat(posterior.prior_precision), flat(plain.prior_precision), rtol=1e-5
    )


def test_each_leaf_without_products_is_overcounted():
    body = {"body": "diagonal", "head": "kronecker"}
    priors = {}
    for name, structure in {"none": "diagonal", "some": body, "all": "kronecker"}.items():
        # The moments are updated alike, and δ is sought in the same updates.
        every = {"every": 10} if name == "none" else {"every": 1}
        _, state = run(decay(structure=structure, decay=0.99, **every), 120)
        priors[name] = state.prior_precision
    np.testing.assert_allclose(flat(priors["some"]["body"]), flat(priors["none"]["body"]))
    np.testing.assert_allclose(flat(priors["some"]["head"]), flat(priors["all"]["head"]))
    assert flat(priors["all"]["body"])[0] > 1.05 * flat(priors["none"]["body"])[0]


@pytest.mark.parametrize("name", STRUCTURES)
def test_an_overcount_may_be_traced(name):
    """So that a study of overcounts compiles once."""

    @jax.jit
    def prior(overcount):
        tx = decay(decay=0.99, overcount=overcount, **STRUCTURES[name])
        return run(tx, 120)[1].prior_precision

    expected = run(decay(decay=0.99, overcount=3.0, **STRUCTURES[name]), 120)[1]
    np.testing.assert_allclose(flat(prior(3.0)), flat(expected.prior_precision), rtol=1e-5)


@pytest.mark.parametrize("name", STRUCTURES)
def test_accumulated_gradients_are_one_large_batch(name):
    k = 3
    alone = decay(batch_size=k * B, **STRUCTURES[name])
    tx = optax.MultiSteps(optax.chain(alone, optax.adam(1e-3)), k)

    _, state = run(tx, 120 * k)

    def step(number, state):
        grads = jax.vmap(gradient)(k * number + jnp.arange(k))
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        return alone.update(mean, state, PARAMS, value=0.7)[1]

    whole = jax.lax.fori_loop(0, 120, step, alone.init(PARAMS))
    posterior = laplace(state, tx=tx)
    np.testing.assert_allclose(
        flat(posterior.prior_precision), flat(whole.prior_precision), rtol=1e-4
    )
    overcount = 1.0 if STRUCTURES[name] else 10.0
    gamma = l2m.tuning.effective_parameters(oracle(posterior, overcount))
    np.testing.assert_allclose(gamma, sum(flat(whole.effective_parameters)), rtol=1e-4)


def test_the_prior_of_a_part_of_the_parameters_is_not_one_of_the_rest():
    tx = optax.masked(decay(), {"body": False, "head": True})
    _, state = run(optax.chain(tx, optax.adam(1e-3)), 3)
    moment = l2m.SecondMoment(jax.tree.map(jnp.ones_like, PARAMS))
    assert float(laplace(moment).prior_precision) == 1.0
    with pytest.raises(ValueError, match=r"prior_precision\['body'\].*pass prior_precision="):
        laplace(state, tx=optax.chain(tx, optax.adam(1e-3)))
    explicit = laplace(state, tx=optax.chain(tx, optax.adam(1e-3)), prior_precision=2.0)
    assert explicit.prior_precision == 2.0


def test_frozen_leaves_need_no_prior():
    """They are fixed: the prior of those that are trained is that of the state."""
    inner = optax.chain(decay(prior_mean={"head": ORIGIN["head"]}), optax.adam(1e-3))
    tx = optax.partition(
        {"trained": inner, "frozen": optax.set_to_zero()}, {"body": "frozen", "head": "trained"}
    )
    _, state = run(tx, 120)
    posterior = laplace(state, tx=tx)
    declared = state.inner_states["trained"].inner_state[0].prior_precision["head"]
    jax.tree.map(np.testing.assert_array_equal, posterior.prior_precision["head"], declared)
    assert posterior.second_moment.nu["body"]["kernel"] is None
    assert posterior.prior_precision["body"]["kernel"] == 1.0
    jax.tree.map(np.testing.assert_array_equal, posterior.prior_mean["head"], ORIGIN["head"])
    assert posterior.prior_mean["body"]["kernel"] is PARAMS["body"]["kernel"]


OTHER_NUMBERS = {
    "num_data": {"num_data": 2 * N},
    "batch_size": {"batch_size": 2 * B},
    "loss_scale": {"loss_scale": 2.0},
    "with_replacement": {"with_replacement": True, "num_data": 50},
}


@pytest.mark.parametrize("name", OTHER_NUMBERS)
def test_other_numbers_than_those_of_the_training_are_refused(name, converged):
    """The prior was found with an F that they make another."""
    state = converged
    if name == "with_replacement":
        state = run(decay(num_data=50), 110)[1]
    with pytest.raises(
        ValueError, match=r"num_data, .*those of evidence_weight_decay.*times.*second_"
    ):
        laplace(state, **OTHER_NUMBERS[name])
    traced = jax.jit(lambda state: laplace(state, **OTHER_NUMBERS[name]).data_scale)(state)
    assert np.isnan(traced)
    moment = l2m.second_moment(state, PARAMS)
    assert np.isfinite(laplace(moment, **OTHER_NUMBERS[name]).data_scale)
    same = {"num_data": 50} if name == "with_replacement" else {}
    assert np.isfinite(jax.jit(lambda state: laplace(state, **same).data_scale)(state))


def test_a_shorter_last_batch_is_as_good(converged):
    whole, rest = divmod(N, B)
    sizes = [B] * (whole - 1) + [B + rest - 1, 1]
    np.testing.assert_allclose(
        laplace(converged, batch_size=sizes).data_scale, laplace(converged).data_scale, rtol=0.1
    )


def test_a_training_that_goes_on_with_other_batches_has_their_scale(converged):
    _, state = run(decay(batch_size=2 * B), 10, state=converged)
    posterior = laplace(state, batch_size=2 * B)
    np.testing.assert_allclose(posterior.data_scale, state.data_scale, rtol=1e-6)
    gamma = l2m.tuning.effective_parameters(oracle(posterior))
    np.testing.assert_allclose(gamma, sum(flat(state.effective_parameters)), rtol=1e-5)
    with pytest.raises(ValueError, match="those of evidence_weight_decay"):
        laplace(state)


def test_a_training_checkpoint_gives_posterior_and_prior(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tx = optax.chain(decay(likelihood="gaussian"), optax.adam(1e-3))
    params, state = run(tx, 120, frozen=False)
    path = tmp_path / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, {"params": params, "opt_state": state})
    read = l2m.checkpoint.from_training_state(path, like=params, tx=tx, num_data=N, batch_size=B)
    posterior = l2m.laplace(params, state, num_data=N, batch_size=B)
    jax.tree.map(np.testing.assert_array_equal, read.prior_precision, posterior.prior_precision)
    assert float(read.noise_variance) == float(posterior.noise_variance)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_sharded_state_finds_the_same(name):
    """The moment lies as the parameters do; δ is on all devices."""
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    params = {"w": jax.random.normal(jax.random.key(0), (8, 4)), "b": jnp.ones(4)}
    specs = {"w": NamedSharding(mesh, P("x", None)), "b": NamedSharding(mesh, P())}
    sharded, tx = jax.device_put(params, specs), decay(**STRUCTURES[name])
    train = jax.jit(functools.partial(run_inside, tx, 150))
    alone, found = (train(p, tx.init(p)) for p in (params, sharded))
    np.testing.assert_allclose(flat(found.prior_precision), flat(alone.prior_precision), rtol=1e-5)
    assert found.moment.nu["w"].sharding.is_equivalent_to(specs["w"], 2)


def test_the_page_runs(capsys):
    page = run_blocks("docs/weight_decay.md")
    plt.close("all")
    capsys.readouterr()
    assert 0.0 < float(page["diagnosis"].nats_per_parameter) < 10.0
    found = page["found"]
    assert 0.01 < float(found.prior_precision["hidden"]["kernel"]) < 1e3
    jax.tree.map(
        np.testing.assert_array_equal, page["posterior"].prior_precision, found.prior_precision
    )
    residuals = np.linalg.lstsq(page["x"], page["noisy"], rcond=None)[1]
    unbiased = residuals / (len(page["x"]) - 10)
    np.testing.assert_allclose(page["regression"].noise_variance, unbiased[0], rtol=0.1)


def test_two_that_hold_a_prior_are_refused_and_the_remedy_works():
    labels = {"body": "one", "head": "two"}
    tx = optax.multi_transform({"one": decay(), "two": decay()}, labels)
    _, state = run(tx, 3)
    with pytest.raises(TypeError, match=r"one prior, got 2; pass second_moment\(opt_state, params"):
        laplace(state, tx=tx)
    moment = l2m.second_moment(state, PARAMS, tx=tx)
    assert float(laplace(moment, prior_precision=2.0).prior_precision) == 2.0


def test_a_tenth_of_the_data_is_left_for_the_noise():
    """More parameters than data: N - γ would be negative."""
    params, grads = {"w": jnp.full(50, 0.1)}, {"w": jnp.full(50, 3.0)}
    tx = decay(num_data=20, batch_size=2, likelihood="gaussian", overcount=1.0)
    state = repeated(tx, grads, params)
    assert float(state.effective_parameters["w"]) > 20
    np.testing.assert_allclose(state.noise_variance, 10 * 2 * 0.05, rtol=1e-3)


def test_a_first_loss_of_zero_says_nothing_of_the_noise():
    params, grads = {"w": jnp.full(50, 0.1)}, {"w": jnp.full(50, 3.0)}
    tx = decay(num_data=20, batch_size=2, likelihood="gaussian", overcount=1.0)
    before = tx.init(params)
    _, state = update(tx, grads, before, params, value=0.0)
    assert float(state.noise_variance) == float(before.noise_variance) > 0
    _, state = update(tx, grads, before, params, value=0.3)
    assert float(state.noise_variance) != float(before.noise_variance)
