"""What goes wrong in ordinary training loops: `fit` corrects the size of F and says so."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network, network_params

import l2m_optax as l2m

NUM = 321  # ten batches of 32, and one of a single example
POSITIONS = 6


class Trained(NamedTuple):
    """What a person holds after training, and says to `fit`."""

    params: Any
    opt_state: Any
    tx: optax.GradientTransformation
    said: dict[str, Any]


def tokens(params, x):
    """Logits at each position of a sequence, shape (n, 6, 3)."""
    return network(params, x)


def mean_loss(params, x, y):
    return -jnp.mean(l2m.likelihoods.categorical(network(params, x), y))


@pytest.fixture(scope="module")
def data():
    """Labels that cannot be predicted for certain, so that nothing is interpolated."""
    x = jax.random.normal(jax.random.key(0), (NUM, 4))
    logits = network(jax.tree.map(lambda w: 1.5 * w, network_params(jax.random.key(1))), x)
    return np.asarray(x), np.asarray(jax.random.categorical(jax.random.key(2), logits))


@pytest.fixture(scope="module")
def sequences():
    x = jax.random.normal(jax.random.key(3), (100, POSITIONS, 4))
    logits = network(network_params(jax.random.key(1)), x)
    return np.asarray(x), np.asarray(jax.random.categorical(jax.random.key(4), logits))


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(tx, loss, params, state, x, y):
    updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


def shuffled(number, batch_size, epochs, *, ragged=False, seed=0):
    """Rows of each batch, anew in every epoch; the last smaller one is dropped unless `ragged`."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(number)
        for i in range(0, number, batch_size):
            if ragged or i + batch_size <= number:
                yield order[i : i + batch_size]


def run(tx, loss, batches, x, y, start=None):
    params, state = start or (network_params(jax.random.key(5)), None)
    state = tx.init(params) if state is None else state
    for rows in batches:
        params, state = step(tx, loss, params, state, x[rows], y[rows])
    return params, state


ADAM = optax.adam(1e-2)


def ragged(x, y):
    after = run(ADAM, mean_loss, shuffled(NUM, 32, 40, ragged=True), x, y)
    return Trained(*after, ADAM, {"batch_size": 32})


def changed(x, y):
    before = run(ADAM, mean_loss, shuffled(NUM, 32, 30), x, y)
    after = run(ADAM, mean_loss, shuffled(NUM, 128, 30), x, y, before)
    return Trained(*after, ADAM, {"batch_size": 128})


def accumulated(x, y):
    tx = optax.MultiSteps(optax.adam(1e-2), 2)
    after = run(tx, mean_loss, shuffled(NUM, 16, 60), x, y)
    return Trained(*after, tx, {"batch_size": 16})


def stopped_early(x, y):
    best = run(ADAM, mean_loss, shuffled(NUM, 32, 20), x, y)
    _, state = run(ADAM, mean_loss, shuffled(NUM, 32, 100, seed=1), x, y, best)
    return Trained(best[0], state, ADAM, {"batch_size": 32})


def restarted(x, y):
    """Twenty steps at a rate 30 times as large, which the mean still remembers."""
    tx = optax.adam(lambda count: jnp.where((count >= 400) & (count < 420), 0.3, 1e-2))
    return Trained(*run(tx, mean_loss, shuffled(NUM, 32, 45), x, y), tx, {"batch_size": 32})


def summed(params, x, y):
    return len(y) * mean_loss(params, x, y)


def forgotten_scale(x, y):
    after = run(ADAM, summed, shuffled(NUM, 32, 40), x, y)
    return Trained(*after, ADAM, {"batch_size": 32})


def clipped(params, x, y):
    """A loss whose gradient has a norm of 0.05 at most, as if the loop had clipped it."""
    return jnp.vdot(
        _ravel(params),
        _ravel(
            optax.clip_by_global_norm(0.05).update(
                jax.grad(mean_loss)(jax.lax.stop_gradient(params), x, y), optax.EmptyState()
            )[0]
        ),
    )


def _ravel(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def clipped_outside(x, y):
    after = run(ADAM, clipped, shuffled(NUM, 32, 60), x, y)
    return Trained(*after, ADAM, {"batch_size": 32})


def clipped_in_the_chain(x, y):
    """What stands behind the clipping is passed, as the refusal of the whole chain advises."""
    adam = optax.adam(1e-2)
    tx = optax.chain(optax.clip_by_global_norm(0.05), adam)
    params, state = run(tx, mean_loss, shuffled(NUM, 32, 60), x, y)
    with pytest.raises(TypeError, match=r"opt_state\[1\], and tx=adam"):
        l2m.second_moment(state, params, tx=tx)
    return Trained(params, state[1], adam, {"batch_size": 32})


def exact(params, x, y, num_data):
    """The total of the empirical Fisher by single gradients."""

    def loss(params, x, y):
        return mean_loss(params, x[None], y[None])

    gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, y)
    return num_data / len(y) * sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradients))


def total(posterior):
    return sum(float(jnp.sum(f)) for f in jax.tree.leaves(l2m.posterior.data_precision(posterior)))


TRAPS = {
    "a last batch of one": (ragged, 1.5, None),
    "32 then 128": (changed, None, None),
    "MultiSteps": (accumulated, None, None),
    "early stopping": (stopped_early, None, None),
    "a restart of the learning rate": (restarted, 1.5, None),
    "loss scale forgotten": (forgotten_scale, 500, "loss_scale"),
    "clipped in the loop": (clipped_outside, None, "clipped"),
    "clipped in the chain": (clipped_in_the_chain, None, "clipped"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_after_the_check_f_has_the_right_size(trap, data):
    train, at_least, said = TRAPS[trap]
    trained = train(*data)
    posterior, report = l2m.fit(
        network, trained.params, trained.opt_state, tx=trained.tx, data=data, **trained.said
    )
    assert 0.75 < total(posterior) / exact(trained.params, *data, NUM) < 1.33
    assert at_least is None or float(report.scale.ratio) > at_least
    assert said is None or any(said in text for text in report.warnings)
    assert f"{float(report.scale.ratio):.2g} times" in str(report)


def test_tokens_are_counted(sequences):
    """A loader of batches of sequences: every position is an observation."""
    x, y = sequences
    params, state = run(ADAM, mean_loss, shuffled(100, 10, 40), x, y)
    posterior, report = l2m.fit(
        tokens, params, state, tx=ADAM, data=[(x[:60], y[:60]), (x[60:], y[60:])], batch_size=10
    )
    assert float(posterior.num_data) == 600
    assert 0.3 < float(report.scale.ratio) < 3.0
    flat = x.reshape(-1, 4), y.ravel()
    assert 0.75 < total(posterior) / exact(params, *flat, 600) < 1.33
