"""Every way to a prediction that people use now, side by side, on the same data and weights.

Fashion-MNIST with MNIST's digits as out of distribution and with rotated and noisy images as shift;
a perceptron and a small convolutional network; five seeds. laplace-torch gets the very weights that
L2M has: their logits are checked to agree. (v): used 1,000 validation images, IVON to choose its
rate and its first Hessian, SWAG its rate, laplace-torch its prior, L2M its temperature.

Costs: training in multiples of training one network by Adam in the same framework, fit and tuning
included; further passes over the data; arrays kept for predictions, in copies of the parameters;
seconds to predict 1,000 inputs in ten batches or so, compiled. Run: `make bench-quality`; `FAST=1`
for one seed and few inputs. Beginnings of methods' names as arguments make these alone, and keep
the record of the others: `python benchmarks/quality.py mode L2M`.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import images
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
import report
import torch
import training
from images import Data, network
from measure import answers, cached, timed

import l2m_optax as l2m
from l2m_optax import metrics

SEEDS = range(1 if report.FAST else 5)
MEMBERS, DRAWS = 5, 64
TRAINING = images.__file__, training.__file__  # what trained weights depend on
# What the validation images choose from, once a network, for its first seed.
IVON = [{"lr": lr, "hess_init": h} for lr in (0.1, 0.3, 1.0) for h in (0.1, 0.5)]
SWAG = [{"rate": rate} for rate in (1e-3, 1e-2, 1e-1)]


class Answers(NamedTuple):
    """A method's class probabilities for `Data.inputs`, and what they cost."""

    probs: np.ndarray
    seconds: float  # per 1,000 inputs
    training: float = 1.0
    passes: float = 0.0
    copies: float = 0.0


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def averaged(params) -> Callable:
    """The mean prediction of stacked weights."""
    return jax.jit(
        lambda x: (
            l2m.classification(l2m.predict.apply_ensemble(network, params, x, chunk_size=8)).probs
        )
    )


def gaussian(mean, deviation) -> Callable:
    """The mean prediction of weights drawn from a diagonal Gaussian."""
    noise = optax.tree.random_like(jax.random.key(0), stack([mean] * DRAWS))
    return averaged(jax.tree.map(lambda m, s, e: m + s * e, mean, deviation, noise))


def linearized(posterior) -> Callable:
    def predict(x):
        draws = l2m.linearized(jax.random.key(0), network, posterior, x, num_samples=DRAWS)
        return l2m.classification(draws).probs

    return jax.jit(predict)


def mean_field(posterior) -> Callable:
    def predict(x):
        covariance = l2m.output_covariance(network, posterior, x)
        return l2m.predict.mean_field(network(posterior.mean, x), covariance)

    return jax.jit(predict)


def laplace(params, state, name):
    """The posterior over all layers, before anything is fitted."""
    moment = l2m.second_moment(state, params, tx=images.optimizer(name))
    return l2m.laplace(params, moment, num_data=5_000, batch_size=images.BATCH)


def whole(*trained):
    """The posterior over all layers, with the prior of the evidence."""
    return l2m.fit_prior_precision(laplace(*trained)).posterior


def last_layer(*trained):
    return l2m.fit_prior_precision(l2m.restrict(laplace(*trained), "head")).posterior


