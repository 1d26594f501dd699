# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Uncertainty from the optimizer you already ran
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/01_quickstart.ipynb)
#
# Adam keeps a running mean of squared gradients, `nu`, and throws it away after training. At the
# end of training that array measures how sharply the loss rises around every weight, which is
# what a Laplace approximation needs. `l2m_optax` reads it (the method is called L2M: Perone,
# Silveira & Paula, 2021). Nothing about the model or its training changes, and no further pass
# over the data is made. After an ordinary loop with `tx = optax.adam(...)`, three lines make a
# posterior, and one more a prediction:
#
# ```python
# posterior = l2m.laplace(params, opt_state, tx=tx, num_data=5_000, batch_size=128)
# posterior, fit = l2m.fit_prior_precision(l2m.restrict(posterior, "Dense_2"))
#
# p = l2m.classification(l2m.linearized(key, model.apply, posterior, x, num_samples=64))
# ```
#
# `p.probs` are the class probabilities; `p.total` is their entropy, the sum of `p.aleatoric` (the
# image is ambiguous) and `p.epistemic` (the network has not seen enough of the kind).
#
# This notebook does so for images, for a table of measurements, for a curve that can be looked
# at, and around each member of an ensemble. It ends with one table and one picture. On two
# processor cores it takes about a minute.

