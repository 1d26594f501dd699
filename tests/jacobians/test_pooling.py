"""Max-pooling by comparisons: values and derivatives of XLA's, with ties, padding and NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from l2m_optax.jacobians._factors import run_perturbed
from l2m_optax.jacobians._program import trace
from l2m_optax.jacobians._uses import find_uses

X = jnp.round(2 * jax.random.normal(jax.random.key(0), (1, 7, 6, 2)))  # many are equal

POOLS = {
    "halves": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "overlapping": lambda x: nn.max_pool(x, (3, 3), (2, 2), padding="SAME"),
    "padded": lambda x: nn.max_pool(x, (3, 2), (1, 2), padding=((2, 1), (0, 1))),
    "everywhere": lambda x: nn.max_pool(x, (7, 6)),
    "dilated": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 3, 2, 1)
    ),
}


def ours(pool):
    """The program run as it is differentiated, with no leaf."""
    program = trace(lambda leaves, x: pool(x), [], X)
    return lambda x: run_perturbed(program, find_uses(program, 0), [], [], [x])[0]


@pytest.mark.parametrize("name", POOLS)
def test_values_and_derivatives_are_those_of_xla(name):
    pool = POOLS[name]
    direction = jax.random.normal(jax.random.key(1), X.shape)
    expected = jax.jvp(pool, (X,), (direction,))
    found = jax.jvp(ours(pool), (X,), (direction,))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


@pytest.mark.parametrize("place", [(0, 0), (3, 4), (2, 1)])
def test_nan_stays(place):
    pool, x = POOLS["halves"], X.at[0, *place].set(jnp.nan)
    np.testing.assert_array_equal(ours(pool)(x), pool(x))


def test_no_search_is_left_in_what_is_differentiated():
    text = jax.jit(jax.grad(lambda x: jnp.sum(ours(POOLS["halves"])(x)))).lower(X).as_text()
    assert "select_and_scatter" not in text