def methods(kind, seed, data: Data) -> Iterator[tuple[str, Callable[[], Answers]]]:
    x, y = data.x, data.y

    def answered(predict, training=1.0, passes=0.0, copies=0.0):
        return Answers(*answers(predict, data.inputs), float(training), passes, copies)

    def trained(seed, name="adam", dropout=False):
        return cached(
            f"{kind}-{name}-{dropout}-{seed}",
            lambda: timed(images.train, kind, seed, x, y, name, dropout),
            *TRAINING,
        )

    (params, _), once = trained(seed)

    @functools.cache
    def torch_once():
        return peers.train_adam(images.initial(kind, jax.random.key(seed)), x, y)

    def mode(params):
        return answered(jax.jit(lambda x: jax.nn.softmax(network(params, x))))

    def scaled():
        def fit(logits):
            def loss(t):
                return optax.softmax_cross_entropy_with_integer_labels(
                    logits / t, data.y_val
                ).mean()

            grid = jnp.geomspace(0.2, 5.0, 400)
            return grid[jnp.argmin(jax.lax.map(loss, grid))]

        best, seconds = timed(jax.jit(lambda x: fit(network(params, x))), data.x_val)
        predict = jax.jit(lambda x: jax.nn.softmax(network(params, x) / best))
        return answered(predict, 1 + seconds / once)

    def dropout():
        (params, _), seconds = trained(seed, dropout=True)

        @jax.jit
        def predict(x):
            keys = jax.random.split(jax.random.key(0), DRAWS)
            logits = jax.lax.map(lambda key: network(params, x, key), keys)
            return l2m.classification(logits).probs

        return answered(predict, seconds / once)

    def ensemble():
        members = [trained(s)[0] for s in range(seed, 100 * MEMBERS, 100)]
        return [jax.tree.map(jnp.asarray, m) for m in members]

    def swag(seed, rate):
        (params, _), _ = trained(seed)
        return cached(
            f"{kind}-swag-{rate}-{seed}",
            lambda: timed(images.train_swag, params, seed, x, y, rate),
            *TRAINING,
        )

    def ivon(seed, lr, hess_init):
        start = images.initial(kind, jax.random.key(seed))
        return cached(
            f"{kind}-ivon-{lr}-{hess_init}-{seed}",
            lambda: peers.train_ivon(start, x, y, seed, lr=lr, hess_init=hess_init),
            *TRAINING,
            peers.__file__,
        )

    def chosen(fit, options):
        """The fit under `seed` with what is best on the validation images under the first seed."""

        def loss(option):
            probs = gaussian(*fit(SEEDS[0], **option)[0])(data.x_val)
            return metrics.negative_log_likelihood(probs, data.y_val)

        return fit(seed, **min(options, key=loss))

    def by_swag():
        found, seconds = chosen(swag, SWAG)
        return answered(gaussian(*found), 1 + seconds / once, images.SWAG_EPOCHS, 1)

    def by_ivon():
        found, seconds = chosen(ivon, IVON)
        return answered(gaussian(*found), seconds / torch_once(), copies=1)

    def by_laplace_torch(copies, **options):
        probs, seconds, fit = cached(
            "-".join(
                [kind, "laplace", *map(str, options.values()), str(seed), str(len(data.inputs))]
            ),
            lambda: peers.laplace_torch(params, data, **options),
            *TRAINING,
            peers.__file__,
        )
        return Answers(probs, float(seconds), 1 + float(fit) / torch_once(), 1, copies)

    def by_evidence(posterior, predict=linearized, name="adam"):
        (p, s), _ = trained(seed, name)
        found, seconds = timed(posterior, p, s, name)
        return answered(predict(found), 1 + seconds / once)

    def tuned(predict, name="adam"):
        (p, s), _ = trained(seed, name)
        posterior = whole(p, s, name)
        fit, seconds = timed(l2m.tune, network, posterior, data.x_val, data.y_val)
        return answered(predict(fit.posterior), 1 + seconds / once)

    def front_door(validation=None):
        (p, s), _ = trained(seed)
        tx, of = images.optimizer("adam"), {"data": (x, y), "validation": validation}
        fit = functools.partial(l2m.fit, network, tx=tx, batch_size=images.BATCH, **of)
        posterior, seconds = timed(lambda: fit(p, s)[0])

        def predict(x):
            return l2m.classify(network, posterior, x).probs

        return answered(predict, 1 + seconds / once, 1_024 / len(x))

    def ensemble_of_l2m():
        draws = [
            l2m.sample(jax.random.key(i), last_layer(*member, "adam"), 16)
            for i, member in enumerate(ensemble())
        ]
        draws = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *draws)
        return answered(averaged(draws), MEMBERS, copies=2 * MEMBERS - 2)

    diagonal = functools.partial(by_laplace_torch, 1, structure="diag")
    kronecker = functools.partial(
        by_laplace_torch, float("nan"), structure="kron", backend="CurvlinopsGGN"
    )
    head = functools.partial(kronecker, subset="last_layer")
    yield "mode", lambda: mode(params)
    yield "mode, temperature scaling (v)", scaled
    yield "MC dropout", dropout
    yield "SWAG, diagonal (v)", by_swag
    yield "IVON (v)", by_ivon
    yield "laplace-torch, diagonal EF", lambda: diagonal(backend="BackPackEF")
    yield (
        "laplace-torch, diagonal EF, tuned (v)",
        lambda: diagonal(backend="BackPackEF", tuned=True),
    )
    yield "laplace-torch, diagonal GGN", lambda: diagonal(backend="BackPackGGN")
    yield "laplace-torch, Kronecker", kronecker
    yield "laplace-torch, Kronecker, last layer", head
    yield "laplace-torch, Kronecker, last layer, tuned (v)", lambda: head(tuned=True)
    yield "L2M, fit", front_door
    yield "L2M, fit (v)", lambda: front_door((data.x_val, data.y_val))
    yield "L2M, all layers", lambda: by_evidence(whole)
    yield "L2M, all layers, tuned (v)", lambda: tuned(linearized)
    yield "L2M, all layers, tuned (v), mean field", lambda: tuned(mean_field)
    yield "L2M, last layer", lambda: by_evidence(last_layer)
    yield "mode, trained by RMSprop", lambda: mode(trained(seed, name="rmsprop")[0][0])
    yield "L2M of RMSprop, last layer", lambda: by_evidence(last_layer, name="rmsprop")
    yield "L2M of RMSprop, all layers, tuned (v)", lambda: tuned(linearized, "rmsprop")
    yield (
        "deep ensemble of 5",
        lambda: answered(averaged(stack([p for p, _ in ensemble()])), MEMBERS, copies=MEMBERS - 1),
    )
    yield "L2M around each of 5, last layer", ensemble_of_l2m


