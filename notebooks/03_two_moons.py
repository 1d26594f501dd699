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
# # Two moons: a decision far from the data
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/03_two_moons.ipynb)
#
# A classifier with rectified units becomes more certain the further an input lies from all that it has seen. Its
# logits grow in a straight line. Under a posterior the uncertainty of the logits grows as fast, and this limits the
# confidence. It takes less than a minute.

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
from sklearn.datasets import make_moons

import l2m_optax as l2m
from l2m_optax import metrics

TRAIN, BATCH, STEPS = 500, 32, 3_000

x, y = make_moons(TRAIN + 200, noise=0.2, random_state=0)
x, y = x.astype(np.float32), y.astype(np.int32)
x_train, x_test, y_train, y_test = x[:TRAIN], x[TRAIN:], y[:TRAIN], y[TRAIN:]

# %% [markdown]
# ## Train as always

# %%
model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(32), nn.relu, nn.Dense(2)])
apply_fn = model.apply
tx = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))


@jax.jit
def train(key):
    start, batches = jax.random.split(key)

    def step(carry, key):
        params, opt_state = carry
        rows = jax.random.choice(key, TRAIN, (BATCH,), replace=False)

        def loss(params):
            logits = apply_fn(params, jnp.asarray(x_train)[rows])
            labels = jnp.asarray(y_train)[rows]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    params = model.init(start, x_train[:1])
    return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(batches, STEPS))[0]


params, opt_state = train(jax.random.key(0))

# %% [markdown]
# ## Two lines
#
# A posterior over the last layer. The evidence chooses its prior, so that no validation data are needed. For
# comparison, an ensemble: five more networks.

# %%
posterior = l2m.laplace(params, opt_state, tx=tx, num_data=TRAIN, batch_size=BATCH)
posterior, _ = l2m.fit_prior_precision(l2m.restrict(posterior, "layers_4"))

members = [train(key)[0] for key in jax.random.split(jax.random.key(1), 5)]

# %%
side = np.linspace(-4.0, 5.0, 121, dtype=np.float32)
grid = np.stack(np.meshgrid(side, side - 0.25), axis=-1).reshape(-1, 2)
points = np.concatenate([grid, x_test])
logits = jnp.stack([apply_fn(weights, points) for weights in (params, *members)])
predictions = {
    "network alone": l2m.classification(logits[:1]),
    "L2M": l2m.classify(apply_fn, posterior, points),
    "ensemble of 5": l2m.classification(logits[1:]),
}

far = np.linalg.norm(grid - x_train.mean(axis=0), axis=1) > 4.0
print(f"{'':16}{'NLL of test points':>20}{'mean confidence far from the data':>36}")
for name, p in predictions.items():
    nll = metrics.negative_log_likelihood(p.probs[len(grid) :], y_test)
    confidence = p.probs[: len(grid)].max(axis=-1)[far].mean()
    print(f"{name:16}{float(nll):20.3f}{float(confidence):36.3f}")

# %% [markdown]
# ## Where each is certain

# %%
plt.rcParams["font.size"] = 14


def on_grid(values):
    return np.asarray(values[: len(grid)]).reshape(len(side), -1)


figure, axes = plt.subplots(1, 3, figsize=(13, 5), sharey=True, layout="constrained")
for ax, (name, p) in zip(axes, predictions.items(), strict=True):
    shades = np.linspace(0.5, 1.0, 11)
    confidence = on_grid(p.probs.max(axis=-1))
    picture = ax.contourf(side, side - 0.25, confidence, levels=shades, cmap="Blues")
    for label, color, marker in ((0, "#D55E00", "o"), (1, "#E69F00", "^")):
        ax.scatter(*x_train[y_train == label].T, s=6, color=color, marker=marker)
    ax.set(title=name, xlabel="first input", aspect="equal")
axes[0].set_ylabel("second input")
figure.colorbar(picture, ax=axes, label="confidence", shrink=0.8, ticks=shades[::2])
figure.suptitle("Away from the data L2M widens the boundary, as five networks do", fontsize=18)
plt.show()

# %% [markdown]
# The boundary of the network alone is a line, as sharp far from the data as between the moons. L2M widens it with
# distance, as the ensemble does, because the data do not say where it lies out there. L2M trained one network, the
# ensemble five.
#
# ## Why it is uncertain
#
# Where the moons meet, the classes overlap (aleatoric). More data would not help. Far away the weights disagree
# (epistemic). Data from there would help.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True, layout="constrained")
for ax, name in zip(axes, ("aleatoric", "epistemic"), strict=True):
    part = on_grid(getattr(predictions["L2M"], name))
    shades = np.linspace(0.0, 0.7, 15)  # a fair coin has 0.69 nats
    picture = ax.contourf(side, side - 0.25, part, levels=shades, cmap="Purples")
    ax.scatter(*x_train.T, s=3, color="#333333")
    ax.set(title=name, xlabel="first input", aspect="equal")
axes[0].set_ylabel("second input")
figure.colorbar(picture, ax=axes, label="uncertainty (nats)", shrink=0.8, ticks=shades[::2])
figure.suptitle("The classes overlap in the middle; the weights disagree far away", fontsize=18)
plt.show()
