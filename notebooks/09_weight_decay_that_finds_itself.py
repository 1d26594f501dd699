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
# # A weight decay that finds itself
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/09_weight_decay_that_finds_itself.ipynb)
#
# A weight decay is usually chosen like this: train with each of some values, and keep the one that is best on
# validation data. `evidence_weight_decay` needs one training and no validation data. It finds a decay for each layer
# while the network trains, and for a regression the noise too.
#
# Here a network learns the strength of concrete from its ingredients and its age: 824 mixtures for training, 103 for
# validation, 103 for the test. All is done for three splits of the data at once.

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
from sklearn.datasets import fetch_openml, load_diabetes

import l2m_optax as l2m

FOLDER = (Path(__file__).parent if "__file__" in globals() else Path()) / "data"
BATCH, EPOCHS, SPLITS = 32, 200, 3


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


def split(seed):
    """Inputs and targets for training, validation and test, standardised by the first."""
    order = np.random.default_rng(seed).permutation(len(x_all))
    parts = np.split(order, [NUM_DATA, -TENTH])

    def standard(a):
        return (a - a[parts[0]].mean(0)) / a[parts[0]].std(0)

    return [(standard(x_all)[rows], standard(y_all)[rows]) for rows in parts]


x_all, y_all = (np.asarray(a, "float32").reshape(len(a), -1) for a in concrete())
TENTH = len(x_all) // 10
NUM_DATA = len(x_all) - 2 * TENTH
training, validation, test = jax.tree.map(
    lambda *a: jnp.stack(a), *[split(seed) for seed in range(SPLITS)]
)

# %% [markdown]
# ## One loop
#
# Nothing in it is special but that `update` gets the parameters and the loss. After each epoch it keeps a record of the
# optimizer's state: `record()` holds a few numbers.

# %%
network = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(64), nn.relu, nn.Dense(1)])


def loss_fn(params, x, y):
    return 0.5 * jnp.mean((network.apply(params, x) - y) ** 2)


def train(data, weight_decay, record=lambda state: None):
    x, y = data
    steps = NUM_DATA // BATCH
    rate = optax.cosine_decay_schedule(1e-2, EPOCHS * steps, alpha=0.01)
    tx = optax.with_extra_args_support(optax.chain(weight_decay, optax.adam(rate)))

    def step(carry, rows):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, x[rows], y[rows])
        updates, state = tx.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        rows = jax.random.permutation(key, NUM_DATA)[: steps * BATCH].reshape(steps, BATCH)
        carry, _ = jax.lax.scan(step, carry, rows)
        return carry, record(carry[1])

    params = network.init(jax.random.key(0), x[:1])
    keys = jax.random.split(jax.random.key(1), EPOCHS)
    return jax.lax.scan(epoch, (params, tx.init(params)), keys)


def nll(params, noise_variance, data):
    mse = 2 * loss_fn(params, *data)
    return 0.5 * (jnp.log(2 * jnp.pi * noise_variance) + mse / noise_variance)


# %% [markdown]
# ## The usual way: eight trainings, and validation data
#
# The noise is the mean squared residual on the training data. The value of the least NLL on validation data is chosen,
# for each split.

# %%
GRID = np.array([0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]) / NUM_DATA


@jax.jit
@jax.vmap
def by_grid(training, validation, test):
    """The NLL of validation and test data for each value."""

    def measured(weight_decay):
        params = train(training, optax.add_decayed_weights(weight_decay))[0][0]
        noise = 2 * loss_fn(params, *training)
        return nll(params, noise, validation), nll(params, noise, test)

    return jax.vmap(measured)(GRID)


on_validation, on_test = by_grid(training, validation, test)  # of shape (splits, values)
chosen = jnp.argmin(on_validation, axis=1)
by_validation = jnp.take_along_axis(on_test, chosen[:, None], axis=1)[:, 0]
print("weight decay  test NLL of each split")
for w, of_splits in zip(GRID, on_test.T, strict=True):
    print(f"{w:12.5f} ", *[f"{value:9.3f}" for value in of_splits])
print("      chosen ", *[f"{value:9.3f}" for value in by_validation])

# %% [markdown]
# ## One training, and no validation data
#
# A prior of precision δ is a weight decay of $c\,\delta/N$, and c is the noise variance $s^2$ here. The evidence says
# which δ the data support: that for which $\delta\,\lVert\theta\rVert^2$ is the number of parameters that the data
# determine. Both sides pass through the optimizer in every step.


# %%
@jax.jit
@jax.vmap
def by_evidence(data):
    found = l2m.evidence_weight_decay(num_data=NUM_DATA, batch_size=BATCH, likelihood="gaussian")
    return train(data, found, lambda state: state[0].record())


(params, opt_state), history = by_evidence(training)
found = opt_state[0]  # the state of `evidence_weight_decay`
one = jax.vmap(nll)(params, found.noise_variance, test)
print("test NLL by the evidence:", *[f"{value:9.3f}" for value in one])
print("that of the grid:        ", *[f"{value:9.3f}" for value in by_validation])
print("standard deviation of the noise:", np.sqrt(found.noise_variance).round(2))
decays = {
    name: float(jnp.mean(found.noise_variance * layer["kernel"] / NUM_DATA))
    for name, layer in found.prior_precision["params"].items()
}
print("weight decay of each layer:", {name: round(w, 5) for name, w in decays.items()})

# %%
figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
places = np.where(GRID > 0, GRID, GRID[1] / 3)  # 0 has no place on a logarithmic axis
ax.plot(places, on_test.mean(0), "o-", color="#0072B2", label="a grid: eight trainings")
usual, level = float(by_validation.mean()), float(one.mean())
label = f"chosen with validation data: {usual:.2f}"
ax.axhline(usual, color="#0072B2", linestyle="--", label=label)
label = f"one training, no validation data: {level:.2f}"
ax.axhline(level, color="#D55E00", linewidth=2.5, label=label)
for w, layer in zip(decays.values(), ("first", "second", "last"), strict=True):
    ax.plot(w, level, "v", color="#D55E00", markersize=9)
    high = 9 if layer != "second" else 22
    ax.annotate(layer, (w, level), (0, high), textcoords="offset points", ha="center")
ax.set(xscale="log", xlabel="weight decay", ylabel="test NLL (nats), mean of three splits")
ax.set_ylim(None, max(2.0, 1.2 * usual))
ax.set_xticks([places[0], 1e-3, 1e-2, 1e-1], ["none", "0.001", "0.01", "0.1"])
ax.set_title("A weight decay that finds itself (▼: that of each layer)")
ax.legend(frameon=False, loc="upper center")
plt.show()

# %% [markdown]
# ## How it went
#
# `plot.training` draws the records of one training. γ is the number of parameters that the data determine, out of 4,801.
# Each layer has a δ, for kernel and bias.

# %%
axes = l2m.plot.training(jax.tree.map(lambda a: a[0], history))
axes[0].figure.suptitle("One training, seen from the optimizer's state")
plt.show()

# %% [markdown]
# ## The posterior is there as well
#
# The state holds the second moment, the prior and the noise. `laplace` and `fit` take all three from it.

# %%
first = jax.tree.map(lambda a: a[0], (params, opt_state))
posterior = l2m.laplace(*first, num_data=NUM_DATA, batch_size=BATCH)
l2m.plot.posterior_layers(posterior)
plt.show()
