"""A token model trained on a mean over tokens counts tokens, in `num_data` and in `batch_size`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import l2m_optax as l2m

SEQUENCES, LENGTH, BATCH = 4_000, 6, 16
W = jnp.array([0.5, -1.0, 0.2])


def token_loss(w, token):
    x, label = token
    return -jax.nn.log_sigmoid(jnp.where(label, 1.0, -1.0) * (x @ w))


@pytest.fixture(scope="module")
def tokens():
    """Inputs (n, T, 3) and labels (n, T) that the model itself draws, position by position."""
    x = jax.random.normal(jax.random.key(0), (SEQUENCES, LENGTH, 3))
    return x, jax.random.bernoulli(jax.random.key(1), jax.nn.sigmoid(x @ W))


def expected_moment(tokens):
    """E[ν] over batches of B sequences: the variance of a mean of sequences' mean gradients."""
    gradients = jax.vmap(jax.vmap(jax.grad(token_loss), (None, 0)), (None, 0))(W, tokens)
    means = np.asarray(gradients, np.float64).mean(axis=1)
    among = (SEQUENCES - BATCH) / (SEQUENCES - 1)
    return l2m.SecondMoment(nu=jnp.asarray(means.var(axis=0) / BATCH * among, jnp.float32))


def test_tokens_are_the_observations(tokens):
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tokens)
    count = SEQUENCES * LENGTH
    exact = l2m.jacobians.empirical_fisher(token_loss, W, flat, num_data=count)
    moment = expected_moment(tokens)
    posterior = l2m.laplace(W, moment, num_data=count, batch_size=BATCH * LENGTH)
    np.testing.assert_allclose(l2m.posterior.data_precision(posterior), exact, rtol=0.08)
    sequences = l2m.laplace(W, moment, num_data=SEQUENCES, batch_size=BATCH)
    ratio = posterior.data_scale / sequences.data_scale
    np.testing.assert_allclose(ratio, LENGTH**2, rtol=1e-3)
