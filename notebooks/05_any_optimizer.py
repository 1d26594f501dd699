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
# # Any optimizer: chains, masks, accumulation, and how to tell
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/05_any_optimizer.ipynb)
#
# An optimizer's state does not say what it holds. `adamax` keeps a running *maximum* in a field called `nu`, and a
# clip in front changes what Adam squares. So `identify` runs the optimizer on a few known gradients and looks at what
# it does. Here each answer is compared with the truth. It takes less than a minute.

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_diabetes

import l2m_optax as l2m

# %% [markdown]
# ## A problem with a known answer
#
# Linear regression on 442 diabetes patients, whose ten measurements are given different scales.
# The empirical Fisher at the optimum, $\sum_i (x_i r_i)^2 / s^4$ with residuals $r$ and noise
# variance $s^2$, is what the state should hold.

# %%
x, y = load_diabetes(return_X_y=True)
x = (x / x.std(axis=0) * np.linspace(0.5, 2.0, 10)).astype(np.float32)
y = ((y - y.mean()) / y.std()).astype(np.float32)
weights = np.linalg.lstsq(x, y, rcond=None)[0]
residuals = y - x @ weights
noise = np.mean(residuals**2)
exact = np.sum((x * residuals[:, None]) ** 2, axis=0) / noise**2

params = {"body": jnp.zeros(7), "head": jnp.zeros(3)}
BATCH, STEPS = 16, 6_000

# Shuffled epochs: without replacement, as a data loader draws.
epochs = np.tile(np.arange(len(x)), (STEPS // (len(x) // BATCH) + 1, 1))
batches = np.random.default_rng(0).permuted(epochs, axis=1)[:, : len(x) // BATCH * BATCH]
batches = batches.reshape(-1, BATCH)[:STEPS]


def loss(params, rows):
    w = jnp.concatenate([params["body"], params["head"]])
    return 0.5 * jnp.mean((jnp.asarray(x)[rows] @ w - jnp.asarray(y)[rows]) ** 2)


def train(tx, params=params):
    def step(carry, rows):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params, rows), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.jit(lambda carry: jax.lax.scan(step, carry, batches))((params, tx.init(params)))[0]


def posterior_of(tx, **arguments):
    trained, opt_state = train(tx)
    moment = l2m.second_moment(opt_state, trained, tx=tx)
    posterior = l2m.laplace(
        trained, moment, num_data=len(x), batch_size=BATCH, loss_scale=noise, **arguments
    )
    return posterior, moment


# %% [markdown]
# ## Chains and wrappers
#
# One call reads all of them. `MultiSteps` makes the batch four times as large, and the call takes that into account. An
# optimizer that holds no mean of squares is refused; the message says why, and what to do.

# %%
rate = optax.cosine_decay_schedule(1e-2, STEPS)
shorter = optax.cosine_decay_schedule(1e-2, STEPS // 4)  # one update in four steps
candidates = {
    "adam": optax.adam(rate),
    "adamw, weight decay": optax.adamw(rate, weight_decay=1e-3),
    "rmsprop, exposed": l2m.expose_second_moment(optax.rmsprop(rate, decay=0.999)),
    "adabelief": optax.adabelief(rate),
    "lamb": optax.lamb(rate),
    "amsgrad": optax.amsgrad(rate),
    "chain with a schedule": optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(rate)),
    "MultiSteps(4)": optax.MultiSteps(optax.adam(shorter, b2=0.996), 4),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(rate),
    "sgd, tracked": optax.chain(l2m.track_second_moment(0.999), optax.sgd(rate)),
    "sgd": optax.sgd(rate),
    "adamax": optax.adamax(rate),
    "lion": optax.lion(rate),
    "clipped adam": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(rate)),
}
ratios = {}
for name, tx in candidates.items():
    try:
        posterior, _ = posterior_of(tx)
    except (TypeError, ValueError) as error:
        print(f"{name:24} refused: {str(error)[:150]} ...")
        continue
    f = l2m.posterior.data_precision(posterior)
    ratios[name] = np.concatenate([f["body"], f["head"]]) / exact
    print(f"{name:24} F over the truth: {ratios[name].min():.2f} to {ratios[name].max():.2f}")

# %%
plt.rcParams["font.size"] = 14
figure, ax = plt.subplots(figsize=(10, 5.5), layout="constrained")
ax.axvspan(0.9, 1.1, color="#DDDDDD")
ax.axvline(1.0, color="#333333", lw=1)
for row, ratio in enumerate(ratios.values()):
    ax.scatter(ratio, np.full(10, row), color="#0072B2", s=18)
ax.set_yticks(range(len(ratios)), ratios)
ax.set(xlabel="precision read from the state / exact precision (ten weights)", xlim=(0.5, 1.5))
ax.invert_yaxis()
figure.suptitle("Ten optimizers, each read within 10% of the truth", fontsize=18)
plt.show()

# %% [markdown]
# ## Masks and groups
#
# Weights that are not trained have no second moment. They are fixed: their variance is zero. If groups of weights have
# optimizers of their own, each is read in its own way.

# %%
grouped = optax.partition(
    {"trained": optax.adam(rate), "frozen": optax.set_to_zero()},
    {"body": "trained", "head": "frozen"},
)
posterior, _ = posterior_of(grouped)
print("variance of the frozen group:", l2m.variance(posterior)["head"])
for leaf in l2m.identify(grouped, params).leaves:
    print("frozen" if leaf is None else f"{leaf.path}: {leaf.kind} with decay {leaf.decay}")

# %% [markdown]
# ## When the state cannot be trusted
#
# Far from the optimum the mean gradient is part of the squares. A decay of 0.9 averages only 19 batches. `diagnose` sees
# both in the state alone. The factor beside each name is the true error.

# %%
doubtful = {
    "annealed": optax.adam(rate),
    "far from the end": optax.adam(optax.cosine_decay_schedule(1e-5, STEPS)),
    "decay 0.9": optax.adam(rate, b2=0.9),
}
for name, tx in doubtful.items():
    posterior, moment = posterior_of(tx)
    f = l2m.posterior.data_precision(posterior)
    off = np.exp(np.abs(np.log(np.concatenate([f["body"], f["head"]]) / exact)).mean())
    print(f"--- {name}: off by a factor of {off:.2f}\n{l2m.diagnose(posterior, moment)}\n")
