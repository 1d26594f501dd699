"""One table of optimizers, one law: the moment read equals a hand-written mean of squares."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze
from flax.training.train_state import TrainState
from helpers import network_params

import l2m_optax as l2m

OPTIMIZERS = {
    "adam": (lambda: optax.adam(1e-3), 0.999),
    "adam b2": (lambda: optax.adam(1e-3, b2=0.95), 0.95),
    "adam long": (lambda: optax.adam(1e-3, b2=0.99999), 0.99999),
    "adamw": (lambda: optax.adamw(1e-3, weight_decay=0.1), 0.999),
    "nadam": (lambda: optax.nadam(1e-3), 0.999),
    "nadamw": (lambda: optax.nadamw(1e-3), 0.999),
    "radam": (lambda: optax.radam(1e-3), 0.999),
    "lamb": (lambda: optax.lamb(1e-3), 0.999),
    "amsgrad": (lambda: optax.amsgrad(1e-3), 0.999),
    "rmsprop": (lambda: optax.rmsprop(1e-3), 0.9),
    "rmsprop centered": (lambda: optax.rmsprop(1e-3, decay=0.8, centered=True), 0.8),
    "rmsprop bias_correction": (lambda: optax.rmsprop(1e-3, bias_correction=True), 0.9),
    "rmsprop both": (lambda: optax.rmsprop(1e-3, centered=True, bias_correction=True), 0.9),
    "tracked sgd": (lambda: optax.chain(l2m.track_second_moment(0.9), optax.sgd(0.1)), 0.9),
    "tracked lion": (lambda: optax.chain(l2m.track_second_moment(0.99), optax.lion(0.1)), 0.99),
}
WRAPPERS = {
    "bare": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.identity(), tx, optax.scale(0.5)),
    "named_chain": lambda tx: optax.named_chain(("first", optax.identity()), ("second", tx)),
    "injected": lambda tx: optax.inject_hyperparams(lambda lr: optax.chain(tx, optax.scale(lr)))(
        lr=0.1
    ),
    "exposed": l2m.expose_second_moment,
    "exposed inside": lambda tx: optax.chain(l2m.expose_second_moment(tx), optax.scale(0.5)),
}
NUM_STEPS = 12
by_type = pytest.mark.filterwarnings("ignore:.*cannot show whether they were clipped")


def gradients(params, steps=NUM_STEPS):
    rng = np.random.default_rng(3)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(1.0, 2.0, p.shape), p.dtype), params)
        for _ in range(steps)
    ]


def run(tx, params, grads):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for g in grads:
        _, state = update(g, state, params)
    return state


def hand_rolled(grads, decay):
    """Debiased EMA of squares, float64."""

    def mean(*leaves):
        weights = decay ** np.arange(len(leaves))[::-1]
        squares = [np.square(np.asarray(g, np.float64)) for g in leaves]
        return np.tensordot(weights / weights.sum(), np.stack(squares), axes=1)

    return jax.tree.map(mean, *grads)


@pytest.fixture(scope="module")
def run_params():
    return network_params(jax.random.key(0))


@pytest.fixture(scope="module")
def grads(run_params):
    return gradients(run_params)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_moment_is_the_mean_of_squares(optimizer, wrapper, run_params, grads):
    make, decay = OPTIMIZERS[optimizer]
    tx = WRAPPERS[wrapper](make())
    state = run(tx, run_params, grads)
    moment = l2m.second_moment(state, run_params, tx=tx, count=NUM_STEPS)
    expected = hand_rolled(grads, decay)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        l2m.moments.debiased(moment),
        expected,
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_exposing_changes_no_update_and_copies_nothing(optimizer, run_params, grads):
    tx = OPTIMIZERS[optimizer][0]()
    exposed = l2m.expose_second_moment(tx)
    state, exposed_state = tx.init(run_params), exposed.init(run_params)
    for g in grads:
        updates, state = tx.update(g, state, run_params)
        exposed_updates, exposed_state = exposed.update(g, exposed_state, run_params)
        jax.tree.map(np.testing.assert_array_equal, updates, exposed_updates)
    expected = hand_rolled(grads, OPTIMIZERS[optimizer][1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), exposed_state.nu, expected
    )
    arrays = jax.tree.leaves(exposed_state)
    assert len(arrays) == len(jax.tree.leaves(state)) + 1  # the count, and no second copy


@by_type
def test_reading_needs_no_tx_where_the_caller_says_the_decay(run_params, grads):
    state = run(optax.adam(1e-3, b2=0.95), run_params, grads)
    moment = l2m.second_moment(state, decay=0.95)
    expected = hand_rolled(grads, 0.95)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        l2m.moments.debiased(moment),
        expected,
    )


@by_type
def test_injected_hyperparams_hold_the_decay(run_params, grads):
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3, b2=0.95)
    moment = l2m.second_moment(run(tx, run_params, grads))
    np.testing.assert_allclose(moment.decay, 0.95, rtol=1e-6)
    expected = hand_rolled(grads, 0.95)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        l2m.moments.debiased(moment),
        expected,
    )


@by_type
def test_train_state_and_frozen_dicts_are_read(run_params, grads):
    state = TrainState.create(apply_fn=None, params=run_params, tx=optax.adam(1e-3, b2=0.9))
    for g in grads:
        state = state.apply_gradients(grads=g)
    moment = l2m.second_moment(state.opt_state, freeze(state.params), decay=0.9)
    expected = freeze(hand_rolled(grads, 0.9))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        l2m.moments.debiased(moment),
        expected,
    )


@by_type
def test_long_training_needs_no_decay(run_params):
    state = optax.tree_utils.tree_set(optax.amsgrad(1e-3).init(run_params), count=jnp.int32(5000))
    assert float(l2m.second_moment(state).weight) == 1.0


@by_type
@pytest.mark.parametrize("name", ["adam", "adamax", "adamaxw", "yogi", "adopt"])
def test_a_type_that_many_share_is_refused_however_long_it_trained(name, run_params):
    tx = getattr(optax, name, None) or getattr(optax.contrib, name)
    for state in (
        tx(1e-3).init(run_params),
        optax.inject_hyperparams(tx)(learning_rate=1e-3).init(run_params),
    ):
        trained = jax.tree.map(lambda x: jnp.int32(5000) if x.dtype == jnp.int32 else x, state)
        if name == "adam" and hasattr(state, "hyperparams"):
            assert float(l2m.second_moment(trained).decay) == np.float32(0.999)
            continue
        with pytest.raises(TypeError, match=r"adamax, yogi and adopt keep .*pass tx="):
            l2m.second_moment(trained)
        assert l2m.second_moment(trained, decay=0.999).decay == 0.999


def test_scale_by_yogi_is_not_taken_for_adam(run_params, grads):
    state = run(optax.inject_hyperparams(optax.scale_by_yogi)(b2=0.9), run_params, grads)
    with pytest.raises(TypeError, match="pass tx="):
        l2m.second_moment(state)


def test_a_scheduled_decay_is_not_read_off_the_hyperparameters(run_params, grads):
    schedule = optax.linear_schedule(0.9, 0.99, 10)
    tx = optax.inject_hyperparams(optax.amsgrad)(1e-3, b2=schedule)
    with pytest.raises(ValueError, match="expected the decay"):
        l2m.second_moment(run(tx, run_params, grads))


def test_bias_is_undone_without_cancellation():
    tx = optax.adam(1e-3, b2=0.9999999)
    params = jnp.ones(2)
    _, state = tx.update(jnp.array([1.0, 3.0]), tx.init(params), params)
    nu = l2m.moments.debiased(l2m.second_moment(state, tx=tx))
    # float32 holds 1 - b2 = 1e-7 to 6%; what optax multiplied by is what must be divided by.
    np.testing.assert_allclose(nu[1] / nu[0], 9.0, rtol=1e-6)
    np.testing.assert_allclose(nu[0], 1.0, rtol=1e-5)


@by_type
@pytest.mark.parametrize("decay", [0.5, 0.95, 0.999])
def test_a_traced_decay_undoes_the_same_bias(decay, run_params, grads):
    state = run(optax.adam(1e-3, b2=decay), run_params, grads)
    moment = jax.jit(lambda state, decay: l2m.second_moment(state, decay=decay))(state, decay)
    expected = 1 - np.float64(np.float32(decay)) ** NUM_STEPS
    np.testing.assert_allclose(moment.weight, expected, rtol=1e-6)


def test_mean_decay_is_measured(run_params):
    tx = optax.adam(1e-3, b1=0.8)
    state = run(tx, run_params, gradients(run_params, 3))
    np.testing.assert_allclose(l2m.second_moment(state, tx=tx).mu_decay, 0.8, rtol=1e-6)


def test_tracking_keeps_float32_for_low_precision_params():
    params = jnp.ones(3, jnp.bfloat16)
    tx = l2m.track_second_moment(0.999)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(300):
        updates, state = update(jnp.full(3, 0.125, jnp.bfloat16), state)
    assert state.nu.dtype == jnp.float32
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.nu, 0.125**2, rtol=1e-5)


def test_tracking_first_sees_gradients_before_clipping(run_params, grads):
    tx = optax.chain(l2m.track_second_moment(0.9), optax.clip(1e-3), optax.sgd(0.1))
    state = run(tx, run_params, grads)
    expected = hand_rolled(grads, 0.9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state[0].nu, expected)
