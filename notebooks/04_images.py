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
# # Clothes and digits: calibrated, selective, and aware of what it has not seen
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/04_images.ipynb)
#
# A small convolutional network learns clothes (Fashion-MNIST). Is its confidence right? Which
# images should it hand to a person? Does it notice that a handwritten digit is none of its
# business? It takes about a minute, most of it training.

# %%
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("l2m_optax") is None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "l2m-optax[notebooks]"], check=True
    )

# %%
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import fetch_openml

import l2m_optax as l2m
from l2m_optax import decisions, metrics, plot

# %% [markdown]
# ## The data
#
# 5,000 training, 1,000 validation and 3,000 test images, and 1,000 digits, lie beside this
# notebook in the repository. Elsewhere, as on Colab, they come from OpenML.

# %%
DATA = Path(__file__).parent / "data" if "__file__" in globals() else Path("data")


def image(x):
    return np.asarray(x, np.float32).reshape(-1, 28, 28, 1) / 255.0


def fetch(name):
    try:
        x, y = fetch_openml(name, version=1, return_X_y=True, as_frame=False)
    except OSError as error:
        remedy = "connect to a network, or start the notebook in its own folder, beside data/"
        raise FileNotFoundError(
            f"{name}: neither in {DATA}/ nor on openml.org; {remedy}"
        ) from error
    return x, y.astype(np.int32)


def load():
    if DATA.is_dir():
        clothes = np.load(DATA / "fashion_mnist_subset.npz")
        digits = np.load(DATA / "mnist_subset.npz")["x"]
        parts = [(clothes[f"x_{part}"], clothes[f"y_{part}"]) for part in ("train", "val", "test")]
    else:
        (x, y), (digits, _) = fetch("Fashion-MNIST"), fetch("mnist_784")
        rows = (slice(5_000), slice(5_000, 6_000), slice(-3_000, None))
        parts, digits = [(x[part], y[part]) for part in rows], digits[-1_000:]
    return *((image(x), np.asarray(y, np.int32)) for x, y in parts), image(digits)


(x_train, y_train), (x_val, y_val), (x_test, y_test), digits = load()

# %% [markdown]
# ## Training, as ever

# %%
EPOCHS, BATCH = 20, 50
NUM_DATA = len(x_train)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (8, 16):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(x)


apply_fn = Network().apply
tx = optax.adam(optax.cosine_decay_schedule(3e-3, EPOCHS * NUM_DATA // BATCH))


@jax.jit
def train_step(params, opt_state, x, y):
    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, x), y).mean()

    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


params = Network().init(jax.random.key(0), x_train[:1])
opt_state = tx.init(params)
rng = np.random.default_rng(0)
for _ in range(EPOCHS):
    for rows in rng.permutation(NUM_DATA).reshape(-1, BATCH):
        params, opt_state = train_step(params, opt_state, x_train[rows], y_train[rows])

# %% [markdown]
# ## Three lines, and a prediction
#
# The posterior is over the last layer, with the prior of the evidence: no validation data are used.
# `diagnose` says whether the state can be trusted.

# %%
moment = l2m.second_moment(opt_state, params, tx=tx)
posterior = l2m.laplace(params, moment, num_data=NUM_DATA, batch_size=BATCH)
posterior, fit = l2m.fit_prior_precision(l2m.restrict(posterior, "head"))
print(l2m.diagnose(posterior, moment))

# %%
predictive = jax.jit(
    lambda posterior, x: l2m.linearized(jax.random.key(1), apply_fn, posterior, x, num_samples=64)
)
logits = {
    "mode": jax.jit(apply_fn)(params, x_test)[None],
    "L2M, last layer": predictive(posterior, x_test),
}
of_digits = {
    "mode": jax.jit(apply_fn)(params, digits)[None],
    "L2M, last layer": predictive(posterior, digits),
}
clothes = {name: l2m.classification(value) for name, value in logits.items()}
others = {name: l2m.classification(value) for name, value in of_digits.items()}

is_digit = jnp.arange(len(x_test) + len(digits)) >= len(x_test)
print(f"{'':18}{'accuracy':>10}{'NLL':>8}{'ECE':>8}{'Brier':>8}{'AURC':>8}{'AUROC (digits)':>16}")
for name, p in clothes.items():
    wrong = jnp.argmax(p.probs, axis=-1) != y_test
    row = (
        metrics.accuracy(p.probs, y_test),
        metrics.negative_log_likelihood(p.probs, y_test),
        metrics.expected_calibration_error(p.probs, y_test),
        metrics.brier_score(p.probs, y_test),
        metrics.aurc(p.total, wrong),
    )
    detected = metrics.auroc(jnp.concatenate([p.total, others[name].total]), is_digit)
    print(f"{name:18}{row[0]:10.3f}" + "".join(f"{v:8.3f}" for v in row[1:]) + f"{detected:16.3f}")

# %%
p, mode = clothes["L2M, last layer"], clothes["mode"]
wrong = jnp.argmax(p.probs, axis=-1) != y_test
figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
for ax, name in zip(axes[0], ("mode", "L2M, last layer"), strict=True):
    plot.reliability_diagram(clothes[name].probs, y_test, ax=ax)
    ax.set_xlabel(f"confidence: {name}")
plot.risk_coverage(p.total, wrong, ax=axes[1, 0])
plot.entropy_histogram(p.total, others["L2M, last layer"].total, ax=axes[1, 1])
plt.show()

# %% [markdown]
# ## Hand over what it is unsure of
#
# A threshold chosen on the validation images, so that one answer in twenty is wrong, and what it
# comes to on the test images.

# %%
on_val = l2m.classification(predictive(posterior, x_val))
kept = decisions.selective_threshold(
    on_val.total, jnp.argmax(on_val.probs, axis=-1) != y_val, risk=0.05
)
answered = p.total <= kept.threshold
print(f"wrong when every image is answered: {float(wrong.mean()):.3f}")
share, risk = float(answered.mean()), float(wrong[answered].mean())
print(f"wrong among the {share:.0%} that are answered: {risk:.3f}")

# %% [markdown]
# The images it is least sure of, clothes first, with what it thinks of them:

# %%
NAMES = [
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]
figure, axes = plt.subplots(2, 8, figsize=(13, 4), layout="constrained")
for row, (images, prediction) in zip(
    axes, ((x_test, p), (digits, others["L2M, last layer"])), strict=True
):
    for ax, i in zip(row, jnp.argsort(-prediction.total)[:8].tolist(), strict=True):
        ax.imshow(images[i, :, :, 0], cmap="gray_r")
        best = jnp.argsort(-prediction.probs[i])[:2].tolist()
        ax.set_title(
            "\n".join(f"{NAMES[k]} {prediction.probs[i, k]:.0%}" for k in best), fontsize=9
        )
        ax.axis("off")
plt.show()
