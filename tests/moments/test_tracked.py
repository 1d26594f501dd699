"""A moment that the state declares comes first, whatever else the state holds."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_second_moment import gradients, hand_rolled, run

import l2m_optax as l2m

PARAMS = {"w": jnp.ones((3, 2)), "nu": jnp.ones(2), "s": jnp.ones(())}
GRADS = gradients(PARAMS)
DECAY, COUNT = 0.9, len(GRADS)


def tracked(*others):
    return optax.chain(l2m.track_second_moment(DECAY), *others)


CHAINS = {
    "tracked before adam": lambda: tracked(optax.adam(1e-3)),
    "tracked before clipping": lambda: tracked(optax.clip(1e-3), optax.adam(1e-3)),
    "tracked before adamax": lambda: tracked(optax.adamax(1e-3)),
    "tracked before two": lambda: tracked(optax.scale_by_adam(), optax.scale_by_rms()),
    "tracked before what cannot be read": lambda: tracked(optax.novograd(1e-3)),
    "tracked, injected": lambda: optax.inject_hyperparams(
        lambda lr: tracked(optax.adam(lr), optax.add_decayed_weights(0.1))
    )(lr=0.1),
    "exposed before adam": lambda: optax.chain(
        l2m.expose_second_moment(optax.scale_by_adam(b2=DECAY)), optax.scale_by_rms()
    ),
    "exposed with a tracked one inside": lambda: l2m.expose_second_moment(
        tracked(optax.adam(1e-3))
    ),
}


def check(moment, grads=GRADS, count=COUNT):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5),
        l2m.moments.debiased(moment),
        hand_rolled(grads, DECAY),
    )
    np.testing.assert_allclose(moment.decay, DECAY, rtol=1e-6)
    assert int(moment.count) == count


@pytest.mark.parametrize("chain", CHAINS)
def test_the_tracked_moment_is_the_one_that_is_read(chain):
    tx = CHAINS[chain]()
    state = run(tx, PARAMS, GRADS)
    check(l2m.second_moment(state, PARAMS))
    check(l2m.second_moment(state, PARAMS, tx=tx))


@pytest.mark.parametrize(
    "params",
    [
        jnp.ones(3),
        jnp.ones(()),
        [jnp.ones(2), (jnp.ones(2),)],
        {"it's": jnp.ones(2), 'a"]b': jnp.ones(3), "value": jnp.ones(4)},
        {3: jnp.ones(2), 10: [jnp.ones(2)]},
    ],
    ids=["array", "scalar", "list", "odd keys", "integer keys"],
)
def test_trees_of_any_structure(params):
    grads = gradients(params)
    tx = tracked(optax.adam(1e-3))
    check(l2m.second_moment(run(tx, params, grads), params, tx=tx), grads)


def test_a_state_without_its_types_is_read_by_tx():
    tx = tracked(optax.adam(1e-3))
    state = run(tx, PARAMS, GRADS)
    plain = [state[0]._asdict(), [state[1][0]._asdict(), {}]]
    moment = l2m.second_moment(plain, PARAMS, tx=tx)
    expected = hand_rolled(GRADS, DECAY)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5),
        l2m.moments.debiased(moment),
        expected,
    )
    assert int(moment.count) == COUNT


def test_clipping_before_the_tracked_moment_is_seen_by_tx():
    tx = optax.chain(optax.clip(1.0), l2m.track_second_moment(0.9), optax.adam(1e-3))
    with pytest.raises(TypeError, match="clipped when they are large"):
        l2m.second_moment(run(tx, PARAMS, GRADS), PARAMS, tx=tx)


def test_what_is_scaled_before_the_tracked_moment_is_undone_or_refused():
    tx = optax.chain(optax.scale(1 / 8), l2m.track_second_moment(0.9), optax.adam(1e-3))
    try:
        moment = l2m.second_moment(run(tx, PARAMS, GRADS), PARAMS, tx=tx)
    except TypeError as error:
        assert "; chain l2m_optax.track_second_moment(0.999) in front" in str(error)
    else:
        check(moment)


TWICE = {
    "tracked": lambda: tracked(l2m.track_second_moment(0.99), optax.adam(1e-3)),
    "tracked and exposed": lambda: tracked(l2m.expose_second_moment(optax.adam(1e-3))),
}


@pytest.mark.parametrize("chain", TWICE)
def test_two_that_are_tracked_are_refused(chain):
    tx = TWICE[chain]()
    state = run(tx, PARAMS, GRADS)
    message = r"opt_state: expected one second moment, got 2: opt_state\[0\], opt_state\[1\]; pass"
    for given in ({}, {"tx": tx}):
        with pytest.raises(TypeError, match=message) as caught:
            l2m.second_moment(state, PARAMS, **given)
        assert "track_second_moment" not in str(caught.value)


def test_parts_with_a_moment_each():
    """One tracked in each part; one in a single part beside an ordinary moment in the other."""
    params, labels = {"a": jnp.ones(2), "b": jnp.ones(3)}, {"a": "one", "b": "two"}
    grads = gradients(params)
    for other in (tracked(optax.sgd(1e-3)), optax.adam(1e-3, b2=DECAY)):
        tx = optax.multi_transform({"one": tracked(optax.adam(1e-3)), "two": other}, labels)
        moment = l2m.second_moment(run(tx, params, grads), params, tx=tx)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5),
            l2m.moments.debiased(moment),
            hand_rolled(grads, DECAY),
        )


K = 3


@pytest.mark.parametrize("inner", [(optax.adam(1e-3),), (optax.sgd(0.1),)], ids=["adam", "sgd"])
def test_accumulated_gradients_are_taken_into_account(inner):
    """Batches of B averaged over k micro-steps are batches of k·B."""
    inside, outside = tracked(*inner), optax.MultiSteps(tracked(*inner), K)
    assert COUNT % K == 0
    means = [jax.tree.map(lambda *g: sum(g) / K, *GRADS[i : i + K]) for i in range(0, COUNT, K)]
    state = run(outside, PARAMS, GRADS)
    moment = l2m.second_moment(state, PARAMS, tx=outside)
    check(moment, means, COUNT // K)
    assert moment.micro_steps == K
    built = l2m.laplace(PARAMS, state, tx=outside, num_data=1000, batch_size=10)
    whole = l2m.laplace(
        PARAMS, run(inside, PARAMS, means), tx=inside, num_data=1000, batch_size=10 * K
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5),
        l2m.posterior.data_precision(built),
        l2m.posterior.data_precision(whole),
    )
    with pytest.raises(TypeError, match=r"MultiStepsState.*; pass tx="):
        l2m.second_moment(state, PARAMS)
    with pytest.raises(TypeError, match=r"MultiStepsState.*; pass tx="):
        l2m.second_moment(state, PARAMS, decay=0.9)
    assert int(l2m.second_moment(state.inner_opt_state, PARAMS).count) == COUNT // K


class Own(NamedTuple):
    """A state of the user's own."""

    mean: dict

    def read_second_moment(self):
        return l2m.SecondMoment(self.mean, count=5, decay=DECAY)


