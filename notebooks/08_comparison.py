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
# # The comparison: the network alone, temperature scaling, L2M, an ensemble
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/08_comparison.ipynb)
#
# Three networks are trained on 5,000 images of clothes, and three more on mixtures of concrete. Each method gets the same
# weights. Methods marked (v) use validation data; the others use the training data only.

# %%
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

needs, extra = ("l2m_optax", "flax", "matplotlib", "sklearn"), "demo"

if not all(map(find_spec, needs)):  # install it: from this clone, or else from the package index
    source = ".." if Path("../l2m_optax").is_dir() else "l2m-optax"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-color", f"{source}[{extra}]"]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise SystemExit(f"{reason}: run pip install '.[{extra}]' in a clone of the repository")

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.optimize import minimize_scalar
from sklearn.datasets import fetch_openml, load_diabetes, load_digits

import l2m_optax as l2m
from l2m_optax import metrics

FOLDER = (Path(__file__).parent if "__file__" in globals() else Path()) / "data"


def clothes():
    """Images and labels: of this folder, else of OpenML, else digits that scikit-learn holds."""
    if FOLDER.exists():
        arrays, parts = np.load(FOLDER / "fashion_mnist_subset.npz"), ("train", "val", "test")
        return [np.concatenate([arrays[f"{name}_{part}"] for part in parts]) for name in "xy"]
    try:
        return fetch_openml(data_id=40996, return_X_y=True, as_frame=False, parser="liac-arff")
    except OSError:
        print("OpenML does not answer: noisy digits stand in for the clothes of the text.")
        x, y = load_digits(return_X_y=True)
        return x + np.random.default_rng(0).normal(0, 5, x.shape), y


def split(x):
    """The first 5,000 of 9,000 to train, then 1,000 to validate and 3,000 to test."""
    return np.split(x[:9_000], [min(len(x), 9_000) * ninths // 9 for ninths in (5, 6)])


def concrete():
    """Mixtures and their strength: of this folder, else of OpenML, else diabetes patients."""
    if FOLDER.exists():
        arrays = np.load(FOLDER / "concrete.npz")
        return arrays["x"], arrays["y"]
    try:
        return fetch_openml(data_id=44959, return_X_y=True, as_frame=False, parser="liac-arff")
    except OSError:
        print("OpenML does not answer: diabetes patients stand in for the concrete of the text.")
        return load_diabetes(return_X_y=True)


# %% [markdown]
# ## One loop for all networks


# %%
def mlp(*widths):
    layers = [part for width in widths[:-1] for part in (nn.Dense(width), nn.relu)]
    return nn.Sequential([*layers, nn.Dense(widths[-1])])


def trainer(network, loss, x, y, *, epochs, batch_size):
    """The optimizer, and ``train(seed, x, y) -> (params, opt_state)``, compiled once."""
    steps = len(x) // batch_size
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, epochs * steps))

    def step(carry, batch):
        params, opt_state = carry
        grads = jax.grad(lambda p: loss(network.apply(p, batch[0]), batch[1]))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def train(seed, x, y):
        def epoch(carry, key):
            rows = jax.random.permutation(key, len(x))[: steps * batch_size]
            rows = rows.reshape(steps, batch_size)
            return jax.lax.scan(step, carry, (x[rows], y[rows]))

        key = jax.random.key(seed)
        params = network.init(key, x[:1])
        return jax.lax.scan(epoch, (params, tx.init(params)), jax.random.split(key, epochs))[0]

    return tx, train


# %% [markdown]
# ## Images

# %%
NETWORKS = 3
images, labels = clothes()
images = (images.reshape(len(images), -1) / float(images.max())).astype("float32")
(x, x_val, x_test), (y, y_val, y_test) = split(images), split(labels.astype("int32"))
network = mlp(128, 128, 10)
apply_fn = network.apply
tx, train = trainer(
    network,
    lambda logits, y: optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(),
    *(x, y),
    epochs=30,
    batch_size=50,
)
trained = [train(seed, x, y) for seed in range(NETWORKS)]


def alone(params, opt_state):
    return jax.nn.softmax(apply_fn(params, x_test))


def temperature_scaling(params, opt_state):
    def loss(log):
        probs = jax.nn.softmax(apply_fn(params, x_val) / np.exp(log))
        return float(metrics.negative_log_likelihood(probs, y_val))

    log = minimize_scalar(loss, bounds=(-2, 3), method="bounded").x
    return jax.nn.softmax(apply_fn(params, x_test) / np.exp(log))


def fitted(params, opt_state, validation=None):
    posterior, _ = l2m.fit(
        apply_fn, params, opt_state, tx=tx, data=(x, y), batch_size=50, validation=validation
    )
    return l2m.classify(apply_fn, posterior, x_test).probs


def fitted_by_validation(params, opt_state):
    return fitted(params, opt_state, (x_val, y_val))


METHODS = {
    "network alone": alone,
    "temperature scaling (v)": temperature_scaling,
    "L2M": fitted,
    "L2M (v)": fitted_by_validation,
}
probs = {name: [method(*pair) for pair in trained] for name, method in METHODS.items()}

# %% [markdown]
# An ensemble averages the probabilities of its networks. So does an ensemble of posteriors. It costs three trainings.