# %%
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("l2m_optax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "l2m-optax[demo]"], check=True)

# %%
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.datasets import fetch_openml
from tqdm import tqdm

import l2m_optax as l2m
from l2m_optax import metrics

BEGINNING = time.perf_counter()
SEEDS = (0, 1, 2)
MEMBERS = 5

# %% [markdown]
# ## The data
#
# Three small sets of real data lie beside this notebook, in `data/`: 5,000 training, 1,000
# validation and 3,000 test images of clothes (Fashion-MNIST); 1,000 handwritten digits (MNIST),
# which a classifier of clothes should *not* be sure about; and the compressive strength of 1,030
# concrete mixtures. Where the folder is missing, as on Colab, sets of the same sizes are fetched
# from OpenML; without a network that ends in an error which says so.

# %%
DATA = Path(__file__).parent / "data" if "__file__" in globals() else Path("data")


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of one data set, from the folder or else from OpenML."""
    if DATA.is_dir():
        return dict(np.load(DATA / f"{name}.npz"))
    source = {
        "fashion_mnist_subset": {"name": "Fashion-MNIST", "version": 1},
        "mnist_subset": {"name": "mnist_784", "version": 1},
        "concrete": {"data_id": 44959},
    }[name]
    try:
        x, y = fetch_openml(**source, return_X_y=True, as_frame=False)
    except OSError as error:
        remedy = "connect to a network, or start the notebook in its own folder, beside data/"
        raise FileNotFoundError(
            f"{name}: neither in {DATA}/ nor on openml.org; {remedy}"
        ) from error
    if name == "concrete":
        return {"x": x.astype(np.float32), "y": y.astype(np.float32)}
    x, y = x.reshape(-1, 28, 28).astype(np.uint8), y.astype(np.uint8)
    if name == "mnist_subset":
        return {"x": x[-1_000:], "y": y[-1_000:]}
    parts = {"train": slice(5_000), "val": slice(5_000, 6_000), "test": slice(-3_000, None)}
    return {f"x_{part}": x[rows] for part, rows in parts.items()} | {
        f"y_{part}": y[rows] for part, rows in parts.items()
    }


def pixels(images: np.ndarray) -> np.ndarray:
    return (images.reshape(len(images), -1) / 255.0).astype(np.float32)


clothes, digits = load("fashion_mnist_subset"), load("mnist_subset")
x_train, y_train = pixels(clothes["x_train"]), clothes["y_train"].astype(np.int32)
x_val, y_val = pixels(clothes["x_val"]), clothes["y_val"].astype(np.int32)
x_test, y_test = pixels(clothes["x_test"]), clothes["y_test"].astype(np.int32)
x_both = jnp.concatenate([x_test, pixels(digits["x"])])  # clothes first, then digits
is_digit = np.arange(len(x_both)) >= len(x_test)

# %% [markdown]
# ## Training, as ever
#
# A flax network, `optax.adam` with a rate that falls to zero, a loop over shuffled batches:
# nothing below knows of `l2m_optax`. Two habits help it. The falling rate lets the network settle,
# so that `nu` holds the scatter of the gradients around an optimum. And the batches are much
# smaller than the data: with a full batch the gradients of the last steps would vanish, and with
# them all that `nu` could tell.


# %%
class MLP(nn.Module):
    widths: tuple[int, ...]  # the last is the number of outputs
    activation: Callable = nn.relu

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = self.activation(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Task(NamedTuple):
    model: nn.Module
    tx: optax.GradientTransformation
    step: Callable
    epochs: int
    batch_size: int


def make_task(model, loss, num_data, *, epochs, batch_size, learning_rate) -> Task:
    """What training needs; the step is compiled once and serves every seed."""
    steps = num_data // batch_size * epochs
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    @jax.jit
    def step(params, opt_state, x, y):
        grads = jax.grad(lambda p: loss(model.apply(p, x), y))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return Task(model, tx, step, epochs, batch_size)


class Trained(NamedTuple):
    params: Any
    opt_state: Any
    seconds: float


def train(task: Task, seed: int, x: np.ndarray, y: np.ndarray, bar: tqdm) -> Trained:
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    params = task.model.init(jax.random.key(seed), x[:1])
    opt_state = task.tx.init(params)
    whole = len(x) // task.batch_size * task.batch_size  # the incomplete last batch is dropped
    for _ in range(task.epochs):
        for batch in rng.permutation(len(x))[:whole].reshape(-1, task.batch_size):
            params, opt_state = task.step(params, opt_state, x[batch], y[batch])
        bar.update()
    jax.block_until_ready(params)
    return Trained(params, opt_state, time.perf_counter() - start)


# %% [markdown]
# ## 1. Classification
#
# Every number is a mean over three seeds. For each seed five networks are trained: the first is
# the network of this part, the other four wait for part 4.

# %%
images = make_task(
    MLP((128, 128, 10)),
    lambda logits, y: optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(),
    len(x_train),
    epochs=30,
    batch_size=128,
    learning_rate=1e-3,
)
apply_fn = images.model.apply

with tqdm(total=len(SEEDS) * MEMBERS * images.epochs, desc="images, epochs") as bar:
    ensembles = {
        seed: [
            train(images, MEMBERS * seed + member, x_train, y_train, bar)
            for member in range(MEMBERS)
        ]
        for seed in SEEDS
    }

# %% [markdown]
# Two baselines: the **mode**, which is the trained network as it is, and the mode with
# **temperature scaling**, which divides the logits by the one number that suits the validation
# images best.
#
# L2M in two ways. Over the **last layer** its prior comes from the evidence in closed form: no
# validation data, nothing tuned. Over **all layers** a diagonal posterior is too wide, for it
# leaves out the correlations between weights; one temperature, found by `tune` on the validation
# images, narrows it.
#
# Both predict with the network *linearised* around the trained weights (`linearized`). Running the
# network itself on sampled weights (`monte_carlo`) would lose accuracy with so wide a posterior.


# %%
def posterior_of(params, opt_state) -> l2m.posterior.Posterior:
    """The posterior over all layers; `tx` tells the decay that `nu` was averaged with."""
    return l2m.laplace(
        params, opt_state, tx=images.tx, num_data=len(x_train), batch_size=images.batch_size
    )


def last_layer_of(params, opt_state) -> l2m.posterior.Posterior:
    posterior = l2m.restrict(posterior_of(params, opt_state), "Dense_2")
    return l2m.fit_prior_precision(posterior).posterior


def mode(members: list[Trained]) -> l2m.predict.Classification:
    return l2m.classification(apply_fn(members[0].params, x_both)[None])


def temperature_scaling(members: list[Trained]) -> l2m.predict.Classification:
    logits = np.asarray(apply_fn(members[0].params, x_val))

    def loss(log_temperature: float) -> float:
        log_probs = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -log_probs[np.arange(len(y_val)), y_val].mean()

    temperature = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    return l2m.classification(apply_fn(members[0].params, x_both)[None] / temperature)


def last_layer(members: list[Trained]) -> l2m.predict.Classification:
    posterior = last_layer_of(members[0].params, members[0].opt_state)
    key = jax.random.key(0)
    return l2m.classification(l2m.linearized(key, apply_fn, posterior, x_both, num_samples=64))


def all_layers(members: list[Trained]) -> l2m.predict.Classification:
    posterior = posterior_of(members[0].params, members[0].opt_state)
    posterior = l2m.fit_prior_precision(posterior).posterior
    posterior = l2m.tune(apply_fn, posterior, x_val, y_val).posterior
    key = jax.random.key(0)
    return l2m.classification(l2m.linearized(key, apply_fn, posterior, x_both, num_samples=64))


# %% [markdown]
# What is measured: accuracy, negative log-likelihood (NLL) and expected calibration error (ECE) on
# the test images; and how well the entropy of the prediction tells digits from clothes, as the
# area under the ROC curve (AUROC: 0.5 is chance, 1 is perfect). Seconds are those a method costs
# beyond the training of one network: its posterior, whatever it fits, and the prediction of all
# 4,000 images. Those of the first seed include compilation; "again" is the mean of the others.


# %%
class Outcome(NamedTuple):
    """What one method did for one seed."""

    scores: dict[str, float]
    seconds: float
    prediction: Any


def timed(function: Callable, *args) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start


def judge_images(method: Callable, members: list[Trained]) -> Outcome:
    prediction, seconds = timed(method, members)
    probs = prediction.probs[: len(x_test)]
    scores = {
        "accuracy": metrics.accuracy(probs, y_test),
        "NLL": metrics.negative_log_likelihood(probs, y_test),
        "ECE": metrics.expected_calibration_error(probs, y_test),
        "AUROC": metrics.auroc(prediction.total, is_digit),
    }
    return Outcome({name: float(score) for name, score in scores.items()}, seconds, prediction)


image_methods = {
    "mode": mode,
    "mode, temperature scaling (v)": temperature_scaling,
    "L2M, last layer": last_layer,
    "L2M, all layers, tuned (v)": all_layers,
}
image_outcomes = {
    name: [judge_images(method, ensembles[seed]) for seed in SEEDS]
    for name, method in image_methods.items()
}

# %% [markdown]
# ## 2. Regression
#
# The strength of concrete from its eight ingredients and age, with a Gaussian likelihood. Training
# minimises the plain mean squared error. The negative log-likelihood of noise variance s² is that
# error divided by 2s², up to a constant, so `loss_scale` is 2s²: pass 2 and let
# `fit_noise_variance` find s² together with the prior. Both come from the evidence, given the
# training data. There is no validation data.
#
# The mode is given the variance of its training residuals as its noise, which is too little: the
# network has bent itself towards these very points. L2M counts how many parameters the data
# determine, corrects the noise for it, and adds the variance that comes from the weights, exactly
# (`output_variance`). Each seed splits the data anew, 90% for training and 10% for the test.
#
# The network has one hidden layer. With more, the diagonal over all layers is too wide here too;
# then `restrict` the posterior to the last.


# %%
def squared_error(outputs, y):
    return jnp.mean((y - outputs) ** 2)


def gaussian_posterior(task: Task, trained: Trained, x, y) -> l2m.posterior.Posterior:
    params = trained.params
    posterior = l2m.laplace(
        params,
        trained.opt_state,
        tx=task.tx,
        num_data=len(x),
        batch_size=task.batch_size,
        loss_scale=2.0,
    )
    return l2m.fit_noise_variance(task.model.apply, posterior, x, y).posterior


def gaussian_prediction(
    task: Task, posterior: l2m.posterior.Posterior, x
) -> l2m.predict.Regression:
    mean = task.model.apply(posterior.mean, x)
    epistemic = l2m.output_variance(task.model.apply, posterior, x)
    aleatoric = jnp.full_like(mean, posterior.noise_variance)
    return l2m.predict.Regression(mean, aleatoric + epistemic, aleatoric, epistemic)


table = load("concrete")
num_test = len(table["x"]) // 10
num_train = len(table["x"]) - num_test
concrete = make_task(
    MLP((50, 1), nn.tanh),
    squared_error,
    num_train,
    epochs=200,
    batch_size=32,
    learning_rate=1e-2,
)


class Split(NamedTuple):
    """Standardised inputs and targets, and what turns outputs back into MPa."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray  # in MPa
    center: float
    scale: float


def split_concrete(seed: int) -> Split:
    order = np.random.default_rng(seed).permutation(len(table["x"]))
    test, rest = order[:num_test], order[num_test:]
    x, y = table["x"], table["y"][:, None]
    center, scale = x[rest].mean(axis=0), x[rest].std(axis=0)
    x = (x - center) / scale
    center, scale = y[rest].mean(), y[rest].std()
    return Split(x[rest], (y[rest] - center) / scale, x[test], y[test], center, scale)


def in_mpa(prediction: l2m.predict.Regression, split: Split) -> l2m.predict.Regression:
    variances = [split.scale**2 * variance for variance in prediction[1:]]
    return l2m.predict.Regression(split.scale * prediction.mean + split.center, *variances)


def concrete_mode(trained: Trained, split: Split) -> l2m.predict.Regression:
    residuals = split.y_train - concrete.model.apply(trained.params, split.x_train)
    mean = concrete.model.apply(trained.params, split.x_test)
    noise = jnp.full_like(mean, jnp.mean(residuals**2))
    return in_mpa(l2m.predict.Regression(mean, noise, noise, jnp.zeros_like(mean)), split)


def concrete_l2m(trained: Trained, split: Split) -> l2m.predict.Regression:
    posterior = gaussian_posterior(concrete, trained, split.x_train, split.y_train)
    return in_mpa(gaussian_prediction(concrete, posterior, split.x_test), split)


def judge_concrete(method: Callable, trained: Trained, split: Split) -> Outcome:
    prediction, seconds = timed(method, trained, split)
    mean, variance, targets = prediction.mean, prediction.total, split.y_test
    scores = {
        "RMSE": metrics.root_mean_squared_error(mean, targets),
        "NLL": metrics.gaussian_negative_log_likelihood(mean, variance, targets),
        "covered": metrics.interval_coverage(mean, variance, targets, level=0.95),
    }
    return Outcome({name: float(score) for name, score in scores.items()}, seconds, prediction)


splits = [split_concrete(seed) for seed in SEEDS]
with tqdm(total=len(SEEDS) * concrete.epochs, desc="concrete, epochs") as bar:
    concrete_trained = [
        train(concrete, seed, split.x_train, split.y_train, bar)
        for seed, split in zip(SEEDS, splits, strict=True)
    ]
concrete_outcomes = {
    name: [judge_concrete(method, *args) for args in zip(concrete_trained, splits, strict=True)]
    for name, method in {"mode": concrete_mode, "L2M, all layers": concrete_l2m}.items()
}

# %% [markdown]
# ## 3. A picture of what it knows
#
# A curve with noise, seen on both sides of a gap. The mode draws one confident line through the
# gap. L2M's band is about as wide as the noise where there are data (the aleatoric part, which
# more data would not shrink) and widens in the gap (the epistemic part, which they would). A limit
# shows too: past the ends of the data the band stays narrow, for there the hidden units are
# saturated, and to move the weights a little changes little.


# %%
def curve(x):
    return np.sin(1.5 * x)


NOISE = 0.2
rng = np.random.default_rng(0)
x_toy = np.concatenate([rng.uniform(-3.0, -0.8, 75), rng.uniform(1.0, 3.0, 75)])[:, None]
y_toy = curve(x_toy) + NOISE * rng.normal(size=x_toy.shape)
x_toy, y_toy = x_toy.astype(np.float32), y_toy.astype(np.float32)
x_line = np.linspace(-4.0, 4.0, 401, dtype=np.float32)[:, None]

toy = make_task(
    MLP((16, 1), nn.tanh),
    squared_error,
    len(x_toy),
    epochs=1_000,
    batch_size=16,
    learning_rate=3e-2,
)
with tqdm(total=toy.epochs, desc="curve, epochs") as bar:
    toy_trained = train(toy, 0, x_toy, y_toy, bar)
toy_posterior = gaussian_posterior(toy, toy_trained, x_toy, y_toy)
toy_prediction = gaussian_prediction(toy, toy_posterior, x_line)

# %% [markdown]
# ## 4. With an ensemble
#
# Five networks from five seeds are a strong baseline, at five times the cost of training. L2M
# describes the surroundings of one optimum and an ensemble visits several, so the two combine.
# `predict` takes parameters with a leading axis, wherever they come from: the stacked members
# themselves, or draws from the posterior around each. Posteriors are pytrees, so `vmap` makes all
# five at once. (In the last layer the logits are linear in the weights, so there sampled weights
# are as good as linearising.)


# %%
def stack(trees: list) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def deep_ensemble(members: list[Trained]) -> l2m.predict.Classification:
    params = stack([member.params for member in members])
    return l2m.classification(l2m.predict.apply_ensemble(apply_fn, params, x_both))


def ensemble_of_l2m(members: list[Trained]) -> l2m.predict.Classification:
    params = stack([member.params for member in members])
    opt_states = stack([member.opt_state for member in members])
    posteriors = jax.vmap(last_layer_of)(params, opt_states)
    keys = jax.random.split(jax.random.key(0), len(members))
    draws = jax.vmap(lambda key, posterior: l2m.sample(key, posterior, 16))(keys, posteriors)
    draws = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), draws)
    return l2m.classification(
        l2m.predict.apply_ensemble(apply_fn, draws, x_both, chunk_size=MEMBERS)
    )


