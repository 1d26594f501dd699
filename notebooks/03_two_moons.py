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
# A classifier with rectified units grows surer the further an input lies from all it has seen: its
# logits grow in a straight line. Their uncertainty under a posterior grows as fast, which bounds
# the confidence. It takes less than a minute.

# %%
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("l2m_optax") is None:
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "l2m-optax[notebooks]"], check=True
    )

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
x_train, x_val, y_train, y_val = x[:TRAIN], x[TRAIN:], y[:TRAIN], y[TRAIN:]

# %% [markdown]
# ## Training, as ever

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
# ## Three lines
#
# The last layer for a classifier without validation data; all layers, with the temperature that 200
# validation examples ask for; and five networks for comparison.

# %%
whole = l2m.laplace(params, opt_state, tx=tx, num_data=TRAIN, batch_size=BATCH)
last, _ = l2m.fit_prior_precision(l2m.restrict(whole, "layers_4"))

whole, _ = l2m.fit_prior_precision(whole)
whole, tuned = l2m.tune(apply_fn, whole, x_val, y_val)
print(f"temperature over all layers: {float(tuned.value):.3g}")

members, _ = jax.vmap(train)(jax.random.split(jax.random.key(1), 5))

# %%
side = np.linspace(-4.0, 5.0, 121, dtype=np.float32)
grid = np.stack(np.meshgrid(side, side - 0.25), axis=-1).reshape(-1, 2)
key = jax.random.key(2)


def predict(inputs):
    def draws(posterior):
        return l2m.linearized(key, apply_fn, posterior, inputs, num_samples=64)

    return {
        "mode": l2m.classification(apply_fn(params, inputs)[None]),
        "L2M, last layer": l2m.classification(draws(last)),
        "L2M, all layers, tuned": l2m.classification(draws(whole)),
        "ensemble of 5": l2m.classification(l2m.predict.apply_ensemble(apply_fn, members, inputs)),
    }


on_grid, on_val = predict(grid), predict(x_val)
far = np.linalg.norm(grid - x_train.mean(axis=0), axis=1) > 4.0
print(f"{'':24}{'NLL near the data':>18}{'mean confidence far from it':>30}")
for name in on_grid:
    nll = metrics.negative_log_likelihood(on_val[name].probs, y_val)
    confidence = jnp.max(on_grid[name].probs, axis=-1)[far].mean()
    print(f"{name:24}{float(nll):18.3f}{float(confidence):30.3f}")

# %% [markdown]
# ## The confidence of each, everywhere

# %%
figure, axes = plt.subplots(1, 4, figsize=(14, 4), sharey=True, layout="constrained")
for ax, (name, prediction) in zip(axes, on_grid.items(), strict=True):
    confidence = np.max(prediction.probs, axis=-1).reshape(len(side), -1)
    picture = ax.contourf(
        side, side - 0.25, confidence, levels=np.linspace(0.5, 1.0, 11), cmap="Blues"
    )
    for label, color, marker in ((0, "#D55E00", "o"), (1, "#E69F00", "^")):
        ax.scatter(*x_train[y_train == label].T, s=6, color=color, marker=marker)
    ax.set(title=name, aspect="equal")
figure.colorbar(picture, ax=axes, label="confidence", shrink=0.8)
plt.show()

# %% [markdown]
# The mode's boundary is a line, as sharp far from the data as between the moons. L2M, which
# trained one network, opens it with distance as the ensemble of five does, since where it lies out
# there the data did not say. What a prediction is unsure *of* is told apart by `classification`:
# where the moons meet the classes overlap (aleatoric), far away the weights disagree (epistemic).

# %%
prediction = on_grid["L2M, last layer"]
figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharey=True, layout="constrained")
for ax, name in zip(axes, ("aleatoric", "epistemic"), strict=True):
    part = np.asarray(getattr(prediction, name)).reshape(len(side), -1)
    picture = ax.contourf(side, side - 0.25, part, levels=12, cmap="Purples")
    ax.scatter(*x_train.T, s=3, color="#333333")
    ax.set(title=f"{name} (nats)", aspect="equal")
    figure.colorbar(picture, ax=ax, shrink=0.8)
plt.show()
