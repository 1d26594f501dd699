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
# A small convolutional network learns clothes (Fashion-MNIST). Three questions: Is its confidence right? Does it notice
# that a handwritten digit is not a piece of clothing? Which images should it hand to a person? L2M answers the first
# two better than the network alone, the third one not. It takes about a minute, most of it training.

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
from sklearn.datasets import fetch_openml, load_digits

import l2m_optax as l2m
from l2m_optax import decisions, metrics

# %% [markdown]
# ## The data
#
# 5,000 images of clothes to train, 1,000 to validate, 3,000 to test, and 1,000 digits. They lie beside this notebook in
# the repository. Elsewhere, as on Colab, they come from OpenML.

# %%
FOLDER = (Path(__file__).parent if "__file__" in globals() else Path()) / "data"


def clothes():
    """Images and labels: of this folder, else of OpenML, else digits that scikit-learn holds."""
    if FOLDER.exists():
        arrays, parts = np.load(FOLDER / "fashion_mnist_subset.npz"), ("train", "val", "test")
        return [np.concatenate([arrays[f"{name}_{part}"] for part in parts]) for name in "xy"]
    try:
        return fetch_openml(data_id=40996, return_X_y=True, as_frame=False, parser="liac-arff")
    except OSError:
        print("OpenML does not answer: noisy digits stand in for the clothes of the text.")
        x, y = load_digits(return_X_y=True)
        return x + np.random.default_rng(0).normal(0, 5, x.shape), y