def judge_ensemble(method: Callable, members: list[Trained]) -> Outcome:
    """The further networks are a cost beyond the training of the first."""
    outcome = judge_images(method, members)
    further = sum(member.seconds for member in members[1:])
    return outcome._replace(seconds=outcome.seconds + further)


for name, method in {
    "deep ensemble of 5": deep_ensemble,
    "L2M around each of the 5": ensemble_of_l2m,
}.items():
    image_outcomes[name] = [judge_ensemble(method, ensembles[seed]) for seed in SEEDS]

# %% [markdown]
# ## The table
#
# Means over the three seeds, and the standard deviation between them. The methods marked (v) have
# used the validation images. For concrete most of the deviation is that of the splits, so it is the
# difference within a split that counts; the last line says in how many seeds L2M won.


# %%
def show_table(title: str, outcomes: dict[str, list[Outcome]], decimals: dict[str, int]) -> None:
    names = list(decimals)
    print(f"{title:<31}" + "".join(f"{name:^16}" for name in names) + " seconds   again")
    for method, runs in outcomes.items():
        cells = ""
        for name in names:
            scores = [run.scores[name] for run in runs]
            mean, spread = np.mean(scores), np.std(scores, ddof=1)
            cells += f"{f'{mean:.{decimals[name]}f} ± {spread:.{decimals[name]}f}':^16}"
        again = np.mean([run.seconds for run in runs[1:]])
        print(f"{method:<31}{cells}{runs[0].seconds:8.2f}{again:8.2f}")
    print()


