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
# # Many devices
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/07_many_devices.ipynb)
#
# The second moment is sharded as the parameters are, and so is the posterior. This needs no function of its own: the
# same calls work on one device and on eight, and draw the same numbers. Here the eight devices are virtual and share one
# processor. The code is that of a TPU slice. It takes less than a minute.

# %%
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

needs, extra = ("l2m_optax", "matplotlib", "sklearn"), "demo"

if not all(map(find_spec, needs)):  # install it: from this clone, or else from the package index
    source = ".." if Path("../l2m_optax").is_dir() else "l2m-optax"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-color", f"{source}[{extra}]"]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise SystemExit(f"{reason}: run pip install '.[{extra}]' in a clone of the repository")

# %%
import os

os.environ["XLA_FLAGS"] = (  # before jax is imported
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

# %%
import re

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import l2m_optax as l2m
from l2m_optax import metrics

print(jax.devices())

# %% [markdown]
# ## A mesh: data along one axis, the model along the other

# %%
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
specs = {
    "body": {"w": P(None, "model"), "b": P("model")},
    "head": {"w": P("model", None), "b": P()},
}
shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

images, labels = load_digits(return_X_y=True)
images = images / 16 + 0.3 * np.random.default_rng(1).normal(size=images.shape)
images = images.astype(np.float32)
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]


def apply_fn(params, x):
    hidden = jax.nn.relu(x @ params["body"]["w"] + params["body"]["b"])
    return hidden @ params["head"]["w"] + params["head"]["b"]


def initial(key):
    one, two = jax.random.split(key)
    return {
        "body": {"w": jax.random.normal(one, (64, 128)) / 8, "b": jnp.zeros(128)},
        "head": {"w": jax.random.normal(two, (128, 10)) / 11, "b": jnp.zeros(10)},
    }


# %% [markdown]
# ## Train as always
#
# Parameters are made in their shards, and so is Adam's state. Batches are split over `data`. (The loop waits for each
# step because virtual devices can block one another.)

# %%
BATCH, STEPS = 40, 2_100
params = jax.jit(initial, out_shardings=shardings)(jax.random.key(0))
tx = optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS), weight_decay=0.1)
opt_state = jax.jit(tx.init)(params)


@jax.jit
def train_step(params, opt_state, x, y):
    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, x), y).mean()

    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


rng = np.random.default_rng(0)
split = NamedSharding(mesh, P("data"))
for _ in range(STEPS * BATCH // len(x)):
    for rows in rng.permutation(len(x)).reshape(-1, BATCH):
        batch = jax.device_put((x[rows], y[rows]), split)
        params, opt_state = jax.block_until_ready(train_step(params, opt_state, *batch))

# %% [markdown]
# ## The posterior lies where the parameters lie
#
# Nothing is gathered. Each device makes its part of the draws.

# %%
posterior = l2m.laplace(params, opt_state, tx=tx, num_data=len(x), batch_size=BATCH)
posterior, fit = l2m.fit_prior_precision(l2m.restrict(posterior, "head"))
draws = l2m.sample(jax.random.key(1), posterior, 4)

arrays = {
    "parameters": params["head"]["w"],
    "second moment": posterior.second_moment.nu["head"]["w"],
    "one draw": draws["head"]["w"][0],
}
for name, array in arrays.items():
    print(f"{name:14} {array.shape!s:14} {array.sharding.spec}")


# %%
def devices_of(array):
    """For each entry, the first of the devices that hold it."""
    holders = np.full(array.shape, 8)
    for device, rows in array.sharding.devices_indices_map(array.shape).items():
        holders[rows] = np.minimum(holders[rows], device.id)
    return holders


plt.rcParams["font.size"] = 14
colors = plt.get_cmap("viridis", 4)
figure, axes = plt.subplots(1, 3, figsize=(9, 5), sharey=True, layout="constrained")
for ax, (name, array) in zip(axes, arrays.items(), strict=True):
    picture = ax.imshow(devices_of(array), aspect="auto", cmap=colors, vmin=-0.5, vmax=3.5)
    ax.set(title=name, xlabel="output")
axes[0].set_ylabel("hidden unit")
figure.colorbar(picture, ax=axes, label="device", ticks=range(4))
figure.suptitle("The posterior lies where the parameters lie", fontsize=18)
plt.show()

# %% [markdown]
# The compiled programs say what travels between devices: for variances and draws nothing, for the
# evidence one sum of scalars.


# %%
def traffic(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    found = re.findall(r"(all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(", text)
    return found or "nothing"


print("variance:", traffic(l2m.variance, posterior))
print("sample:  ", traffic(lambda p: l2m.sample(jax.random.key(1), p, 4), posterior))
print("evidence:", traffic(l2m.tuning.log_evidence, posterior))

# %% [markdown]
# ## The same numbers as on one device
#
# A prediction on the mesh, its inputs split over `data`, and the same on a single device.

# %%
key = jax.random.key(2)
on_mesh = l2m.linearized(
    key, apply_fn, posterior, jax.device_put(x_test[:396], split), num_samples=32
)
alone = jax.device_put(posterior, jax.devices()[0])
on_one = l2m.linearized(key, apply_fn, alone, x_test[:396], num_samples=32)
print("largest difference:", float(np.max(np.abs(np.asarray(on_mesh) - np.asarray(on_one)))))

p = l2m.classification(on_mesh)
print("negative log-likelihood:", float(metrics.negative_log_likelihood(p.probs, y_test[:396])))
