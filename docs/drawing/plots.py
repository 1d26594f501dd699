"""What each function of `l2m_optax.plot` draws, from small data that are made here."""

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from matplotlib.figure import Figure

import l2m_optax as l2m
from drawing import style
from l2m_optax import plot

NUMBER, CLASSES = 4000, 5


def pictures() -> dict[str, Figure]:
    drawn = {
        "reliability_diagram": reliability,
        "risk_coverage": risk,
        "entropy_histogram": entropies,
        "regression_band": band,
        "posterior_layers": layers,
    }
    made = {f"plot-{name}": _figure(draw) for name, draw in drawn.items()}
    return made | {"plot-training": _figure(training, 2, 2)}


def reliability(ax) -> None:
    probs, labels = _classes(sure=1.8)
    plot.reliability_diagram(probs, labels, ax=ax)


def risk(ax) -> None:
    probs, labels = _classes(sure=1.8)
    wrong = (probs.argmax(1) != labels).astype(float)
    plot.risk_coverage(_entropy(probs), wrong, ax=ax)


def entropies(ax) -> None:
    plot.entropy_histogram(_entropy(_classes(sure=3)[0]), _entropy(_classes(sure=1)[0]), ax=ax)


def band(ax) -> None:
    """A polynomial with a prior, fitted to points with a gap."""
    rng, noise = np.random.default_rng(0), 0.1
    x = np.concatenate([rng.uniform(-1, -0.3, 20), rng.uniform(0.4, 1, 20)])
    y = x - x**2 + noise * rng.normal(size=x.shape)
    grid = np.linspace(-1.3, 1.3, 200)
    precision = _features(x).T @ _features(x) / noise**2 + np.eye(5)
    coefficients = np.linalg.solve(precision, _features(x).T @ y / noise**2)
    covariance = np.linalg.inv(precision)
    epistemic = np.einsum("ni,ij,nj->n", _features(grid), covariance, _features(grid))
    aleatoric = np.full_like(grid, noise**2)
    prediction = l2m.predict.Regression(
        _features(grid) @ coefficients, aleatoric + epistemic, aleatoric, epistemic
    )
    plot.regression_band(grid, prediction, ax=ax)
    ax.plot(x, y, "k.")


def layers(ax) -> None:
    rng = np.random.default_rng(0)
    shapes = {"Dense_0": (64, 32), "Dense_1": (32, 32), "Dense_2": (32, 10)}
    sizes = dict(zip(shapes, (-13, -11, -8), strict=True))
    nu = {n: {"kernel": np.exp(rng.normal(sizes[n], 2, s))} for n, s in shapes.items()}
    params = {n: {"kernel": rng.normal(0, 0.3, s)} for n, s in shapes.items()}
    moment = l2m.SecondMoment(nu=nu)
    posterior = l2m.laplace(params, moment, num_data=1000, batch_size=50, prior_precision=10.0)
    plot.posterior_layers(posterior, ax=ax)


def training(axes) -> None:
    """A small network on noisy labels, its decay by the evidence."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (500, 8))
    y = (x[:, 0] * x[:, 1] + 0.5 * jax.random.normal(key, (500,)) > 0).astype(int)
    decay = l2m.evidence_weight_decay(num_data=500, batch_size=50, decay=0.99)
    tx = optax.with_extra_args_support(optax.chain(decay, optax.adam(1e-2)))

    def loss_fn(params, rows):
        logits = jnp.tanh(x[rows] @ params["body"]["kernel"]) @ params["head"]["kernel"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

    def step(carry, key):
        params, state = carry
        rows = jax.random.choice(key, 500, (50,), replace=False)
        loss, grads = jax.value_and_grad(loss_fn)(params, rows)
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), state[0].record()

    shapes = {"body": (8, 32), "head": (32, 2)}
    params = {n: {"kernel": 0.3 * jax.random.normal(key, s)} for n, s in shapes.items()}
    _, history = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, 1500))
    plot.training(history, axes=axes)


def _figure(draw, *grid: int) -> Figure:
    mpl.rcParams.update(style.SETTINGS)
    made = Figure(figsize=(style.WIDTH, 3.8), layout="constrained")
    draw(made.subplots(*grid))
    return made


def _classes(sure: float):
    """Probabilities that are this many times too sure, and labels."""
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.normal(size=(NUMBER, CLASSES))
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    scaled = np.exp(sure * logits)
    return scaled / scaled.sum(1, keepdims=True), labels


def _entropy(probs) -> np.ndarray:
    return -np.sum(probs * np.log(probs), axis=1)


def _features(x) -> np.ndarray:
    return np.stack([x**power for power in range(5)], axis=1)
