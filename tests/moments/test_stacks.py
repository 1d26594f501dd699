"""Stacks of matrices with bases of their own, as scanned layers: what each matrix alone gives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import dense_basis
from second_order import shampoo, soap

import l2m_optax as l2m

LAYERS, WIDTH, HIDDEN = 3, 4, 6
SHAPES = {"up": (WIDTH, HIDDEN), "b": (HIDDEN,), "down": (HIDDEN, WIDTH)}
STACK = {name: jnp.ones((LAYERS, *shape)) for name, shape in SHAPES.items()}


def layers_of(tree):
    """A list of trees, one for each layer, from a tree of stacks."""
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(LAYERS)]


def block(x, layer):
    return x + jnp.tanh(x @ layer["up"] + layer["b"]) @ layer["down"]


def scanned(params, x):
    return jax.lax.scan(lambda x, layer: (block(x, layer), None), x, params)[0]


def unrolled(layers, x):
    for layer in layers:
        x = block(x, layer)
    return x


def gradients(steps, params=STACK):
    rng = np.random.default_rng(5)
    draw = lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype)  # noqa: E731
    return [jax.tree.map(draw, params) for _ in range(steps)]


def trained(tx, grads, params):
    """The state after the last update."""
    update, state = jax.jit(tx.update), tx.init(params)
    for g in grads:
        state = update(g, state, params)[1]
    return state


def vmapped(tx):
    """A transformation whose whole state is a stack, its counts too."""

    def update(g, state, params):
        return jax.vmap(tx.update)(g, state, params)

    return optax.GradientTransformation(jax.vmap(tx.init), update)


def mapped_inside(make, **options):
    return make(1e-3, stacked=1, **options)


def mapped_outside(make, **options):
    return vmapped(make(1e-3, **options))


WAYS = {"matrices are mapped": mapped_inside, "all is mapped": mapped_outside}
OPTIMIZERS = {
    "SOAP": (soap, {"every": 100}),
    "SOAP that turns its bases": (soap, {"every": 3}),
    "SOAP whose squares wait": (soap, {"every": 4, "waits": True}),
    "SOAP with one long side": (soap, {"every": 3, "max_side": WIDTH}),
    "Shampoo": (shampoo, {}),
    "Shampoo that forgets, every third step": (shampoo, {"decay": 0.9, "statistics_every": 3}),
}
TOLD = {"num_data": 100, "batch_size": 4, "prior_precision": 2.0}


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5 * np.max(np.abs(expected)))


def covariance(posterior, path):
    """The covariance of the leaf at a path, a list of keys, as a matrix."""
    f, basis = l2m.posterior.data_precision(posterior), posterior.second_moment.basis
    for key in path:
        f, basis = f[key], basis and basis[key]
    q = dense_basis(basis, f.shape)
    return q @ np.diag(1 / (np.ravel(np.asarray(f, np.float64)) + 2.0)) @ q.T


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stack_is_read_as_its_matrices_are(name, way):
    make, options = OPTIMIZERS[name]
    tx, alone, grads = WAYS[way](make, **options), make(1e-3, **options), gradients(14)
    layers = layers_of(STACK)
    together = l2m.second_moment(trained(tx, grads, STACK), STACK, tx=tx)
    apart = l2m.second_moment(
        trained(alone, [layers_of(g) for g in grads], layers), layers, tx=alone
    )
    means = layers_of(l2m.moments.debiased(together))
    assert np.all(together.count == apart.count)
    for i, mean in enumerate(l2m.moments.debiased(apart)):
        for leaf in SHAPES:
            close(means[i][leaf], mean[leaf])
            one, other = together.basis[leaf], apart.basis[i][leaf]
            assert (one is None) == (other is None)
            for side, expected in zip(one or (), other or (), strict=True):
                assert (side is None) == (expected is None)
                if side is not None:
                    close(jnp.abs(side[i]), jnp.abs(expected))
    posterior = l2m.laplace(STACK, together, **TOLD)
    separate = l2m.laplace(layers, apart, **TOLD)
    for leaf, shape in SHAPES.items():
        size = int(np.prod(shape))
        whole = covariance(posterior, [leaf]).reshape(LAYERS, size, LAYERS, size)
        for i in range(LAYERS):
            close(whole[i, :, i], covariance(separate, [i, leaf]))
            assert not np.any(np.delete(whole[i], i, axis=1))
    x = jax.random.normal(jax.random.key(0), (5, WIDTH))
    close(l2m.output_variance(scanned, posterior, x), l2m.output_variance(unrolled, separate, x))
    evidences = [l2m.tuning.log_evidence(p, 0.0) for p in (posterior, separate)]
    close(*evidences)
