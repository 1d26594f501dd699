"""Gaussian regression on concrete and red wine, ten splits, with no validation data anywhere.

The mode, L2M, the exact diagonal and full generalised Gauss-Newton matrix (GGN) with their own
evidence, and an ensemble of five. Run: `make bench-regression`.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2m_optax as l2m

DATA = Path(__file__).parent.parent / "notebooks" / "data"
SPLITS, MEMBERS, BATCH_SIZE, WIDTH = 10, 5, 32, 50
EPOCHS = {"concrete": 200, "wine_red": 50}  # tasters disagree: more is learning them by heart


def apply_fn(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
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

    def loss(params, x, y):
        return jnp.mean(jnp.square(y - apply_fn(params, x)))

    @jax.jit
    def train(key, x, y):
        def step(carry, rows):
            params, state = carry
            grads = jax.grad(loss)(params, x[rows], y[rows])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry, key):
            order = jax.random.permutation(key, num_data)[: per_epoch * BATCH_SIZE]
            return jax.lax.scan(step, carry, order.reshape(per_epoch, BATCH_SIZE))

        params = initial(key, x.shape[1])
        keys = jax.random.split(jax.random.fold_in(key, 1), epochs)
        return jax.lax.scan(epoch, (params, tx.init(params)), keys)[0]

    return tx, train


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
    return by_diagonal, noise + (test @ vectors) ** 2 @ (1 / (values / noise + prior))


def scores(mean, variance, data: Split):
    """RMSE, NLL, CRPS and coverage of the central 95% interval, in the target's own units."""
    mean, y = np.ravel(mean) * data.scale, np.ravel(data.y_test) * data.scale
    variance = np.ravel(variance) * data.scale**2
    m = l2m.metrics
    return (
        float(m.root_mean_squared_error(mean, y)),
        float(m.gaussian_negative_log_likelihood(mean, variance, y)),
        float(m.gaussian_crps(mean, variance, y)),
        float(m.interval_coverage(mean, variance, y)),
    )


def methods(tx, train, data: Split, seed):
    members = [train(jax.random.key(100 * seed + i), data.x, data.y) for i in range(MEMBERS)]
    params, state = members[0]
    mean = np.asarray(apply_fn(params, data.x_test))
    residual = float(np.mean(np.square(data.y - apply_fn(params, data.x))))
    means = np.stack([apply_fn(p, data.x_test) for p, _ in members])
    residuals = [np.mean(np.square(data.y - apply_fn(p, data.x))) for p, _ in members]
    by_diagonal, by_full = ggn_predictions(params, data)
    yield "mode", mean, np.full(len(mean), residual)
    yield "L2M, evidence", mean, l2m_prediction(tx, params, state, data)
    yield "diagonal GGN, evidence", mean, by_diagonal
    yield "full GGN, evidence", mean, by_full
    yield f"ensemble of {MEMBERS}", means.mean(0), means.var(0) + np.mean(residuals)


def main() -> None:
    for name in ("concrete", "wine_red"):
        table = dict(np.load(DATA / f"{name}.npz"))
        tx, train = make_train(len(table["x"]) - len(table["x"]) // 10, EPOCHS[name])
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in range(SPLITS):
            data = split(table, seed)
            for method, mean, variance in methods(tx, train, data, seed):
                found.setdefault(method, []).append(scores(mean, variance, data))
        print(f"\n| {name} | RMSE | NLL | CRPS | covered |\n|---|---|---|---|---|")
        for method, rows in found.items():
            middle, error = np.mean(rows, 0), np.std(rows, 0) / SPLITS**0.5
            cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(middle, error, strict=True)]
            print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
