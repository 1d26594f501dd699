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
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import l2m_optax as l2m

FILE = Path(globals().get("__file__", ".")).parent / "data" / "fashion_mnist_subset.npz"


def clothes():
    """Images and labels: of this clone, or else noisy digits, which scikit-learn holds."""
    if FILE.exists():
        arrays, parts = np.load(FILE), ("train", "val", "test")
        return [np.concatenate([arrays[f"{name}_{part}"] for part in parts]) for name in "xy"]
    print("This is no clone of the repository: digits stand in for the clothes of the text.")
    x, y = load_digits(return_X_y=True)
    return x + np.random.default_rng(0).normal(0, 5, x.shape), y


images, labels = clothes()
images = (images.reshape(len(images), -1) / images.max()).astype("float32")
cuts = [len(images) * ninths // 9 for ninths in (5, 6)]  # to train, to validate, to test
x, x_val, x_test = np.split(images, cuts)
y, y_val, y_test = np.split(labels, cuts)

# %% [markdown]
# ## Train as always
#
# Nothing here knows of `l2m_optax`.

# %%
network = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(128), nn.relu, nn.Dense(10)])
cross_entropy = optax.softmax_cross_entropy_with_integer_labels
steps = 60 * len(x) // 50  # 60 epochs in batches of 50
tx = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
params = network.init(jax.random.key(0), x[:1])
opt_state = tx.init(params)


@jax.jit
def step(params, opt_state, x, y):
    grads = jax.grad(lambda p: cross_entropy(network.apply(p, x), y).mean())(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


for rows in np.random.default_rng(0).integers(len(x), size=(steps, 50)):
    params, opt_state = step(params, opt_state, x[rows], y[rows])

# %% [markdown]
# ## Three lines
#
# `fit` reads the optimizer's state, checks its scale on some training images, and tries three ways to predict: the
# network alone, a posterior over the last layer, one over all layers. It returns the one that predicts the validation
# images best. The network itself is one of the three, so the result is not worse than what you had. Each posterior may
# come with a factor on the logits, as in temperature scaling. Without `validation=` it returns a careful posterior of all
# layers.

# %%
posterior, report = l2m.fit(
    network.apply, params, opt_state, tx=tx, data=(x, y), batch_size=50, validation=(x_val, y_val)
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
# means 90%. The trained network lies far below it: where it says 85%, it is right in 61 of 100 cases.

# %%
figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
alone = jax.nn.softmax(network.apply(params, x_test))
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
