"""Gaussian regression on concrete, red wine and diabetes, with no validation data anywhere.

Ten splits each. The mode, L2M, the exact diagonal and full generalised Gauss-Newton matrix (GGN)
with their own evidence, Monte Carlo dropout, diagonal SWAG and an ensemble of five; and Hamiltonian
Monte Carlo (NUTS) with the prior and the noise of the full matrix, as the reference posterior.
"TV to HMC" is the total variation between a method's predictive distribution and HMC's, averaged
over the held-out inputs. Run: `make bench`; `FAST=1` for one split and short chains.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from measure import cached
from numpyro.infer import MCMC, NUTS
from scipy.stats import norm
from sklearn.datasets import load_diabetes

import l2m_optax as l2m

DATA = Path(__file__).parent.parent / "notebooks" / "data"
SPLITS, HMC_DRAWS = (1, 100) if report.FAST else (10, 500)
MEMBERS, BATCH_SIZE, WIDTH, DRAWS = 5, 32, 50, 64
DROPOUT, SWAG_EPOCHS, SWAG_RATE = 0.05, 20, 1e-2
# Tasters disagree, and patients differ: more is learning them by heart.
EPOCHS = {"concrete": 200, "wine_red": 50, "diabetes": 30}


def apply_fn(params, x, key=None):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    if key is not None:
        kept = jax.random.bernoulli(key, 1 - DROPOUT, hidden.shape)
        hidden = jnp.where(kept, hidden / (1 - DROPOUT), 0)
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


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


def initial(key, width):
    one, two = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(one, (width, WIDTH)) / width**0.5}
        | {"bias": jnp.zeros(WIDTH)},
        "out": {"kernel": jax.random.normal(two, (WIDTH, 1)) / WIDTH**0.5, "bias": jnp.zeros(1)},
    }


def make_train(num_data, epochs):
    per_epoch = num_data // BATCH_SIZE
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, per_epoch * epochs))

    def loss(params, x, y, key):
        return jnp.mean(jnp.square(y - apply_fn(params, x, key)))

    def run(tx, params, key, x, y, epochs, dropout):
        """The parameters and the state at the end, and the parameters after every epoch."""

        def step(carry, args):
            params, state = carry
            rows, key = args
            grads = jax.grad(loss)(params, x[rows], y[rows], key if dropout else None)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry, key):
            order = jax.random.permutation(key, num_data)[: per_epoch * BATCH_SIZE]
            keys = jax.random.split(jax.random.fold_in(key, 1), per_epoch)
            carry, _ = jax.lax.scan(step, carry, (order.reshape(per_epoch, BATCH_SIZE), keys))
            return carry, carry[0]

        return jax.lax.scan(epoch, (params, tx.init(params)), jax.random.split(key, epochs))

    @functools.partial(jax.jit, static_argnames="dropout")
    def train(key, x, y, dropout=False):
        params = initial(key, x.shape[1])
        return run(tx, params, jax.random.fold_in(key, 1), x, y, epochs, dropout)[0]

    @jax.jit
    def swag(params, key, x, y):
        """Draws around the mean of SGD's iterates at a constant rate, as wide as they scatter."""
        sgd = optax.sgd(SWAG_RATE, momentum=0.9)
        _, iterates = run(sgd, params, key, x, y, SWAG_EPOCHS, False)
        keys = jax.random.split(key, len(jax.tree.leaves(params)))
        keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
        return jax.tree.map(
            lambda w, k: w.mean(0) + w.std(0) * jax.random.normal(k, (DRAWS, *w.shape[1:])),
            iterates,
            keys,
        )

    return tx, train, swag


def l2m_prediction(tx, params, state, data: Split):
    moment = l2m.second_moment(state, params, tx=tx)
    posterior = l2m.laplace(
        params, moment, num_data=len(data.x), batch_size=BATCH_SIZE, loss_scale=2.0
    )
    posterior, info = l2m.fit_noise_variance(posterior, data.y - apply_fn(params, data.x))
    variance = l2m.output_variance(apply_fn, posterior, data.x_test)
    return np.asarray(variance)[:, 0] + float(info.value)


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
    values, vectors = np.linalg.eigh(train.T @ train)
    values = np.maximum(values, 0)
    prior, noise = evidence(values, norm, residuals)
    by_full = noise + (test @ vectors) ** 2 @ (1 / (values / noise + prior))
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

    return np.asarray(cached(name, __file__, outputs))


