"""Wrappers, containers and dtypes that real training has around an optimizer, one by one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from optax import contrib
from test_identify_optimizers import (
    NUM_STEPS,
    PARAMS,
    RATE,
    assert_close,
    averaged,
    gradients,
    mean_of_squares,
    run,
)

import l2m_optax as l2m

BODY = {"body": True, "scale": False}
SCALE = {"body": False, "scale": True}
SOMETIMES = {
    "every second": lambda step, **_: step % 2 == 0,
    "first 500": lambda step, **_: step < 500,
    "never": lambda step, **_: step < 0,
}


def without_body(moment):
    return {"body": {"bias": None, "kernel": None}, "scale": moment["scale"]}


def read(tx, grads, params=PARAMS):
    return l2m.second_moment(run(tx, params, grads), params, tx=tx)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_stateful_hyperparameters():
    tx = optax.inject_stateful_hyperparams(optax.adam)(RATE, b2=0.95)
    grads = gradients()
    assert_close(read(tx, grads), mean_of_squares(grads, 0.95))
    with pytest.warns(UserWarning, match="pass tx=, which shows it"):
        moment = l2m.second_moment(run(tx, PARAMS, grads))
    assert_close(moment, mean_of_squares(grads, 0.95))


def test_micro_steps_that_are_not_finite_are_skipped():
    tx = optax.MultiSteps(optax.adam(RATE), 2, should_skip_update_fn=optax.skip_not_finite)
    grads = gradients()
    bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads[0])
    state = run(tx, PARAMS, [*grads[:3], bad, *grads[3:]])
    moment = l2m.second_moment(state, PARAMS, tx=tx)
    assert moment.micro_steps == 2
    assert int(moment.count) == NUM_STEPS // 2
    assert_close(moment, mean_of_squares(averaged(grads, 2), 0.999))


def test_skipping_large_gradients_is_refused():
    def skip(*args):
        return optax.skip_large_updates(*args, max_squared_norm=1e3)

    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(optax.MultiSteps(optax.adam(RATE), 2, should_skip_update_fn=skip), PARAMS)


def test_nan_that_apply_if_finite_let_through_is_found():
    tx, grads = optax.apply_if_finite(optax.adam(RATE), 1), gradients()
    bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads[0])
    moment = read(tx, [*grads, bad, bad, bad])
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        l2m.laplace(PARAMS, moment, num_data=100, batch_size=10)


@pytest.mark.parametrize("wrap", [optax.conditionally_transform, optax.conditionally_mask])
def test_a_condition_that_always_holds_changes_nothing(wrap):
    tx, grads = wrap(optax.adam(RATE), lambda step, **_: step >= 0), gradients()
    assert_close(read(tx, grads), mean_of_squares(grads, 0.999))


@pytest.mark.parametrize("condition", SOMETIMES)
@pytest.mark.parametrize("wrap", [optax.conditionally_transform, optax.conditionally_mask])
def test_a_condition_that_holds_sometimes_is_refused(wrap, condition):
    with pytest.raises(TypeError, match="track_second_moment"):
        l2m.identify(wrap(optax.adam(RATE), SOMETIMES[condition]), PARAMS)


@pytest.mark.skipif(not hasattr(optax, "freeze"), reason="older optax has none")
def test_frozen_before_is_fixed_and_frozen_behind_is_free():
    grads = gradients()
    expected = mean_of_squares(grads, 0.999)
    adam = optax.adam(RATE)
    assert_close(read(optax.chain(optax.freeze(BODY), adam), grads), without_body(expected))
    assert_close(
        read(optax.selective_transform(adam, freeze_mask=BODY), grads), without_body(expected)
    )
    assert_close(read(optax.chain(adam, optax.freeze(BODY)), grads), expected)


def test_complementary_masks_need_tx():
    tx = optax.chain(
        optax.masked(optax.adam(RATE), BODY), optax.masked(optax.rmsprop(RATE, decay=0.99), SCALE)
    )
    grads = gradients()
    expected = {
        "body": mean_of_squares(grads, 0.999)["body"],
        "scale": mean_of_squares(grads, 0.99)["scale"],
    }
    state = run(tx, PARAMS, grads)
    assert_close(l2m.second_moment(state, PARAMS, tx=tx, count=NUM_STEPS), expected)
    with pytest.raises(TypeError, match=r"got 2: .*; pass tx="):
        l2m.second_moment(state, PARAMS)


def test_masked_leaves_need_tx():
    tx, grads = optax.masked(optax.adam(RATE), SCALE), gradients()
    expected = without_body(mean_of_squares(grads, 0.999))
    state = run(tx, PARAMS, grads)
    assert_close(l2m.second_moment(state, PARAMS, tx=tx), expected)
    for params in (PARAMS, None):
        with pytest.raises(TypeError, match=r"2 masked out; pass tx=|1 masked out; pass tx="):
            l2m.second_moment(state, params, decay=0.999)


def test_equinox_parameters_with_none_leaves():
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    assert None in jax.tree.leaves(params, is_leaf=lambda leaf: leaf is None)
    tx, grads = optax.adam(RATE), gradients(params)
    expected = mean_of_squares(grads, 0.999)
    moment = read(tx, grads, params)
    assert_close(moment, expected)
    exposed = run(l2m.expose_second_moment(tx), params, grads)
    assert_close(exposed.read_second_moment(), expected)
    posterior = l2m.laplace(params, moment, num_data=100, batch_size=10)
    assert jax.tree.structure(l2m.variance(posterior)) == jax.tree.structure(params)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_is_said_and_tracking_is_right(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    grads = [jax.tree.map(lambda g: g * dtype(0.125), g) for g in gradients(params)]
    tx = optax.adam(RATE)
    with pytest.warns(UserWarning, match=jnp.dtype(dtype).name):
        read(tx, grads, params)
    tracked = optax.chain(l2m.track_second_moment(0.999), tx)
    state = run(tracked, params, grads)
    assert_close(l2m.second_moment(state[0], params), mean_of_squares(grads, 0.999))


def test_a_moment_that_underflowed_is_refused():
    params = jax.tree.map(lambda p: p.astype(jnp.float16), PARAMS)
    grads = [jax.tree.map(lambda g: g * jnp.float16(1e-4), g) for g in gradients(params)]
    with pytest.warns(UserWarning, match="float16"):
        moment = read(optax.adam(RATE), grads, params)
    with pytest.raises(ValueError, match="it underflowed: keep the moment in float32"):
        l2m.laplace(params, moment, num_data=100, batch_size=10)


def test_an_ensemble_of_exposed_optimizers():
    params = jax.tree.map(lambda p: jnp.stack([p] * 3), PARAMS)
    tx, grads = l2m.expose_second_moment(optax.rmsprop(RATE)), gradients(params)
    state = jax.vmap(tx.init)(params)
    for g in grads:
        _, state = jax.vmap(tx.update)(g, state, params)
    assert state.count.shape == (3,)
    assert_close(state.read_second_moment(), mean_of_squares(grads, 0.9))


def test_abstract_states_have_the_structure_of_real_ones():
    tx, grads = l2m.expose_second_moment(optax.adam(RATE)), gradients()
    abstract = jax.eval_shape(tx.init, PARAMS)
    assert jax.tree.structure(abstract) == jax.tree.structure(run(tx, PARAMS, grads))
    shapes = jax.eval_shape(lambda s: l2m.moments.debiased(s.read_second_moment()), abstract)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.parametrize("wrap", [contrib.split_real_and_imaginary, optax.zero_nans])
def test_wrappers_for_odd_numbers(wrap):
    adam, grads = optax.adam(RATE), gradients()
    tx = optax.chain(wrap(), adam) if wrap is optax.zero_nans else wrap(adam)
    assert_close(read(tx, grads), mean_of_squares(grads, 0.999))


def test_a_parameter_called_nu():
    params = {"nu": {"w": jnp.ones(3)}, "count": jnp.ones(2)}
    grads = gradients(params)
    assert_close(read(optax.adam(RATE), grads, params), mean_of_squares(grads, 0.999))