# %%
probs[f"ensemble of {NETWORKS}"] = [sum(probs["network alone"]) / NETWORKS]
probs["L2M (v) around each of them"] = [sum(probs["L2M (v)"]) / NETWORKS]
MEASURES = {
    "accuracy": metrics.accuracy,
    "NLL": metrics.negative_log_likelihood,
    "ECE": metrics.expected_calibration_error,
}
print(f"{'':30}" + "".join(f"{name:^16}" for name in MEASURES))
for name, runs in probs.items():
    cells = ""
    for measure in MEASURES.values():
        values = [float(measure(run, y_test)) for run in runs]
        spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
        cells += f"{f'{np.mean(values):.3f}{spread}':^16}"
    print(f"{name:30}{cells}")
print("± is the standard deviation between networks.")

# %% [markdown]
# ## Numbers
#
# The strength of concrete from its ingredients and age. The loss is ``mean((y - f)²)``, whose `loss_scale` is 2. The
# network alone gets the best constant noise: that of its training residuals, or of its validation residuals (v). RMSE
# is that of the network in every row. "In 90%" is the share of test targets in the 90% interval.

# %%
x_all, y_all = (array.reshape(len(array), -1).astype("float32") for array in concrete())
regressor = mlp(64, 64, 1)
num_train, num_held = len(x_all) * 8 // 10, len(x_all) // 10
tx_numbers, train_numbers = trainer(
    regressor,
    lambda outputs, y: jnp.mean((y - outputs) ** 2),
    *(x_all[:num_train], y_all[:num_train]),
    epochs=150,
    batch_size=32,
)


def split(seed):
    """Standardised pairs to train, to validate and to test."""
    order = np.random.default_rng(seed).permutation(len(x_all))
    first = order[:num_train]
    x = (x_all - x_all[first].mean(axis=0)) / x_all[first].std(axis=0)
    y = (y_all - y_all[first].mean()) / y_all[first].std()
    return [(x[rows], y[rows]) for rows in np.split(order, [num_train, num_train + num_held])]


def constant_noise(params, pair, test):
    """The network alone: its output, and a variance that is the same for all inputs."""
    mean = regressor.apply(params, test[0])
    noise = jnp.full_like(mean, jnp.mean((pair[1] - regressor.apply(params, pair[0])) ** 2))
    return l2m.predict.Regression(mean, noise, noise, 0 * noise)


def fitted_numbers(params, opt_state, pair, test, validation=None):
    posterior, _ = l2m.fit(
        regressor.apply,
        params,
        opt_state,
        tx=tx_numbers,
        data=pair,
        batch_size=32,
        likelihood="gaussian",
        loss_scale=2.0,
        validation=validation,
    )
    return l2m.regress(regressor.apply, posterior, test[0])


rows = {name: [] for name in ("network alone", "L2M", "network alone (v)", "L2M (v)")}
for seed in range(NETWORKS):
    pair, held_out, test = split(seed)
    params, opt_state = train_numbers(seed, *pair)
    predictions = (
        constant_noise(params, pair, test),
        fitted_numbers(params, opt_state, pair, test),
        constant_noise(params, held_out, test),
        fitted_numbers(params, opt_state, pair, test, held_out),
    )
    for scores, predicted in zip(rows.values(), predictions, strict=True):
        nll = metrics.gaussian_negative_log_likelihood(predicted.mean, predicted.total, test[1])
        covered = metrics.interval_coverage(predicted.mean, predicted.total, test[1], level=0.9)
        scores.append((float(nll), float(covered)))

print(f"{'':30}{'NLL':^16}{'in 90%':^16}")
for name, scores in rows.items():
    means, spreads = np.mean(scores, axis=0), np.std(scores, axis=0, ddof=1)
    cells = [f"{f'{m:.3f} ± {s:.3f}':^16}" for m, s in zip(means, spreads, strict=True)]
    print(f"{name:30}{''.join(cells)}")

# %% [markdown]
# ## What it says
#
# With validation images, temperature scaling and L2M are equally good on one network of images: `fit` includes a factor on
# the logits. L2M also says where the network has not seen enough, works for numbers, and adds to an ensemble. Without
# validation data L2M improves every network a little on images. On numbers its 90% intervals are then too wide, while
# those of the network alone, which knows only its training residuals, are much too narrow.
#
# ## The picture

# %%
plt.rcParams["font.size"] = 14
figure, ax = plt.subplots(figsize=(10, 5), layout="constrained")
for place, (name, runs) in enumerate(reversed(probs.items())):
    values = [float(metrics.negative_log_likelihood(run, y_test)) for run in runs]
    color = "#0072B2" if "L2M" in name else "#D55E00"
    ax.plot(values, [place] * len(values), "o", color=color, alpha=0.6, ms=9)
ax.set_yticks(range(len(probs)), list(probs)[::-1])
ax.set(xlabel="test NLL in nats (lower is better), one dot a network")
ax.grid(axis="y", alpha=0.3)
figure.suptitle("Validation data help most, and an ensemble adds to them", fontsize=18)
Path("outputs").mkdir(exist_ok=True)
figure.savefig("outputs/comparison.png", dpi=110)