def split(x):
    """The first 5,000 of 9,000 to train, then 1,000 to validate and 3,000 to test."""
    return np.split(x[:9_000], [min(len(x), 9_000) * ninths // 9 for ninths in (5, 6)])


def strangers(images):
    """1,000 digits: of this folder, else of OpenML, else what there is, turned a quarter."""
    if FOLDER.exists():
        return np.load(FOLDER / "mnist_subset.npz")["x"]
    try:
        source = {"data_id": 554, "parser": "liac-arff"}
        return fetch_openml(**source, return_X_y=True, as_frame=False)[0][-1_000:]
    except OSError:
        return np.rot90(as_images(images), axes=(1, 2))[-600:]


def as_images(x):
    side = round(x[0].size ** 0.5)
    return (x.reshape(-1, side, side, 1) / float(x.max())).astype("float32")


raw, labels = clothes()
(x, x_val, x_test), (y, y_val, y_test) = split(as_images(raw)), split(labels.astype("int32"))
digits = as_images(strangers(raw))

# %% [markdown]
# ## Train as always

# %%
EPOCHS, BATCH = 20, 50


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (8, 16):
            x = nn.relu(nn.Conv(features, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(x)


apply_fn = Network().apply
tx = optax.adam(optax.cosine_decay_schedule(3e-3, EPOCHS * len(x) // BATCH))


@jax.jit
def train_step(params, opt_state, x, y):
    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, x), y).mean()

    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


params = Network().init(jax.random.key(0), x[:1])
opt_state = tx.init(params)
rng = np.random.default_rng(0)
for _ in range(EPOCHS):
    for rows in rng.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH):
        params, opt_state = train_step(params, opt_state, x[rows], y[rows])

# %% [markdown]
# ## A posterior, and a prediction
#
# The posterior is over the last layer, and the evidence chooses its prior: validation data are not used. `diagnose` says
# whether the state can be trusted.

# %%
moment = l2m.second_moment(opt_state, params, tx=tx)
posterior = l2m.laplace(params, moment, num_data=len(x), batch_size=BATCH)
posterior, _ = l2m.fit_prior_precision(l2m.restrict(posterior, "head"))
print(l2m.diagnose(posterior, moment))

# %%
images = np.concatenate([x_test, digits, x_val])
everything = {
    "network alone": l2m.classification(jax.jit(apply_fn)(params, images)[None]),
    "L2M": l2m.classify(apply_fn, posterior, images),
}


def part(start, stop):
    """The predictions of these images, of each method."""
    return {
        name: jax.tree.map(lambda leaf: leaf[start:stop], predicted)
        for name, predicted in everything.items()
    }


on_test = part(0, len(x_test))
on_digits = part(len(x_test), len(x_test) + len(digits))
on_val = part(len(x_test) + len(digits), None)
wrong = {name: p.prediction != y_test for name, p in on_test.items()}
is_digit = np.arange(len(x_test) + len(digits)) >= len(x_test)

print(f"{'':14}{'accuracy':>10}{'NLL':>8}{'ECE':>8}{'Brier':>8}{'AURC':>8}{'AUROC (digits)':>16}")
for name, p in on_test.items():
    row = (
        metrics.negative_log_likelihood(p.probs, y_test),
        metrics.expected_calibration_error(p.probs, y_test),
        metrics.brier_score(p.probs, y_test),
        metrics.aurc(p.total, wrong[name]),
    )
    detected = metrics.auroc(everything[name].total[: len(is_digit)], is_digit)
    print(f"{name:14}{metrics.accuracy(p.probs, y_test):10.3f}", end="")
    print("".join(f"{value:8.3f}" for value in row) + f"{detected:16.3f}")

# %% [markdown]
# ## Is its confidence right?

# %%
plt.rcParams["font.size"] = 14
COLORS = {"network alone": "#D55E00", "L2M": "#0072B2"}

figure, ax = plt.subplots(figsize=(8, 5.2), layout="constrained")
ax.plot([0.3, 1], [0.3, 1], ":", color="gray", label="perfect")
for name, p in on_test.items():
    curve = metrics.reliability_curve(p.probs, y_test, num_bins=10)
    full = np.asarray(curve.size) > 30  # bins with more than 30 images
    ax.plot(curve.confidence[full], curve.accuracy[full], "o-", color=COLORS[name], label=name)
ax.set(xlabel="confidence of the prediction", ylabel="share that is right")
ax.set_title("With L2M the confidence is close to the share that is right", fontsize=17)
ax.legend()
plt.show()

# %% [markdown]
# ## Does it notice digits?
#
# The entropy of a prediction says how uncertain it is. AUROC is how often a digit has a higher entropy than a piece
# of clothing.

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
for ax, name in zip(axes, everything, strict=True):
    area = metrics.auroc(everything[name].total[: len(is_digit)], is_digit)
    for p, color, label in ((on_test, "#0072B2", "clothes"), (on_digits, "#E69F00", "digits")):
        share = np.full(len(p[name].total), 1 / len(p[name].total))
        bins = np.linspace(0.0, np.log(10), 24)
        ax.hist(p[name].total, bins, weights=share, color=color, alpha=0.6, label=label)
    ax.set(title=f"{name}: AUROC {area:.2f}", xlabel="entropy of the prediction (nats)")
axes[0].set_ylabel("share of the images")
axes[0].legend()
figure.suptitle("L2M is uncertain about most digits; the network alone is not", fontsize=18)
plt.show()

# %% [markdown]
# ## Which images should it hand to a person?
#
# Sort the test images by entropy, answer the most certain ones, and hand over the rest. **Here L2M loses**: on this
# network the entropies of the network alone put the wrong answers last a little better (AURC, the area below the
# curve, in the table above). L2M corrects how certain the network is. That does not have to improve the order of
# the images. To hand over images of known classes, sort by the network alone.

# %%
figure, ax = plt.subplots(figsize=(8, 5.2), layout="constrained")
for name, p in on_test.items():
    curve = metrics.risk_coverage_curve(p.total, wrong[name])
    most = np.asarray(curve.coverage) > 0.05  # shares of a few images are noise
    label = f"{name}, AURC {metrics.aurc(p.total, wrong[name]):.3f}"
    ax.plot(curve.coverage[most], curve.risk[most], lw=2.5, color=COLORS[name], label=label)
ax.set(xlabel="share of the images that is answered", ylabel="share of the answers that is wrong")
ax.set_title("Here L2M loses: the network alone sorts its images better", fontsize=17)
ax.legend()
plt.show()

# %% [markdown]
# A threshold that is chosen on the validation images, so that one answer in twenty is wrong there, holds on the test
# images about as well, with either order:

# %%
for name, p in on_test.items():
    kept = decisions.selective_threshold(
        on_val[name].total, on_val[name].prediction != y_val, risk=0.05
    )
    answered = p.total <= kept.threshold
    share, risk = float(answered.mean()), float(wrong[name][answered].mean())
    print(f"{name:14} wrong: {float(wrong[name].mean()):.3f} of all,", end=" ")
    print(f"{risk:.3f} of the {share:.0%} that are answered")

# %% [markdown]
# The images that L2M is least sure of, with its two best guesses:

# %%
CLASSES = [
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
figure, axes = plt.subplots(2, 6, figsize=(13, 5.4), layout="constrained")
for row, (shown, p) in zip(
    axes, ((x_test, on_test["L2M"]), (digits, on_digits["L2M"])), strict=True
):
    for ax, i in zip(row, jnp.argsort(-p.total)[:6].tolist(), strict=True):
        best = jnp.argsort(-p.probs[i])[:2].tolist()
        ax.imshow(shown[i, :, :, 0], cmap="gray_r")
        ax.set_title("\n".join(f"{CLASSES[k]} {p.probs[i, k]:.0%}" for k in best), fontsize=14)
        ax.axis("off")
figure.suptitle("Least sure: clothes above, digits below", fontsize=18)
plt.show()
