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
# # From a checkpoint, and fine-tuning around it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/06_checkpoints_and_fine_tuning.ipynb)
#
# Last month somebody who never heard of posteriors trained a network and saved it with its optimizer state, as always.
# That file holds a posterior. Then the network is fine-tuned on a few images, with a prior around its old weights. It
# takes less than a minute.

# %%
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

needs, extra = ("l2m_optax", "flax", "matplotlib", "orbax", "sklearn"), "notebooks"

if not all(map(find_spec, needs)):  # install it: from this clone, or else from the package index
    source = ".." if Path("../l2m_optax").is_dir() else "l2m-optax"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-color", f"{source}[{extra}]"]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise SystemExit(f"{reason}: run pip install '.[{extra}]' in a clone of the repository")

# %%
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import l2m_optax as l2m
from l2m_optax import metrics

FOLDER = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Last month
#
# Handwritten digits of 8 × 8 pixels, an ordinary `TrainState`, an ordinary orbax checkpoint. The pixels are made noisy,
# so that a thousand images leave some digits in doubt.

# %%
images, labels = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
images = (images / 16 + 0.3 * rng.normal(size=images.shape)).astype(np.float32)
labels = labels.astype(np.int32)
x, y, x_test, y_test = images[:1000], labels[:1000], images[1000:], labels[1000:]

model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)])
BATCH, STEPS, STEPS_NEW = 20, 3_000, 2_000


@jax.jit
def train_step(state, x, y):
    def loss(params):
        logits = state.apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


def train(params, tx, x, y, steps):
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    while state.step < steps:
        for rows in rng.permutation(len(x)).reshape(-1, BATCH):
            state = train_step(state, x[rows], y[rows])
    return state


tx = optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS), weight_decay=0.03)
state = train(model.init(jax.random.key(0), x[:1]), tx, x, y, STEPS)
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(FOLDER / "last_month", state)
print("saved:", *sorted(path.name for path in (FOLDER / "last_month").iterdir()))

# %% [markdown]
# ## Today
#
# The shapes of the parameters are enough to find them in the file, with the second moment beside them. The file does not
# say how Adam averaged its squares, so pass its `decay`. No optimizer is built and no gradient taken.

# %%
like = jax.eval_shape(lambda: model.init(jax.random.key(0), x[:1]))
posterior = l2m.checkpoint.from_training_state(
    FOLDER / "last_month", like=like, decay=0.999, num_data=1000, batch_size=BATCH
)
posterior, fit = l2m.fit_prior_precision(l2m.restrict(posterior, "layers_2"))


def judge(name, p, y):
    nll = metrics.negative_log_likelihood(p.probs, y)
    ece = metrics.expected_calibration_error(p.probs, y)
    print(f"{name:32}{metrics.accuracy(p.probs, y):10.3f}{nll:8.3f}{ece:8.3f}")


def predict(posterior, x):
    draws = l2m.linearized(jax.random.key(1), model.apply, posterior, x, num_samples=64)
    return l2m.classification(draws)


print(f"{'':32}{'accuracy':>10}{'NLL':>8}{'ECE':>8}")
judge("mode", l2m.classification(model.apply(posterior.mean, x_test)[None]), y_test)
judge("L2M, last layer", predict(posterior, x_test), y_test)

# %% [markdown]
# On this network the posterior lowers the NLL a little, but **the ECE becomes worse**. Where there are validation data,
# `fit` lets them choose between the network alone and a posterior.
#
# The posterior itself can be saved and restored. It appears under its name only when all of it is written, nothing is
# overwritten, and every array has a digest.

# %%
l2m.checkpoint.save(FOLDER / "posterior", posterior)
restored = l2m.checkpoint.restore(FOLDER / "posterior", like=like)
same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), posterior.mean, restored.mean)
print("restored as it was:", all(jax.tree.leaves(same)))

# %% [markdown]
# ## Fine-tuning
#
# A new scanner turns the images upside down, and there are only 100 of them. Training goes on from the old weights. The
# old weights are knowledge. So the mean of the prior is the old weights, not zero: `prior_mean`. The evidence then finds
# how far the new data moved them.

# %%
few = 100
x_new, y_new = x[:few, ::-1], y[:few]
tx_new = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS_NEW))
tuned = train(state.params, tx_new, x_new, y_new, STEPS_NEW)
moment = l2m.second_moment(tuned.opt_state, tuned.params, tx=tx_new)

print(f"{'on images upside down':32}{'accuracy':>10}{'NLL':>8}{'ECE':>8}")
turned = x_test[:, ::-1]
judge("before", l2m.classification(model.apply(state.params, turned)[None]), y_test)
judge("after, mode", l2m.classification(model.apply(tuned.params, turned)[None]), y_test)
evidence = {}
for name, prior_mean in {"prior at zero": None, "prior at the old weights": state.params}.items():
    posterior = l2m.laplace(
        tuned.params, moment, num_data=few, batch_size=BATCH, prior_mean=prior_mean
    )
    posterior, fit = l2m.fit_prior_precision(l2m.restrict(posterior, "layers_2"))
    evidence[name] = float(l2m.tuning.log_evidence(posterior))
    judge(f"after, L2M, {name}", predict(posterior, turned), y_test)
    print(f"    prior precision {float(fit.value):.3g}, log evidence {evidence[name]:.1f}")

# %%
before, after = (
    np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(p["params"]["layers_2"])])
    for p in (state.params, tuned.params)
)
plt.rcParams["font.size"] = 14
figure, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
ax.axline((0, 0), slope=1, color="#999999", lw=1)
ax.scatter(before, after, s=14, color="#0072B2")
ax.set(xlabel="weight of the last layer before fine-tuning", ylabel="the same weight after")
figure.suptitle("Fine-tuning moves the weights little", fontsize=18)
plt.show()