def scores(found: Answers, data: Data) -> dict[str, float]:
    inside, both = len(data.x_test), len(data.x_test) + len(data.digits)
    p, shifted = found.probs[:inside], found.probs[both:]
    entropy = -np.sum(found.probs * np.log(np.maximum(found.probs, 1e-30)), axis=1)[:both]
    labels = np.tile(data.y_shifted, len(data.shifted))
    return {
        "accuracy": float(metrics.accuracy(p, data.y_test)),
        "NLL": float(metrics.negative_log_likelihood(p, data.y_test)),
        "ECE": float(metrics.expected_calibration_error(p, data.y_test)),
        "Brier": float(metrics.brier_score(p, data.y_test)),
        "AURC": float(metrics.aurc(entropy[:inside], p.argmax(1) != data.y_test)),
        "AUROC, digits": float(metrics.auroc(entropy, np.arange(both) >= inside)),
        "NLL, shifted": float(metrics.negative_log_likelihood(shifted, labels)),
        "ECE, shifted": float(metrics.expected_calibration_error(shifted, labels)),
        "training": found.training,
        "passes": found.passes,
        "copies": found.copies,
        "s / 1,000": found.seconds,
    }


def check_logits(params, x) -> None:
    """The weights handed to PyTorch are the same network."""
    theirs = peers.to_torch(params)(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(theirs, network(params, x), rtol=1e-4, atol=1e-4)


def main() -> None:
    warnings.simplefilter("ignore")
    chosen, data = tuple(sys.argv[1:]), images.load()
    heads = {"mlp": "perceptron 784-128-128-10", "cnn": "convolutional network"}
    made = {f"Fashion-MNIST, {title}": study(kind, data, chosen) for kind, title in heads.items()}
    # Read this late, since another run may have written meanwhile.
    held = report.recorded("quality") if chosen else {}
    tables = {head: held.get(head, {}) | table for head, table in made.items()}
    report.write("quality", tables, f"{len(SEEDS)} seeds of training on the same 5,000 images")


def study(kind, data: Data, chosen) -> dict[str, list | str]:
    table: dict[str, list | str] = {}
    for seed in SEEDS:
        check_logits(images.initial(kind, jax.random.key(seed)), data.x_test[:50])
        for name, make in methods(kind, seed, data):
            if isinstance(table.get(name), str) or not name.startswith(chosen or ""):
                continue
            try:
                table.setdefault(name, []).append(scores(make(), data))
            except Exception as error:  # a peer that cannot run is reported, not dropped
                if not name.startswith("laplace-torch"):
                    raise
                table[name] = report.failure(error)
            print(kind, seed, name, flush=True)
    return table


if __name__ == "__main__":
    main()
