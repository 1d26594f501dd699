"""What many tests share: one conjugate linear regression, one small network, made-up moments."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import linalg

import l2m_optax as l2m


class Regression(NamedTuple):
    """y = X w + noise, for which the Hessian of the negative log-likelihood is known."""

    x: jax.Array
    y: jax.Array
    noise_variance: float

    @property
    def hessian_diagonal(self):
        return np.sum(np.square(np.asarray(self.x, np.float64)), axis=0) / self.noise_variance


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


def flat(tree):
    """Every entry in one NumPy vector, float64."""
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def run_script(script, *arguments, folder, timeout=None):
    """A fresh process that can import the helpers, and the tests in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )


def orthogonal(seed, shape):
    """Orthogonal matrices: of shape (5, 5) for (5,), a stack of two for (2, 5)."""
    *stacked, size = shape
    normal = jax.random.normal(jax.random.key(seed), (*stacked, size, size))
    return jnp.linalg.qr(normal)[0]


def dense_basis(basis, shape):
    """The matrix Q of a leaf that is raveled: Kronecker products, formed, in float64."""
    size = int(np.prod(shape))
    if basis is None or basis == (None, None):
        return np.eye(size)
    stacked = next(side for side in basis if side is not None).shape[:-2]
    count = int(np.prod(stacked))
    lengths = [None if side is None else side.shape[-1] for side in basis]
    rows = lengths[0] or size // (count * lengths[1])
    columns = size // (count * rows)
    matrix = np.zeros((count, rows * columns, count, rows * columns))
    sides = [
        np.broadcast_to(np.eye(n), (count, n, n))
        if side is None
        else np.asarray(side, np.float64).reshape(count, n, n)
        for side, n in zip(basis, (rows, columns), strict=True)
    ]
    for i, (left, right) in enumerate(zip(*sides, strict=True)):
        matrix[i, :, i] = np.kron(left, right)
    return matrix.reshape(size, size)


def rotated_moment(params):
    """A made-up moment of the network's: Kronecker, full, one side, and none, one a leaf."""
    sides = {
        "body": {"kernel": (4, 5), "bias": (5, None)},
        "head": {"kernel": (None, 3), "bias": (None, None)},
    }

    def basis(path, nu):
        left, right = sides[path[0].key][path[1].key]
        made = [None if n is None else orthogonal(n + i, (n,)) for i, n in enumerate((left, right))]
        return l2m.moments.Basis(*made) if left or right else None

    moment = moment_of(jax.tree.map(lambda p: p.astype(jnp.float32), params))
    return moment._replace(basis=jax.tree_util.tree_map_with_path(basis, moment.nu))


def dense_covariance(posterior):
    """The covariance of every parameter with every other, from F along the bases; float64."""
    data = l2m.posterior.data_precision(posterior)
    leaves, treedef = jax.tree.flatten(data)
    held = posterior.second_moment.basis
    found = [None] * len(leaves) if held is None else treedef.flatten_up_to(held)
    priors = jax.tree.leaves(
        jax.tree.map(
            lambda delta, sub: jax.tree.map(lambda _: delta, sub), posterior.prior_precision, data
        )
    )
    blocks = []
    for f, one, delta in zip(leaves, found, priors, strict=True):
        q = dense_basis(one, f.shape)
        precision = np.ravel(np.asarray(f, np.float64)) + float(delta)
        blocks.append(float(posterior.temperature) * (q / precision) @ q.T)
    return linalg.block_diag(*blocks)
