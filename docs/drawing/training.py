"""One small regression and its real training, for the schematic and for the moving band."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2m_optax as l2m

N, BATCH, WIDTH, NOISE = 150, 16, 16, 0.2
STEPS = 6000
GRID = np.linspace(-3.2, 3.2, 161)[:, None]


class Moment(NamedTuple):
    """What is known after so many steps; variances are those of the function and of the noise."""

    step: int
    mean: np.ndarray
    variance: np.ndarray
    noise: float


class Run(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    losses: np.ndarray
    moments: list[Moment]
    params: dict
    nu: dict
    posterior: l2m.posterior.Posterior


def data():
    """Points on a curve, none between -0.8 and 1, as in the notebook of a gap in the data."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-3, -0.8, N // 2), rng.uniform(1, 3, N // 2)])[:, None]
    return x, np.sin(1.5 * x) + NOISE * rng.normal(size=x.shape)


def apply_fn(params, x):
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return hidden @ params["v"] + params["c"]


def loss(params, x, y):
    return jnp.mean(jnp.square(y - apply_fn(params, x)))


def initial(key):
    one, two, three = jax.random.split(key, 3)
    return {
        "w": jax.random.normal(one, (1, WIDTH)),
        "b": jax.random.normal(two, (WIDTH,)),
        "v": jax.random.normal(three, (WIDTH, 1)) / 4,
        "c": jnp.zeros(1),
    }


def run(shown) -> Run:
    """The training, looked at after each of the steps `shown`."""
    x, y = data()
    tx = optax.adam(optax.cosine_decay_schedule(3e-2, STEPS), b2=0.99)
    params = initial(jax.random.key(0))
    state, losses, moments = tx.init(params), [], []

    @jax.jit
    def step(params, state, rows_x, rows_y):
        value, grads = jax.value_and_grad(loss)(params, rows_x, rows_y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    rng = np.random.default_rng(0)
    for number in range(1, STEPS + 1):
        rows = rng.choice(N, BATCH, replace=False)
        params, state, value = step(params, state, x[rows], y[rows])
        losses.append(float(value))
        if number in shown:
            posterior = posterior_of(params, state, tx, x, y)
            moments.append(moment(number, posterior))
    nu = l2m.second_moment(state, params, tx=tx).nu
    return Run(x, y, np.array(losses), moments, params, nu, posterior)


def posterior_of(params, state, tx, x, y):
    posterior = l2m.laplace(params, state, tx=tx, num_data=N, batch_size=BATCH, loss_scale=2.0)
    return l2m.fit_noise_variance(apply_fn, posterior, x, y).posterior


def moment(step, posterior) -> Moment:
    variance = l2m.output_variance(apply_fn, posterior, GRID)
    mean = apply_fn(posterior.mean, GRID)
    noise = float(posterior.noise_variance)
    return Moment(step, np.asarray(mean)[:, 0], np.asarray(variance)[:, 0], noise)