class Prediction(NamedTuple):
    """A Gaussian for every held-out input, or the outputs whose mixture it is, in units of y."""

    mean: np.ndarray
    variance: np.ndarray
    outputs: np.ndarray | None = None
    noise: float = 0.0

    def density(self, grid):
        """Shape (N, grid)."""
        if self.outputs is None:
            return norm.pdf(
                grid, np.ravel(self.mean)[:, None], np.sqrt(np.ravel(self.variance))[:, None]
            )
        return np.mean([norm.pdf(grid, f, self.noise**0.5) for f in self.outputs], axis=0)


def of_draws(outputs, noise) -> Prediction:
    outputs = np.asarray(outputs, np.float64)
    return Prediction(outputs.mean(0), outputs.var(0) + noise)


def total_variation(one: Prediction, other: Prediction) -> float:
    grid = np.linspace(-8.0, 8.0, 1_601)
    difference = np.abs(one.density(grid) - other.density(grid))
    return float(0.5 * np.mean(np.sum(difference, axis=1)) * (grid[1] - grid[0]))


def scores(prediction: Prediction, reference: Prediction, data: Split) -> dict[str, float]:
    """In the target's own units."""
    mean, y = np.ravel(prediction.mean) * data.scale, np.ravel(data.y_test) * data.scale
    variance = np.ravel(prediction.variance) * data.scale**2
    m = l2m.metrics
    return {
        "RMSE": float(m.root_mean_squared_error(mean, y)),
        "NLL": float(m.gaussian_negative_log_likelihood(mean, variance, y)),
        "CRPS": float(m.gaussian_crps(mean, variance, y)),
        "covered": float(m.interval_coverage(mean, variance, y)),
        "TV to HMC": total_variation(prediction, reference),
    }


def methods(name, tools, data: Split, seed) -> dict[str, Prediction]:
    tx, train, swag = tools
    members = [train(jax.random.key(100 * seed + i), data.x, data.y) for i in range(MEMBERS)]
    params, state = members[0]
    mean = np.asarray(apply_fn(params, data.x_test))
    by_diagonal, by_full, prior, noise = ggn_predictions(params, data)
    outputs = hmc_outputs(f"hmc-{name}-{seed}-{HMC_DRAWS}", params, data, prior, noise)
    hmc = of_draws(outputs, noise)._replace(outputs=outputs, noise=noise)

    def with_residuals(draws):
        """Noise from the training residuals of the mean prediction."""
        residuals = np.mean(np.square(data.y - np.mean(draws(data.x), axis=0)))
        return of_draws(draws(data.x_test), residuals)

    keys = jax.random.split(jax.random.key(seed), DRAWS)
    dropped, _ = train(jax.random.key(100 * seed), data.x, data.y, dropout=True)
    weights = swag(params, jax.random.key(seed), data.x, data.y)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p for p, _ in members))
    return {
        "HMC": hmc,
        "mode": with_residuals(lambda x: apply_fn(params, x)[None]),
        "L2M, evidence": Prediction(mean, l2m_prediction(tx, params, state, data)),
        "diagonal GGN, evidence": Prediction(mean, by_diagonal),
        "full GGN, evidence": Prediction(mean, by_full),
        "MC dropout": with_residuals(lambda x: jax.vmap(lambda k: apply_fn(dropped, x, k))(keys)),
        "SWAG, diagonal": with_residuals(lambda x: jax.vmap(lambda w: apply_fn(w, x))(weights)),
        f"ensemble of {MEMBERS}": with_residuals(
            lambda x: jax.vmap(lambda w: apply_fn(w, x))(stacked)
        ),
    }


def load(name) -> dict[str, np.ndarray]:
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        return {"x": x, "y": y}
    return dict(np.load(DATA / f"{name}.npz"))


def main() -> None:
    tables = {}
    for name, title in {
        "concrete": "concrete, MPa",
        "wine_red": "red wine, tasters' score",
        "diabetes": "diabetes, score",
    }.items():
        table = load(name)
        tools = make_train(len(table["x"]) - len(table["x"]) // 10, EPOCHS[name])
        rows = tables.setdefault(title, {})
        for seed in range(SPLITS):
            data = split(table, seed)
            found = methods(name, tools, data, seed)
            for method, prediction in found.items():
                rows.setdefault(method, []).append(scores(prediction, found["HMC"], data))
            print(name, seed, flush=True)
    report.write("regression", tables, f"{SPLITS} splits; ± is the deviation over them")


if __name__ == "__main__":
    main()
