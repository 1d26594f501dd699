"""What many tests share: one conjugate linear regression, one small network, one posterior."""

import os
from pathlib import Path
from typing import NamedTuple

# Before jax is imported: eight devices, for the tests of sharding; the others use the first. Most
# of the tests' time is compilation: LLVM need not do its best for what runs once, and workers,
# subprocesses and later runs share what was compiled.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1",
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2m_optax as l2m


class Regression(NamedTuple):
    """y = X w + noise, for which the Hessian of the negative log-likelihood is known."""

    x: jax.Array
    y: jax.Array
    noise_variance: float

    @property
    def hessian_diagonal(self):
        return np.sum(np.square(np.asarray(self.x, np.float64)), axis=0) / self.noise_variance


@pytest.fixture(scope="session")
def regression():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.0, 1.0, (2000, 10)) * np.linspace(0.5, 3.0, 10)
    y = x @ rng.normal(size=10) + 0.5 * rng.normal(size=2000)
    return Regression(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), 0.25)


def train_linear(tx, data, loss, *, batch_size, steps, seed):
    """Train `w` on shuffled epochs; returns the parameters and the state."""
    num_data = len(data.y)
    per_epoch = num_data // batch_size

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(lambda p: loss(data.y[batch] - data.x[batch] @ p["w"]))(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    epochs = np.tile(np.arange(num_data), (steps // per_epoch, 1))
    orders = np.random.default_rng(seed).permuted(epochs, axis=1)[:, : per_epoch * batch_size]
    params = {"w": jnp.zeros(data.x.shape[1])}
    (params, state), _ = jax.jit(lambda *args: jax.lax.scan(step, *args))(
        (params, tx.init(params)), orders.reshape(-1, batch_size)
    )
    return params, state


def network(params, x):
    """A small network with two leaves a layer."""
    hidden = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def network_params(key, dtype=jnp.float32):
    one, two, three = jax.random.split(key, 3)
    return {
        "body": {
            "kernel": jax.random.normal(one, (4, 5), dtype),
            "bias": jax.random.normal(three, (5,), dtype),
        },
        "head": {"kernel": jax.random.normal(two, (5, 3), dtype), "bias": jnp.zeros(3, dtype)},
    }


def moment_of(params, key=7):
    """A made-up second moment for `params`."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    draws = [
        jnp.square(jax.random.normal(k, p.shape)).astype(p.dtype)
        for k, p in zip(keys, leaves, strict=True)
    ]
    return l2m.SecondMoment(nu=treedef.unflatten(draws), count=10)


@pytest.fixture
def params():
    return network_params(jax.random.key(0))


@pytest.fixture
def posterior(params):
    return l2m.laplace(
        params, moment_of(params), num_data=50, batch_size=5, prior_precision=2.0, temperature=0.5
    )


@pytest.fixture
def inputs():
    return jax.random.normal(jax.random.key(1), (6, 4))


def flat(tree):
    """Every entry in one NumPy vector, float64."""
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])
