"""The main path under settings of JAX that users switch on: nothing is promoted, nothing is NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import network_params

import l2m_optax as l2m

N, B, KEY = 60, 6, jax.random.key(0)
MODES = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "NaN": lambda: jax.debug_nans(True),
    "float64": lambda: (jax.enable_x64 if hasattr(jax, "enable_x64") else enable_x64)(True),
}
OF_CLASSES = {"structure": "kronecker", "every": 1}
OF_NUMBERS = {"likelihood": "gaussian", "loss_scale": 2.0}


def enable_x64(on):
    return jax.experimental.enable_x64(on)


def network(params, x):
    """With biases of the rank of what they are added to."""
    for name, activate in (("body", jnp.tanh), ("head", lambda h: h)):
        x = activate(x @ params[name]["kernel"] + params[name]["bias"][None, :])
    return x


def of_classes(params, x, y):
    return -l2m.likelihoods.categorical(network(params, x), y).mean()


def of_numbers(params, x, y):
    return jnp.mean(jnp.square(network(params, x) - y))


def trained(loss, data, **kwargs):
    """The parameters and the state after two searches of the evidence."""
    decay = l2m.evidence_weight_decay(num_data=N, batch_size=B, **kwargs)
    tx, params = optax.chain(decay, optax.adam(1e-2)), network_params(KEY)

    def step(carry, start):
        params, state = carry
        rows = (jax.lax.dynamic_slice_in_dim(leaf, start, B) for leaf in data)
        value, grads = jax.value_and_grad(loss)(params, *rows)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), None

    starts = jnp.arange(110) * B % N
    return jax.jit(lambda carry: jax.lax.scan(step, carry, starts)[0])((params, tx.init(params)))


@pytest.fixture(params=MODES)
def mode(request):
    with MODES[request.param]():
        yield


def data_of(targets):
    x = np.random.default_rng(0).normal(size=(N, 4))
    return jnp.asarray(x, jnp.float32), jnp.asarray(targets(x))


def test_classes(mode):
    x, y = data_of(lambda x: (x[:, 0] > 0).astype(int) + (x[:, 1] > 1))
    params, state = trained(of_classes, (x, y), **OF_CLASSES)
    made = {"data": (x, y), "batch_size": B}
    posterior, report = l2m.fit(network, params, state, **made, validation=(x + 0.1, y))
    assert str(report)
    found = [
        l2m.fit(network, params, state, **made)[0],
        l2m.fit_prior_precision(posterior).posterior,
        l2m.sample(KEY, posterior, 2),
        l2m.variance(posterior),
        l2m.classify(network, posterior, x),
        l2m.linearized(KEY, network, posterior, x, num_samples=2),
        l2m.monte_carlo(KEY, network, posterior, x, num_samples=2),
        l2m.decisions.novelty(network, posterior, x),
    ]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_numbers(mode):
    x, y = data_of(lambda x: np.sin(x[:, :3]).astype(np.float32))
    params, state = trained(of_numbers, (x, y), **OF_NUMBERS)
    posterior = l2m.laplace(params, state, num_data=N, batch_size=B, loss_scale=2.0)
    made = {"data": (x, y), "batch_size": B, "likelihood": "gaussian", "loss_scale": 2.0}
    found = [
        l2m.fit(network, params, state, **made)[0],
        l2m.fit_noise_variance(network, posterior, x, y).posterior,
        l2m.tuning.calibrate_noise(network, posterior, x, y).posterior,
        l2m.tune(network, posterior, x, y, num_samples=2).posterior,
        l2m.regress(network, posterior, x),
        l2m.output_variance(network, posterior, x),
    ]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
