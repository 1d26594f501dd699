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
# # A gap in the data: five ways to be unsure
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/02_regression_with_a_gap.ipynb)
#
# There are noisy points of a curve on both sides of a gap. What should a small network say inside the gap? Hamiltonian
# Monte Carlo (HMC) draws from the exact posterior, given the network, the prior and the noise. It is the reference
# here. Four other methods are compared with it: L2M, which reads Adam's state; a Laplace approximation with the full
# matrix of curvature; an ensemble of five networks; and Monte Carlo dropout. All networks have 16 hidden units. It
# takes less than a minute.

# %%
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

needs, extra = ("l2m_optax", "matplotlib", "numpyro"), "notebooks"

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
from jax.flatten_util import ravel_pytree
from numpyro.infer import MCMC, NUTS
from scipy.stats import norm

import l2m_optax as l2m

HIDDEN, NOISE, BATCH, STEPS = 16, 0.2, 16, 6_000
DRAWS = 500  # of HMC, and as many to warm up

rng = np.random.default_rng(0)
x = np.concatenate([rng.uniform(-3.0, -0.8, 75), rng.uniform(1.0, 3.0, 75)])[:, None]
y = np.sin(1.5 * x) + NOISE * rng.normal(size=x.shape)
x, y = x.astype(np.float32), y.astype(np.float32)
line = np.linspace(-4.0, 4.0, 201, dtype=np.float32)[:, None]

# %% [markdown]
# ## The network and its training
#
# Plain functions, Adam, and a learning rate that falls to zero. `drop` is the share of hidden units that are left out
# at random. It is 0 for all methods but dropout.


# %%
def initial(key):
    one, two, three = jax.random.split(key, 3)
    return {
        "body": {"w": jax.random.normal(one, (1, HIDDEN)), "b": jax.random.normal(two, (HIDDEN,))},
        "head": {"w": jax.random.normal(three, (HIDDEN, 1)) / 4, "b": jnp.zeros(1)},
    }


def network(params, x, keep=1.0):
    hidden = jnp.tanh(x @ params["body"]["w"] + params["body"]["b"])
    return (hidden * keep) @ params["head"]["w"] + params["head"]["b"]


def mask(key, rows, drop):
    return jax.random.bernoulli(key, 1 - drop, (rows, HIDDEN)) / (1 - drop)


tx = optax.adam(optax.cosine_decay_schedule(3e-2, STEPS))


@jax.jit
def train(key, drop):
    start, batches, masks = jax.random.split(key, 3)

    def step(carry, keys):
        params, opt_state = carry
        rows = jax.random.choice(keys[0], len(x), (BATCH,), replace=False)
        keep = mask(keys[1], BATCH, drop)
        inputs, targets = jnp.asarray(x)[rows], jnp.asarray(y)[rows]

        def error(params):
            return jnp.mean((network(params, inputs, keep) - targets) ** 2)

        updates, opt_state = tx.update(jax.grad(error)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jnp.stack([jax.random.split(batches, STEPS), jax.random.split(masks, STEPS)], axis=1)
    params = initial(start)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[0]


params, opt_state = train(jax.random.key(0), 0.0)

# %% [markdown]
# ## L2M
#
# Three lines. The evidence chooses the noise and the prior. `regress` needs no draws.

# %%
posterior = l2m.laplace(params, opt_state, tx=tx, num_data=len(x), batch_size=BATCH, loss_scale=2.0)
posterior, _ = l2m.fit_noise_variance(network, posterior, x, y)
predictions = {"L2M": l2m.regress(network, posterior, line)}

noise, prior = posterior.noise_variance, posterior.prior_precision
print(f"noise {float(noise) ** 0.5:.3f} (the truth is {NOISE}), prior precision {float(prior):.2f}")

# %% [markdown]
# ## The reference: HMC
#
# The same network, noise and prior, without the approximation.


# %%
def negative_log_posterior(p):
    fit = jnp.sum((network(p, x) - y) ** 2) / (2 * noise)
    return fit + 0.5 * prior * optax.tree.norm(p, squared=True)


def summary(outputs, variance=noise):
    return l2m.regression(outputs, noise_variance=variance)


def with_hmc():
    mcmc = MCMC(
        NUTS(potential_fn=negative_log_posterior, max_tree_depth=8),
        num_warmup=DRAWS,
        num_samples=DRAWS,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(1), init_params=params)
    return summary(jax.vmap(network, (0, None))(mcmc.get_samples(), line))


predictions["HMC"] = with_hmc()

# %% [markdown]
# ## Laplace with the full matrix, an ensemble, dropout
#
# The full matrix of 49 × 49 entries is small here; at a million parameters it would take four
# terabytes. Ensemble and dropout take the noise from their training residuals.


# %%
def with_full_matrix():
    theta, unravel = ravel_pytree(params)

    def outputs(theta, x):
        return network(unravel(theta), x)[:, 0]

    jacobian = jax.jacrev(outputs)(theta, x)
    covariance = jnp.linalg.inv(jacobian.T @ jacobian / noise + prior * jnp.eye(len(theta)))
    at = jax.jacrev(outputs)(theta, line)
    epistemic = jnp.einsum("np,pq,nq->n", at, covariance, at)[:, None]
    aleatoric = jnp.full_like(epistemic, noise)
    return l2m.predict.Regression(
        network(params, line), aleatoric + epistemic, aleatoric, epistemic
    )


def with_ensemble():
    keys = jax.random.split(jax.random.key(2), 5)
    members = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(train(key, 0.0)[0] for key in keys))
    predict = jax.vmap(network, (0, None))
    return summary(predict(members, line), jnp.mean((predict(members, x) - y) ** 2))


