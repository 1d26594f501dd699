"""Three tables, a network with tanh layers, its training, and what is exact about it.

Concrete, red wine and diabetes; the generalised Gauss-Newton matrix (GGN), diagonal and full, with
its own evidence; Hamiltonian Monte Carlo (NUTS) with the prior and the noise of the full one.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
import training
from measure import cached
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_diabetes

import l2m_optax as l2m

DATA = Path(__file__).parent.parent / "notebooks" / "data"
SPLITS, HMC_DRAWS = (1, 100) if report.FAST else (10, 500)
BATCH_SIZE, WIDTH, DRAWS = 32, 50, 64
DROPOUT, SWAG_EPOCHS, SWAG_RATE = 0.05, 20, 1e-2
GRID = np.linspace(-8.0, 8.0, 1_601)  # of standardised targets
# Tasters disagree, and patients differ: more is learning them by heart.
EPOCHS = {"concrete": 200, "wine_red": 50, "diabetes": 30}


def load(name) -> dict[str, np.ndarray]:
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        return {"x": x, "y": y}
    return dict(np.load(DATA / f"{name}.npz"))


def apply_fn(params, x, key=None):
    """Means; with a key, hidden units are dropped."""
    for i, name in enumerate(sorted(params.keys() - {"out"})):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
        if key is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - DROPOUT, x.shape)
            x = jnp.where(kept, x / (1 - DROPOUT), 0)
    return x @ params["out"]["kernel"] + params["out"]["bias"]


class Split(NamedTuple):
    """Standardised by what is trained on; `scale` turns a standardised target back."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    scale: float


def split(table, seed) -> Split:
    order = np.random.default_rng(seed).permutation(len(table["x"]))
    test, train = np.split(order, [len(order) // 10])
    x, y = table["x"][train], table["y"][train]
    standard = (table["x"] - x.mean(0)) / x.std(0), (table["y"] - y.mean()) / y.std()
    inputs, targets = standard[0].astype(np.float32), standard[1].astype(np.float32)[:, None]
    return Split(inputs[train], targets[train], inputs[test], targets[test], float(y.std()))


def initial(key, width, depth=1):
    names = [*(f"hidden{i}" for i in range(depth)), "out"]
    widths = [width, *[WIDTH] * depth, 1]
    return {
        name: {
            "kernel": jax.random.normal(key, (fan_in, fan_out)) / fan_in**0.5,
            "bias": jnp.zeros(fan_out),
        }
        for name, key, fan_in, fan_out in zip(
            names, jax.random.split(key, depth + 1), widths, widths[1:], strict=False
        )
    }


def loss(params, x, y, key=None):
    return jnp.mean(jnp.square(y - apply_fn(params, x, key)))


def optimizer(num_data, epochs):
    steps = epochs * (num_data // BATCH_SIZE)
    return optax.adam(optax.cosine_decay_schedule(1e-2, steps))


def make_train_tracked(num_data, epochs, trackers, depth):
    """Of a seed and training data: the parameters, Adam's state, and those of trackers by name."""

    def drawn(key, params, x):
        return l2m.jacobians.fisher_gradients(key, apply_fn, params, x, "gaussian")

    @jax.jit
    def train(key, x, y):
        params = initial(key, x.shape[1], depth)
        keys = jax.random.split(jax.random.fold_in(key, 1), epochs)
        tx = optimizer(num_data, epochs)
        return training.run_tracked(loss, tx, trackers, drawn, params, keys, x, y, BATCH_SIZE)

    return train


def make_train(num_data, epochs):
    tx = optimizer(num_data, epochs)

    @functools.partial(jax.jit, static_argnames="dropout")
    def train(key, x, y, dropout=False):
        params = initial(key, x.shape[1])
        keys = jax.random.split(jax.random.fold_in(key, 1), epochs)
        return training.run(loss, tx, params, keys, x, y, BATCH_SIZE, dropout=dropout)[0]

    @jax.jit
    def swag(params, key, x, y):
        """Draws around the mean of SGD's iterates at a constant rate, as wide as they scatter."""
        sgd = optax.sgd(SWAG_RATE, momentum=0.9)
        keys = jax.random.split(key, SWAG_EPOCHS)
        _, iterates = training.run(loss, sgd, params, keys, x, y, BATCH_SIZE)
        keys = jax.random.split(key, len(jax.tree.leaves(params)))
        keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
        return jax.tree.map(
            lambda w, k: w.mean(0) + w.std(0) * jax.random.normal(k, (DRAWS, *w.shape[1:])),
            iterates,
            keys,
        )

    return tx, train, swag


def total_variation(one, other) -> float:
    """Of two densities of each target on `GRID`, functions of it; a mean over the targets."""
    difference = np.abs(one(GRID) - other(GRID))
    return float(0.5 * np.mean(np.sum(difference, axis=1)) * (GRID[1] - GRID[0]))


def jacobian(params, x):
    leaves = jax.tree.leaves(jax.jacrev(apply_fn)(params, x))
    return np.concatenate([np.reshape(j, (len(x), -1)) for j in leaves], 1).astype(np.float64)


def evidence(curvature, norm, residuals):
    """MacKay's fixed point for eigenvalues of JᵀJ: prior precision and noise variance."""
    squares, number = float(np.sum(np.square(residuals, dtype=np.float64))), residuals.size
    prior, noise = 1.0, squares / number
    for _ in range(1000):
        gamma = np.sum(curvature / (curvature + prior * noise))
        prior, noise = gamma / norm, squares / (number - gamma)
    return prior, noise


def ggn_predictions(params, data: Split):
    """Variances by the exact diagonal of the GGN and by all of it."""
    residuals = data.y - np.asarray(apply_fn(params, data.x))
    norm = float(sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params)))
    train, test = jacobian(params, data.x), jacobian(params, data.x_test)
    diagonal = np.sum(train**2, axis=0)
    prior, noise = evidence(diagonal, norm, residuals)
    by_diagonal = noise + test**2 @ (1 / (diagonal / noise + prior))
    # JᵀJ has the values of JJᵀ and zeros; outside of the span of J only the prior is left.
    values, left = np.linalg.eigh(train @ train.T)
    values = np.maximum(values, 0)
    prior, noise = evidence(values, norm, residuals)
    reached = np.square(test @ train.T @ left) / (values + prior * noise)
    by_full = noise + (np.sum(test**2, axis=1) - reached.sum(1)) / prior
    return by_diagonal, by_full, prior, noise


def hmc_outputs(name, params, data: Split, prior, noise):
    """Outputs on the held-out inputs under draws from the posterior, kept from run to run."""

    def potential(p):
        squares = jnp.sum(jnp.square(data.y - apply_fn(p, data.x))) / noise
        return 0.5 * (squares + prior * optax.tree.norm(p, squared=True))

    def outputs():
        sampler = NUTS(potential_fn=potential, max_tree_depth=8)
        chain = MCMC(sampler, num_warmup=HMC_DRAWS, num_samples=HMC_DRAWS, progress_bar=False)
        chain.run(jax.random.key(0), init_params=params)
        return jax.lax.map(lambda p: apply_fn(p, data.x_test), chain.get_samples())

    return np.asarray(cached(name, outputs, __file__, training.__file__))