def wins(outcomes: dict[str, list[Outcome]], method: str, score: str, sign: int) -> str:
    pairs = zip(outcomes[method], outcomes["mode"], strict=True)
    won = sum(sign * (run.scores[score] - other.scores[score]) > 0 for run, other in pairs)
    return f"{score} in {won} of {len(SEEDS)}"


print()
show_table(
    "Fashion-MNIST (AUROC: digits)",
    image_outcomes,
    {"accuracy": 3, "NLL": 3, "ECE": 3, "AUROC": 3},
)
show_table("Concrete strength (MPa)", concrete_outcomes, {"RMSE": 2, "NLL": 3, "covered": 3})
print("seconds: beyond training one network, first seed, with compilation; again: later seeds.")
print("Ensembles: with the training of their further networks.")
print("(v): uses the validation images. covered: by the central 95% interval.")
verdicts = [
    f"{method}: {wins(image_outcomes, method, 'NLL', -1)}, "
    f"{wins(image_outcomes, method, 'AUROC', 1)}"
    for method in ("L2M, last layer", "L2M, all layers, tuned (v)")
]
verdicts.append(f"concrete: {wins(concrete_outcomes, 'L2M, all layers', 'NLL', -1)}")
print(f"Seeds in which L2M beat the mode: {'; '.join(verdicts)}.")