def with_dropout(drop=0.1, draws=200):
    params, _ = train(jax.random.key(3), drop)

    def predict(x, key):
        masks = jax.vmap(lambda key: mask(key, 1, drop))(jax.random.split(key, draws))
        return jax.vmap(lambda keep: network(params, x, keep))(masks)

    residuals = jnp.mean(predict(x, jax.random.key(4)), axis=0) - y
    return summary(predict(line, jax.random.key(5)), jnp.mean(residuals**2))


predictions["Laplace, full matrix"] = with_full_matrix()
predictions["ensemble of 5"] = with_ensemble()
predictions["MC dropout"] = with_dropout()

# %% [markdown]
# ## Side by side
#
# `distance` is that of each predictive distribution to HMC's, in total variation (0: the same, 1:
# nothing in common), averaged over the gap and over the rest. Each is a Gaussian with the mean and
# variance of the method; the integral is taken numerically.


# %%
def total_variation(one, other):
    grid = np.linspace(-6.0, 6.0, 2_001)
    densities = [
        norm.pdf(grid, np.asarray(p.mean), np.sqrt(np.asarray(p.total))) for p in (one, other)
    ]
    return 0.5 * np.sum(np.abs(densities[0] - densities[1]), axis=1) * (grid[1] - grid[0])


gap = (line[:, 0] > -0.8) & (line[:, 0] < 1.0)
seen = ~gap & (np.abs(line[:, 0]) < 3.0)
print(f"{'':22}{'distance: gap':>14}{'data':>8}")
for name, prediction in predictions.items():
    distance = total_variation(prediction, predictions["HMC"])
    print(f"{name:22}{distance[gap].mean():14.2f}{distance[seen].mean():8.2f}")

# %%
plt.rcParams["font.size"] = 14
figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), sharex=True, sharey=True, layout="constrained")
for ax, (name, prediction) in zip(axes.flat, predictions.items(), strict=False):
    mean = np.asarray(prediction.mean[:, 0])
    for variance, color, label in (
        (prediction.total, "#A5D6F3", "noise and weights, 95%"),
        (prediction.aleatoric, "#5B9BD5", "noise alone, 95%"),
    ):
        half = 1.96 * np.sqrt(np.asarray(variance[:, 0]))
        ax.fill_between(line[:, 0], mean - half, mean + half, color=color, lw=0, label=label)
    ax.plot(line[:, 0], mean, color="black", label="mean")
    ax.plot(line[:, 0], np.sin(1.5 * line[:, 0]), color="black", ls=":", label="truth")
    ax.scatter(x, y, s=8, color="#D55E00", zorder=3, label="data")
    ax.set(ylim=(-3.2, 3.2), xlim=(-4, 4), title=name)
    ax.set(xlabel="x" if ax in axes[1] else "", ylabel="y" if ax in axes[:, 0] else "")
axes[-1, -1].axis("off")
axes[-1, -1].legend(*axes[0, 0].get_legend_handles_labels(), loc="center", frameon=False)
figure.suptitle("L2M is uncertain in the gap, as HMC is; dropout hardly knows of it", fontsize=18)
plt.show()

# %% [markdown]
# The band of HMC widens in the gap and past the ends. That of L2M widens in the gap too, at no cost beyond training. In
# the middle it is narrower than that of the full matrix, because its weights vary independently. **Past the ends L2M is
# too certain**: the hidden units are saturated there, and a linearised network hardly changes with its weights. The
# full matrix has the same fault there, and is too wide in the gap. The members of the ensemble agree even where there
# are no data. The band of dropout hardly depends on where the data are.
