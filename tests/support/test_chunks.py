"""What is computed in chunks is what is computed at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2m_optax._support.chunks import over_chunks


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7, 50])
def test_chunks_of_any_size_give_the_same(size):
    xs = {"a": jnp.arange(7.0), "b": jnp.arange(14).reshape(7, 2)}
    sizes = []

    def f(x):
        return x["a"] * x["b"], x["a"]

    def watched(x):
        sizes.append(1)
        return f(x)

    found = over_chunks(watched, xs, size)
    jax.tree.map(np.testing.assert_array_equal, found, jax.vmap(f)(xs))
    assert len(sizes) == 1  # one program, for the last chunk too


def test_no_more_than_size_are_side_by_side():
    text = str(jax.make_jaxpr(lambda x: over_chunks(jnp.sin, x, 4))(jnp.ones(9)))
    assert "f32[3] = sin" in text
