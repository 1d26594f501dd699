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
# # Quickstart: uncertainty in three lines
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks/01_quickstart.ipynb)
#
# Adam keeps a running mean of squared gradients. After training nobody uses it. Rightly scaled, it says how
# sharply the loss rises around each weight, and that is a posterior: a Gaussian for each weight of the network.
# `l2m_optax` reads it. You change neither the model nor the training.
#
# This notebook trains one small network on 5,000 images of clothes, in an ordinary loop. Then come the three lines.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("l2m_optax") is None:
    install = [sys.executable, "-m", "pip", "install", "-q", "l2m-optax[demo]"]
    if subprocess.run(install).returncode:
        raise SystemExit(
            "Run `pip install '.[demo]'` in a clone of the repository, then try again."
        )

# %%
from pathlib import Path

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import fetch_openml

import l2m_optax as l2m

HERE = Path(__file__).parent if "__file__" in globals() else Path()


def clothes():
    if (HERE / "data").exists():
        arrays = np.load(HERE / "data" / "fashion_mnist_subset.npz")
        parts = [(arrays[f"x_{name}"], arrays[f"y_{name}"]) for name in ("train", "val", "test")]
    else:
        x, y = fetch_openml("Fashion-MNIST", version=1, return_X_y=True, as_frame=False)
        parts = [(x[i:j], y[i:j]) for i, j in ((0, 5_000), (5_000, 6_000), (-3_000, None))]
    return [((x.reshape(-1, 784) / 255).astype("float32"), y.astype("int32")) for x, y in parts]


(x, y), validation, (x_test, y_test) = clothes()

# %% [markdown]
# ## Train as always
#
# Nothing here knows of `l2m_optax`.

# %%
network = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(128), nn.relu, nn.Dense(10)])
cross_entropy = optax.softmax_cross_entropy_with_integer_labels
tx = optax.adam(optax.cosine_decay_schedule(1e-3, 60 * 100))
params = network.init(jax.random.key(0), x[:1])
opt_state = tx.init(params)


@jax.jit
def step(params, opt_state, x, y):
    grads = jax.grad(lambda p: cross_entropy(network.apply(p, x), y).mean())(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


rng = np.random.default_rng(0)
for _ in range(60):
    for rows in rng.permutation(5_000).reshape(100, 50):
        params, opt_state = step(params, opt_state, x[rows], y[rows])

# %% [markdown]
# ## Three lines
#
# `fit` reads the optimizer's state, checks its scale on some training images, and tries three ways to predict: the
# network alone, a posterior over the last layer, one over all layers. It returns the one that predicts the validation
# images best. The network itself is one of the three, so the result is not worse than what you had. Without
# `validation=` it returns a careful posterior of all layers.

# %%
posterior, report = l2m.fit(
    network.apply, params, opt_state, tx=tx, data=(x, y), batch_size=50, validation=validation
)
print(report)
p = l2m.classify(network.apply, posterior, x_test)

# %% [markdown]
# `p.probs` are the class probabilities and `p.prediction` the classes. `p.total` is the entropy of a prediction. It is
# the sum of `p.aleatoric` (the image is ambiguous) and `p.epistemic` (the network has not seen enough of the kind).
#
# ## One picture
#
# Of all test images that were predicted with about the same confidence, how many are right? On the dotted line, 90%
# means 90%. The trained network lies far below it: where it says 85%, it is right in 57 of 100 cases.

# %%
alone = jax.nn.softmax(network.apply(params, x_test))
figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
ax.plot([0.3, 1], [0.3, 1], ":", color="gray", label="perfect")
for name, probs in {"network alone": alone, "after fit": p.probs}.items():
    curve = l2m.metrics.reliability_curve(probs, y_test, num_bins=10)
    full = np.asarray(curve.size) > 30  # bins with more than 30 images
    name += f", test NLL {l2m.metrics.negative_log_likelihood(probs, y_test):.2f}"
    ax.plot(curve.confidence[full], curve.accuracy[full], "o-", label=name)
ax.set(xlabel="confidence of the prediction", ylabel="share that is right")
ax.set_title("Three lines, and 90% sure means 90% right")
ax.legend()
Path("outputs").mkdir(exist_ok=True)
figure.savefig("outputs/quickstart.png", dpi=130)

# %% [markdown]
# ## Next
#
# - [The comparison](08_comparison.ipynb): beside temperature scaling and an ensemble, images and concrete.
# - In the documentation: a regression from end to end, which posterior to choose, and when not to trust it.