# %% [markdown]
# ## The picture
#
# **a**: of the predictions made with some confidence, the share that is right; below the diagonal
# the network is too sure. **b**: the entropy of the predictions for clothes and for digits; the
# further apart, the easier digits are told from clothes. **c**: the curve of part 3. **d**: the
# strength of the concrete mixtures in the first test split. The mode's interval is the same for
# each and is drawn around the line of equality: it misses the points outside. L2M's has a width
# of its own for each, and misses where it does not reach that line.

# %%
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"  # Okabe & Ito's palette,
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#999999"  # safe for colour-blind readers


def draw_reliability(ax, num_bins: int = 10) -> None:
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    styles = {
        "mode": ("mode", BLACK, "o"),
        "mode, temperature scaling (v)": ("mode, temperature scaling", ORANGE, "s"),
        "L2M, last layer": ("L2M, last layer", BLUE, "^"),
        "L2M, all layers, tuned (v)": ("L2M, all layers, tuned", GREEN, "D"),
    }
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect calibration")
    for name, (label, color, marker) in styles.items():
        probs = np.concatenate(
            [run.prediction.probs[: len(x_test)] for run in image_outcomes[name]]
        )
        confidence = probs.max(axis=1)
        right = probs.argmax(axis=1) == np.tile(y_test, len(SEEDS))
        index = np.digitize(confidence, edges[1:-1])
        filled = [i for i in range(num_bins) if np.sum(index == i) >= 50]
        x = [confidence[index == i].mean() for i in filled]
        y = [right[index == i].mean() for i in filled]
        ax.plot(x, y, color=color, marker=marker, label=label)
    ax.set(xlim=(0.2, 1.0), ylim=(0.2, 1.0), xlabel="confidence", ylabel="accuracy")
    ax.legend(loc="upper left")
    ax.set_title(f"a  Reliability on clothes, {len(SEEDS)} seeds")


