"""Optimizers that keep factors, small: no package of PyPI has them for the present JAX and optax.

They are written from the published algorithms, and in the order of the authors' programs: SOAP
looks at the first gradient and does nothing, and turns its basis after it has used it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class SoapState(NamedTuple):
    """`Q` and `GG` hold a tuple for each leaf: for each axis a matrix, or `None`."""

    count: jax.Array
    exp_avg: Any
    exp_avg_sq: Any
    GG: Any
    Q: Any


def soap(
    learning_rate,
    *,
    b1=0.95,
    b2=0.95,
    every=10,
    max_side=10_000,
    waits=False,
    sort=True,
    dtype=None,
    stacked=0,
):
    """Vyas et al., SOAP: improving and stabilizing Shampoo using Adam (2024), algorithm 3.

    Args:
      learning_rate: the step size.
      b1: decay of the mean gradient.
      b2: decay of the squares and of the factors.
      every: the basis is turned every so many steps.
      max_side: a longer axis has no basis.
      waits: whether the squares too are advanced only when the basis is turned.
      dtype: that of the matrices, by default the parameters'.
      sort: whether the columns of the basis are ordered by their eigenvalues when it is turned.
      stacked: how many leading axes number matrices, each with a basis of its own, as layers that
        `jax.lax.scan` goes through; one number, or a tree like the parameters.
    """

    def init(params):
        def matrices(p, axes):
            stack, shape = p.shape[:axes], p.shape[axes:]
            kept = [len(shape) > 1 and size <= max_side for size in shape]
            return tuple(
                jnp.zeros((*stack, size, size), dtype or p.dtype) if keeps else None
                for size, keeps in zip(shape, kept, strict=True)
            )

        zeros = jax.tree.map(jnp.zeros_like, params)
        axes = jax.tree.map(lambda _: stacked, params) if isinstance(stacked, int) else stacked
        pairs = jax.tree.map(matrices, params, axes)
        return SoapState(jnp.zeros((), jnp.int32), zeros, zeros, pairs, pairs)

    def first(g, state):
        factors = _by_leaf(_follow, b2, g, state.GG)
        turned = _by_leaf(lambda _, held: _sides(_eigenvectors, held), g, factors)
        return jax.tree.map(jnp.zeros_like, g), state._replace(GG=factors, Q=turned)

    def later(g, state):
        rotated = _by_leaf(lambda x, q: _rotate(x, q), g, state.Q)
        mean = jax.tree.map(lambda m, x: b1 * m + (1 - b1) * x, state.exp_avg, rotated)
        squares = jax.tree.map(lambda v, x: b2 * v + (1 - b2) * x**2, state.exp_avg_sq, rotated)
        t = state.count - 1
        scale = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        steps = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + 1e-8), mean, squares)
        steps = _by_leaf(_rotate_back, steps, state.Q)
        factors = _by_leaf(_follow, b2, g, state.GG)

        def turn():
            leaves, treedef = jax.tree.flatten(squares)
            pairs = zip(
                leaves,
                treedef.flatten_up_to(mean),
                treedef.flatten_up_to(factors),
                treedef.flatten_up_to(state.Q),
                strict=True,
            )
            found = [
                _mapped(partial(_turn, sort), x.ndim - len(q))(x, *rest, q) for x, *rest, q in pairs
            ]
            return [treedef.unflatten(part) for part in zip(*found, strict=True)]

        def keep():
            return [state.exp_avg_sq if waits else squares, mean, state.Q]

        squares, mean, q = jax.lax.cond(t % every == 0, turn, keep)
        return steps, SoapState(state.count, mean, squares, factors, q)

    def update(g, state, params=None):
        del params
        state = state._replace(count=state.count + 1)
        return jax.lax.cond(state.count == 1, first, later, g, state)

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


def _by_leaf(function, *arguments):
    """A function of leaves and of the tuple of matrices that goes with each, the last argument.

    A leaf with more axes than matrices is a stack.
    """
    *numbers, tree, matrices = arguments
    leaves, treedef = jax.tree.flatten(tree)
    pairs = zip(leaves, treedef.flatten_up_to(matrices), strict=True)
    function = partial(function, *numbers)
    return treedef.unflatten([_mapped(function, x.ndim - len(held))(x, held) for x, held in pairs])


def _mapped(function, axes):
    """A function of one matrix, as one of a stack with some leading axes."""
    return function if axes == 0 else jax.vmap(_mapped(function, axes - 1))


def _sides(function, matrices):
    return tuple(None if m is None else function(m) for m in matrices)


def _products(g, axis):
    others = [i for i in range(g.ndim) if i != axis]
    return jnp.tensordot(g, g, (others, others), precision="highest")


def _follow(decay, g, factors):
    return tuple(
        None if m is None else decay * m + (1 - decay) * _products(g, i)
        for i, m in enumerate(factors)
    )


def _rotate(x, matrices):
    for axis, q in enumerate(matrices):
        if q is not None:
            x = jnp.moveaxis(jnp.tensordot(q, x, ((0,), (axis,)), precision="highest"), 0, axis)
    return x


def _rotate_back(x, matrices):
    return _rotate(x, _sides(jnp.transpose, matrices))


def _eigenvectors(matrix):
    """The largest first."""
    return jnp.flip(
        jnp.linalg.eigh(matrix + 1e-30 * jnp.eye(len(matrix), dtype=matrix.dtype))[1], 1
    )


def _turn(sort, squares, mean, factors, matrices):
    """One step of orthogonal iteration, algorithm 4; the squares go with their columns."""
    turned = []
    for axis, (factor, q) in enumerate(zip(factors, matrices, strict=True)):
        if q is None:
            turned.append(None)
            continue
        order = jnp.argsort(-jnp.diag(q.T @ factor @ q)) if sort else jnp.arange(len(q))
        squares = jnp.take(squares, order, axis=axis)
        turned.append(jnp.linalg.qr(factor @ q[:, order])[0])
    mean = _rotate(_rotate_back(mean, matrices), turned)
    return squares, mean, tuple(turned)


class ShampooState(NamedTuple):
    """`statistics` holds a tuple of matrices for each leaf, one for each axis."""

    count: jax.Array
    statistics: Any
    preconditioners: Any


def shampoo(learning_rate, *, decay=1.0, epsilon=1e-4, every=1, statistics_every=1, stacked=0):
    """Gupta et al., Shampoo (2018), algorithm 2: sums of products, or means where they decay.

    The number of leading axes that number matrices is `stacked`.
    """

    def init(params):
        def initial(p):
            stack, shape = p.shape[:stacked], p.shape[stacked:]
            ones = jnp.ones((*stack, 1, 1), p.dtype)
            return tuple(epsilon * ones * jnp.eye(size, dtype=p.dtype) for size in shape)

        factors = jax.tree.map(initial, params)
        roots = _by_leaf(lambda p, held: _sides(lambda m: jnp.eye(len(m)), held), params, factors)
        return ShampooState(jnp.zeros((), jnp.int32), factors, roots)

    def update(g, state, params=None):
        del params
        share = 1.0 if decay == 1.0 else 1.0 - decay

        def follow(x, held):
            return tuple(decay * m + share * _products(x, i) for i, m in enumerate(held))

        def root(x, held):
            return _sides(lambda m: _root(m, x.ndim), held)

        factors = jax.lax.cond(
            state.count % statistics_every == 0,
            lambda: _by_leaf(follow, g, state.statistics),
            lambda: state.statistics,
        )
        roots = jax.lax.cond(
            state.count % every == 0,
            lambda: _by_leaf(root, g, factors),
            lambda: state.preconditioners,
        )
        steps = _by_leaf(_rotate, g, roots)
        return steps, ShampooState(state.count + 1, factors, roots)

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


def _root(matrix, order):
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 1e-30) ** (-0.5 / order)) @ vectors.T


class KronState(NamedTuple):
    """`Q` holds a triangular matrix for each axis of each leaf."""

    count: jax.Array
    key: jax.Array
    Q: Any


def kron(learning_rate, *, fitted_by=0.1):
    """PSGD with Kronecker factors: Li, Preconditioned stochastic gradient descent (2018).

    Steps fit Q so that the gradients, times Q for each axis, are as long as white noise.
    """

    def init(params):
        q = jax.tree.map(lambda p: tuple(jnp.eye(size, dtype=p.dtype) for size in p.shape), params)
        return KronState(jnp.zeros((), jnp.int32), jax.random.key_data(jax.random.key(0)), q)

    def fitted(g, q, noise):
        white = _rotate(g, _sides(jnp.transpose, q))
        back = _rotate(noise, tuple(jnp.linalg.inv(one) for one in q))
        found = []
        for axis, one in enumerate(q):
            of_g, of_noise = _products(white, axis), _products(back, axis)
            size = jnp.linalg.norm(of_g + of_noise)
            found.append(one - fitted_by / size * jnp.triu(of_g - of_noise) @ one)
        return tuple(found)

    def update(g, state, params=None):
        del params
        key, now = jax.random.split(jax.random.wrap_key_data(state.key))
        leaves, treedef = jax.tree.flatten(g)
        held = treedef.flatten_up_to(state.Q)
        noise = [
            jax.random.normal(one, x.shape, x.dtype)
            for one, x in zip(jax.random.split(now, len(leaves)), leaves, strict=True)
        ]
        q = treedef.unflatten(map(fitted, leaves, held, noise))
        steps = _by_leaf(lambda x, q: _rotate(x, tuple(one.T @ one for one in q)), g, q)
        return steps, KronState(state.count + 1, jax.random.key_data(key), q)

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


class IvonState(NamedTuple):
    """`noise` is what `ivon_draw` has added to the parameters."""

    count: jax.Array
    momentum: Any
    hess: Any
    noise: Any


def ivon(learning_rate, *, ess, hess_init=1.0, b1=0.9, b2=0.99999, weight_decay=1e-4):
    """Shen et al., Variational learning is effective for large deep networks (2024), algorithm 1.

    The gradients are those of the mean loss at the parameters that `ivon_draw` gives.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        hess = jax.tree.map(lambda p: jnp.full_like(p, hess_init), params)
        return IvonState(jnp.zeros((), jnp.int32), zeros, hess, zeros)

    def update(g, state, params):
        def follow(h, noise, x):
            new = ess * (h + weight_decay) * noise * x
            wrong = (1 - b2) * (h - new)
            return h - wrong + 0.5 * wrong**2 / (h + weight_decay)

        count = state.count + 1
        mean = jax.tree.map(lambda m, x: b1 * m + (1 - b1) * x, state.momentum, g)
        hess = jax.tree.map(follow, state.hess, state.noise, g)
        scale = 1 - b1**count
        steps = jax.tree.map(
            lambda m, h, p: (m / scale + weight_decay * p) / (h + weight_decay), mean, hess, params
        )
        return steps, IvonState(count, mean, hess, state.noise)

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


def ivon_draw(key, params, state, *, ess, weight_decay=1e-4):
    """A draw of IVON's posterior, and the state that knows it."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    pairs = zip(keys, treedef.flatten_up_to(state[0].hess), strict=True)
    drawn = [jax.random.normal(k, h.shape) / jnp.sqrt(ess * (h + weight_decay)) for k, h in pairs]
    noise = treedef.unflatten(drawn)
    there = jax.tree.map(jnp.add, params, noise)
    return there, (state[0]._replace(noise=noise), *state[1:])
