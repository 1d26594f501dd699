"""Fashion-MNIST with MNIST as out of distribution: what each way to a prediction is worth.

Three seeds of one network; the mode, L2M over the last layer and over all, by evidence and by
validation data (v), with draws and in closed form, and laplace-torch's default on the same weights
where it is installed. Run: `make bench-calibration`.

The peer is optional; benchmarks/predictive_variance.py says how to install it.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import l2m_optax as l2m

try:
    import laplace
    import torch
except ImportError:
    laplace = None

DATA = Path(__file__).parent.parent / "notebooks" / "data"
SEEDS, EPOCHS, BATCH_SIZE, NUM_SAMPLES = 3, 30, 128, 64
WIDTHS = (784, 128, 128, 10)


def apply_fn(params, x):
    *body, head = (params[f"layer{i}"] for i in range(len(params)))
    for layer in body:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ head["kernel"] + head["bias"]


def initial(key):
    sizes = itertools.pairwise(WIDTHS)
    return {
        f"layer{i}": {
            "kernel": jax.random.normal(jax.random.fold_in(key, i), (a, b)) * (1 / a) ** 0.5,
            "bias": jnp.zeros(b),
        }
        for i, (a, b) in enumerate(sizes)
    }


def make_train(num_data):
    per_epoch = num_data // BATCH_SIZE
    tx = optax.adam(optax.cosine_decay_schedule(1e-3, per_epoch * EPOCHS))

    def loss(params, x, y):
        logits = apply_fn(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def train(key, x, y):
        def step(carry, rows):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, x[rows], y[rows]), state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry, key):
            order = jax.random.permutation(key, num_data)[: per_epoch * BATCH_SIZE]
            return jax.lax.scan(step, carry, order.reshape(per_epoch, BATCH_SIZE))

        params = initial(key)
        return jax.lax.scan(epoch, (params, tx.init(params)), jax.random.split(key, EPOCHS))[0]

    return tx, train


def scaling(logits, labels) -> float:
    """The temperature of the logits that suits these labels best."""

    def loss(log_temperature):
        log_probs = log_softmax(np.asarray(logits) / np.exp(log_temperature), axis=1)
        return -np.mean(log_probs[np.arange(len(labels)), labels])

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


KINDS = ("linearised draws", "probit", "mean field", "Monte Carlo")


def l2m_prediction(kind, posterior, x) -> jax.Array:
    """Class probabilities through draws or through a closed form."""
    key, mean = jax.random.key(0), apply_fn(posterior.mean, x)
    if kind == "linearised draws":
        draws = l2m.linearized(key, apply_fn, posterior, x, num_samples=NUM_SAMPLES)
        return l2m.classification(draws).probs
    if kind == "Monte Carlo":
        draws = l2m.monte_carlo(key, apply_fn, posterior, x, num_samples=NUM_SAMPLES, chunk_size=8)
        return l2m.classification(draws).probs
    if kind == "probit":
        return l2m.predict.probit(mean, l2m.output_variance(apply_fn, posterior, x))
    return l2m.predict.mean_field(mean, l2m.output_covariance(apply_fn, posterior, x))


def tuned(posterior, data) -> Iterator[tuple[str, l2m.posterior.Posterior, tuple[str, ...]]]:
    """Each way to choose prior precision and temperature, and the predictions it is for."""
    both = ("prior_precision", "temperature")
    training = data["x_train"], data["y_train"]
    validation = data["x_val"], data["y_val"]
    posterior = l2m.fit_prior_precision(posterior).posterior
    yield "evidence", posterior, KINDS
    draws = {"objective": "elbo", "num_samples": 8}
    by_elbo = l2m.tune(apply_fn, posterior, *training, **draws).posterior
    yield "ELBO over T", by_elbo, KINDS[:1]
    by_elbo = l2m.tune(apply_fn, posterior, *training, over=both, **draws).posterior
    yield "ELBO over T and δ", by_elbo, KINDS[:1]
    by_draws = l2m.tune(apply_fn, posterior, *validation).posterior
    yield "tuned T (v)", by_draws, KINDS[:3]
    own = l2m.tune(apply_fn, posterior, *validation, kind="monte_carlo", chunk_size=8).posterior
    yield "tuned T (v), Monte Carlo its own", own, KINDS[3:]
    own = l2m.tune(apply_fn, posterior, *validation, kind="exact").posterior
    yield "tuned T (v), mean field its own", own, KINDS[2:3]
    by_draws = l2m.tune(apply_fn, posterior, *validation, over=both).posterior
    yield "tuned T and δ (v)", by_draws, KINDS[:1]
    own = l2m.tune(apply_fn, posterior, *validation, over=both, kind="exact").posterior
    yield "tuned T and δ (v), mean field its own", own, KINDS[2:3]


def peer_prediction(params, x_train, y_train, x) -> np.ndarray:
    """laplace-torch as it comes: last layer, Kronecker factors, evidence, probit."""
    layers = []
    for i in range(len(params)):
        layer = torch.nn.Linear(*params[f"layer{i}"]["kernel"].shape)
        layer.weight.data = torch.tensor(np.array(params[f"layer{i}"]["kernel"].T))
        layer.bias.data = torch.tensor(np.array(params[f"layer{i}"]["bias"]))
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    data = torch.utils.data.TensorDataset(torch.tensor(x_train), torch.tensor(y_train).long())
    fitted = laplace.Laplace(model, "classification")
    fitted.fit(torch.utils.data.DataLoader(data, batch_size=500))
    fitted.optimize_prior_precision(method="marglik")
    return fitted(torch.tensor(np.array(x))).detach().numpy()


def predictions(tx, params, state, data) -> Iterator[tuple[str, np.ndarray]]:
    x, x_val, y_val = data["both"], data["x_val"], data["y_val"]
    logits = apply_fn(params, x)
    yield "mode", jax.nn.softmax(logits)
    temperature = scaling(apply_fn(params, x_val), y_val)
    yield "mode, temperature scaling (v)", jax.nn.softmax(logits / temperature)
    moment = l2m.second_moment(state, params, tx=tx)
    whole = l2m.laplace(params, moment, num_data=len(data["x_train"]), batch_size=BATCH_SIZE)
    for name, posterior in (
        ("last layer", l2m.restrict(whole, f"layer{len(params) - 1}")),
        ("all layers", whole),
    ):
        for how, fitted, kinds in tuned(posterior, data):
            for kind in kinds:
                yield f"L2M, {name}, {how}, {kind}", l2m_prediction(kind, fitted, x)
    if laplace is not None:
        probs = peer_prediction(params, data["x_train"], data["y_train"], x)
        yield "laplace-torch, last layer, Kronecker, evidence, probit", probs


def main() -> None:
    clothes = dict(np.load(DATA / "fashion_mnist_subset.npz"))
    digits = np.load(DATA / "mnist_subset.npz")["x"]
    data = {
        name: (a.reshape(len(a), -1) / 255).astype(np.float32) if a.ndim > 1 else a.astype(np.int32)
        for name, a in clothes.items()
    }
    inside = len(data["x_test"])
    data["both"] = np.concatenate(
        [data["x_test"], (digits.reshape(len(digits), -1) / 255).astype(np.float32)]
    )
    is_digit = np.arange(len(data["both"])) >= inside
    tx, train = make_train(len(data["x_train"]))
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in range(SEEDS):
        params, state = train(jax.random.key(seed), data["x_train"], data["y_train"])
        for name, probs in predictions(tx, params, state, data):
            p, labels = np.asarray(probs, np.float64), data["y_test"]
            entropy = -np.sum(p * np.log(np.maximum(p, 1e-30)), axis=1)
            found.setdefault(name, []).append(
                (
                    float(l2m.metrics.accuracy(p[:inside], labels)),
                    float(l2m.metrics.negative_log_likelihood(p[:inside], labels)),
                    float(l2m.metrics.expected_calibration_error(p[:inside], labels)),
                    float(l2m.metrics.auroc(entropy, is_digit)),
                )
            )
    print("| Fashion-MNIST, 5,000 images | accuracy | NLL | ECE | AUROC |\n|---|---|---|---|---|")
    for name, rows in found.items():
        cells = [
            f"{m:.3f} ± {s:.3f}" for m, s in zip(np.mean(rows, 0), np.std(rows, 0), strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