def draw_entropy(ax) -> None:
    bins = np.linspace(0.0, np.log(10), 31)
    for name, fill in {"L2M, last layer": True, "mode": False}.items():
        entropy = np.stack([run.prediction.total for run in image_outcomes[name]])
        for things, rows, color in (("clothes", ~is_digit, BLUE), ("digits", is_digit, VERMILLION)):
            ax.hist(
                entropy[:, rows].ravel(),
                bins,
                density=True,
                color=color,
                histtype="stepfilled" if fill else "step",
                alpha=0.4 if fill else 1.0,
                linewidth=1.8,
                label=f"{things}, {name}",
            )
    ax.set(xlim=(0.0, np.log(10)), xlabel="entropy of the prediction (nats)", ylabel="density")
    ax.legend(loc="upper right")
    ax.set_title(f"b  Clothes against digits, {len(SEEDS)} seeds")


def draw_curve(ax) -> None:
    x, mean = x_line[:, 0], np.asarray(toy_prediction.mean[:, 0])
    total = 1.96 * np.sqrt(toy_prediction.total[:, 0])
    noise = 1.96 * np.sqrt(toy_prediction.aleatoric[:, 0])
    aleatoric = {"color": BLUE, "alpha": 0.5, "lw": 0, "label": "noise alone (aleatoric)"}
    epistemic = {"color": SKY, "alpha": 0.4, "lw": 0}
    ax.fill_between(x, mean - noise, mean + noise, **aleatoric)
    ax.fill_between(
        x, mean + noise, mean + total, label="noise and weights (+ epistemic)", **epistemic
    )
    ax.fill_between(x, mean - total, mean - noise, **epistemic)
    ax.plot(x, mean, color=BLACK, label="mode")
    ax.plot(x, curve(x), color=BLACK, linestyle="--", label="truth")
    ax.scatter(x_toy, y_toy, s=10, color=VERMILLION, zorder=3, label="data")
    ax.set(xlim=(-4, 4), ylim=(-3, 4), xlabel="x (no unit)", ylabel="y (no unit)")
    ax.legend(loc="upper left", ncols=2)
    ax.set_title("c  A gap in the data, 95% bands")


def draw_concrete(ax) -> None:
    split, prediction = splits[0], concrete_outcomes["L2M, all layers"][0].prediction
    constant = concrete_outcomes["mode"][0].prediction
    targets, mean = split.y_test[:, 0], np.asarray(prediction.mean[:, 0])
    half = 1.96 * np.sqrt(prediction.total[:, 0])
    ends = np.array([0.0, 90.0])
    width = 1.96 * float(np.sqrt(constant.total[0, 0]))
    ax.plot(ends, ends, color=GREY, linestyle=":")
    ax.fill_between(
        ends,
        ends - width,
        ends + width,
        color=GREY,
        alpha=0.25,
        lw=0,
        label="mode, about equality",
    )
    covered = np.abs(targets - mean) <= half
    for rows, color, label in (
        (covered, BLUE, "L2M, covers"),
        (~covered, VERMILLION, "L2M, misses"),
    ):
        ax.errorbar(
            targets[rows],
            mean[rows],
            half[rows],
            fmt="o",
            color=color,
            markersize=4,
            elinewidth=1,
            label=label,
        )
    ax.set(xlim=ends, ylim=ends, xlabel="measured strength (MPa)")
    ax.set_ylabel("predicted strength (MPa)")
    ax.legend(loc="upper left")
    ax.set_title("d  Strength of concrete, 95% intervals")


style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
with plt.rc_context(style):
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    for ax, draw in zip(
        axes.flat, (draw_reliability, draw_entropy, draw_curve, draw_concrete), strict=True
    ):
        draw(ax)
    picture = Path("outputs") / "quickstart.png"
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=135)

print(f"The picture: {picture}")
print(f"All of it took {time.perf_counter() - BEGINNING:.0f} seconds after the imports.")