def own():
    def init(params):
        return Own(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        return updates, Own(
            jax.tree.map(lambda n, g: DECAY * n + (1 - DECAY) * g * g, state.mean, updates)
        )

    return optax.GradientTransformation(init, update)


def test_any_state_that_declares_its_moment():
    state = run(optax.chain(own(), optax.adam(1e-3)), PARAMS, GRADS)
    assert l2m.second_moment(state, PARAMS).nu is not None
    assert float(l2m.second_moment(state).decay) == DECAY
    held = (l2m.SecondMoment(nu=PARAMS, count=3, decay=0.5), optax.adam(1e-3).init(PARAMS))
    assert l2m.second_moment(held, PARAMS).decay == 0.5


LAPLACE = {
    "adam": lambda: optax.adam(1e-3, b2=DECAY),
    "rmsprop, exposed": lambda: l2m.expose_second_moment(optax.rmsprop(1e-3, decay=DECAY)),
    "tracked": lambda: tracked(optax.adam(1e-3)),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-3), K),
}


@pytest.mark.parametrize("name", LAPLACE)
def test_laplace_takes_the_state_and_tx(name):
    tx = LAPLACE[name]()
    state = run(tx, PARAMS, GRADS)
    short = l2m.laplace(PARAMS, state, tx=tx, num_data=1000, batch_size=10)
    moment = l2m.second_moment(state, PARAMS, tx=tx)
    long = l2m.laplace(PARAMS, moment, num_data=1000, batch_size=10)
    jax.tree.map(np.testing.assert_array_equal, l2m.variance(short), l2m.variance(long))


def test_laplace_takes_the_fast_weights_of_lookahead():
    tx = optax.lookahead(optax.adam(1e-3, b2=DECAY), 5, 0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    state = tx.init(params)
    for g in GRADS:
        _, state = tx.update(g, state, params)
    posterior = l2m.laplace(params, state, tx=tx, num_data=1000, batch_size=10)
    assert posterior.mean is params.fast


def test_plain_adam_without_tx_is_asked_for_tx():
    state = run(optax.adam(1e-3), PARAMS, GRADS)
    with pytest.raises(TypeError, match=r"; pass tx=, the optimizer, to laplace") as caught:
        l2m.laplace(PARAMS, state, num_data=1000, batch_size=10)
    assert "got ScaleByAdamState" in str(caught.value)


def test_what_a_type_cannot_show_is_warned_of_once():
    state = run(optax.adam(1e-3), PARAMS, GRADS)
    with pytest.warns(UserWarning, match="clipped, .*pass tx=") as caught:
        l2m.second_moment(state, PARAMS, decay=0.999)
    assert len(caught) == 1


def test_diagnose_knows_the_window_of_a_tracked_moment():
    tx = l2m.track_second_moment(0.999)
    state = run(optax.chain(tx, optax.adam(1e-3)), PARAMS, GRADS)
    chain = optax.chain(tx, optax.adam(1e-3))
    posterior = l2m.laplace(PARAMS, state, tx=chain, num_data=1000, batch_size=10)
    assert any("of the 1999 updates" in text for text in l2m.diagnose(posterior).warnings())


def test_a_chain_that_tracks_is_run_once():
    runs = []

    def update(updates, state, params=None):
        runs.append(1)
        return updates, state

    counted = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    tx = optax.chain(l2m.track_second_moment(0.9), counted, optax.adam(1e-3))
    params = {"w": jnp.ones((3, 2))}
    _, state = tx.update({"w": jnp.full((3, 2), 2.0)}, tx.init(params), params)
    first = l2m.second_moment(state, params, tx=tx)
    number = len(runs)
    again = l2m.second_moment(state, params, tx=tx)
    assert len(runs) == number
    assert again.decay == first.decay
