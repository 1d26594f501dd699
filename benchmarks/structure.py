"""What correlations are worth: diagonal, Kronecker and full moments of one training run.

5,000 images of Fashion-MNIST, MNIST's digits as out of distribution. The trackers see the gradients
of the same run. Priors are those of the evidence, the temperature is 1; "cold" is the one that
`fit` takes without validation data, and "novelty" is `decisions.novelty`. laplace-torch takes a
pass over the data, on the same weights, and is scored by its entropy. The curvature of EKFAC is
curvlinops', after three passes, and its prior, its predictions and its alarms are L2M's.
Run: `make bench-structure`, with `structure_regression`; `FAST=1` for one seed. `IMAGES=20000`
takes as many images of all of Fashion-MNIST (see `images.whole`), and `SEEDS=1` one seed.
Beginnings of rows' names as arguments make these alone, `python benchmarks/structure.py
diagonal` or `curvlinops`; other rows, and those of peers that are not installed, stay as recorded.
"""

import functools
import importlib.util
import os
import sys

import images
import jax
import numpy as np
import report
import structure_regression
import training

import l2m_optax as l2m

SEEDS = range(1 if report.FAST else int(os.environ.get("SEEDS", "3")))
NUM_DATA = int(os.environ.get("IMAGES", "5000"))
COLUMNS = (
    "NLL",
    "NLL, shifted",
    "AUROC, entropy",
    "AUROC, information",
    "AUROC, novelty",
    "NLL, cold",
    "NLL, shifted, cold",
    "γ",
)
CHOSEN = tuple(sys.argv[1:])
HAVE_PEERS = importlib.util.find_spec("laplace") is not None
KRONECKER = {"structure": "kronecker"}
TRACKERS = {
    "diagonal": l2m.track_second_moment(0.999),
    "Kronecker": l2m.track_second_moment(0.999, **KRONECKER),
    "Kronecker, every 10th": l2m.track_second_moment(0.999, every=10, **KRONECKER),
    "full head": l2m.track_second_moment(
        0.999, structure=lambda path, _: "full" if "head" in path else "diagonal"
    ),
    "Kronecker, true Fisher, every 10th": l2m.track_second_moment(0.999, every=10, **KRONECKER),
}
TRACKERS = {name: tx for name, tx in TRACKERS.items() if name.startswith(CHOSEN or "")}
LAPLACE_TORCH, EKFAC = "laplace-torch, Kronecker", "curvlinops, EKFAC"
PEERS = [name for name in (LAPLACE_TORCH, EKFAC) if HAVE_PEERS and name.startswith(CHOSEN or "")]
PARTS = {"last layer": "head", "all layers": None}


@functools.partial(jax.jit, static_argnames="kind")
def train(kind, seed, x, y):
    """The parameters, and the state of each tracker."""
    key = jax.random.key(seed)

    def drawn(key, params, x):
        return l2m.jacobians.fisher_gradients(key, images.network, params, x)

    keys = jax.random.split(key, images.EPOCHS)
    params, _, tracked = training.run_tracked(
        images.loss,
        images.optimizer("adam", len(x)),
        TRACKERS,
        drawn,
        images.initial(kind, key),
        keys,
        x,
        y,
        images.BATCH,
    )
    return params, tracked


def scores(data, probs, novelty):
    """Of probabilities of `data.inputs`, by any method; novelty is a dict of scores by name."""
    inside, both = len(data.x_test), len(data.x_test) + len(data.digits)
    labels = np.tile(data.y_shifted, len(data.shifted))
    new, nll = np.arange(both) >= inside, l2m.metrics.negative_log_likelihood
    return {
        "NLL": float(nll(probs[:inside], data.y_test)),
        "NLL, shifted": float(nll(probs[both:], labels)),
    } | {f"AUROC, {name}": float(l2m.metrics.auroc(s[:both], new)) for name, s in novelty.items()}


def entropy(probs):
    return -np.sum(probs * np.log(np.maximum(probs, 1e-30)), axis=1)


def figures(data, posterior):
    """At T = 1; then what `fit` takes without validation data, T = 0.1 γ / (a N K)."""
    gamma = l2m.tuning.effective_parameters(posterior)
    cold = posterior._replace(temperature=l2m.tuning.cold_temperature(posterior, 10))
    found, as_fit = (l2m.classify(images.network, p, data.inputs) for p in (posterior, cold))
    novelty = {
        "entropy": found.total,
        "information": found.epistemic,
        "novelty": l2m.decisions.novelty(images.network, posterior, data.inputs),
    }
    of_fit = scores(data, as_fit.probs, {})
    return (
        scores(data, found.probs, novelty)
        | {f"{name}, cold": figure for name, figure in of_fit.items()}
        | {"γ": float(gamma)}
    )


def of_laplace_torch(params, data):
    """On the same weights, with a pass over the data and its own evidence."""
    import peers

    for part, subset in (("last layer", "last_layer"), ("all layers", "all")):
        probs, _, _ = peers.laplace_torch(
            params, data, structure="kron", backend="CurvlinopsGGN", subset=subset
        )
        found = scores(data, probs, {"entropy": entropy(probs)})
        yield f"{LAPLACE_TORCH}, {part}", {name: np.nan for name in COLUMNS} | found


def of_network(params, data):
    probs = np.asarray(jax.nn.softmax(images.network(params, data.inputs)))
    found = scores(data, probs, {"entropy": entropy(probs)})
    return {name: np.nan for name in COLUMNS} | found


def posteriors(params, tracked, data):
    """Every posterior by name, its prior by the evidence."""
    posterior_of = functools.partial(
        l2m.laplace, params, num_data=len(data.x), training_loss=images.loss(params, data.x, data.y)
    )
    for name, state in tracked.items():
        replaced = "true" in name
        whole = posterior_of(state, batch_size=images.BATCH, with_replacement=replaced)
        yield from of_parts(name, whole, ["last layer"] if name == "full head" else PARTS)
    if EKFAC in PEERS:
        import peers

        # The mean of squares of single examples, all of them: no batch and no chance.
        moment = peers.ekfac(params, data)
        yield from of_parts(EKFAC, posterior_of(moment, batch_size=1, with_replacement=True), PARTS)


def of_parts(name, whole, parts):
    for part in parts:
        some = l2m.restrict(whole, PARTS[part]) if PARTS[part] else whole
        yield f"{name}, {part}", l2m.fit_prior_precision(some).posterior


def study(kind, data):
    table = {}
    for seed in SEEDS:
        params, tracked = train(kind, seed, data.x, data.y)
        rows = [
            ("the network", of_network(params, data)),
            *((n, figures(data, p)) for n, p in posteriors(params, tracked, data)),
            *(of_laplace_torch(params, data) if LAPLACE_TORCH in PEERS else ()),
        ]
        for name, row in rows:
            table.setdefault(name, []).append(row)
            print(kind, seed, name, row, flush=True)
    return table


def of_last_record(name, head):
    """The rows that this run does not make, in the order that they had."""
    table = report.recorded(name).get(head, {})
    others = () if HAVE_PEERS else (LAPLACE_TORCH, EKFAC)
    return table if CHOSEN else {m: row for m, row in table.items() if m.startswith(others)}


def load():
    data = images.load()
    if len(data.x) == NUM_DATA:
        return data
    x, y = images.whole(NUM_DATA)
    return data._replace(x=x, y=y)


def main():
    data = load()
    name = "structure" if NUM_DATA == 5_000 else f"structure-{NUM_DATA}"
    heads = {"Fashion-MNIST, perceptron": "mlp", "Fashion-MNIST, convolutional network": "cnn"}
    tables = {head: of_last_record(name, head) | study(kind, data) for head, kind in heads.items()}
    report.write(name, tables, f"{NUM_DATA:,} images; number of seeds: {len(SEEDS)}")
    if NUM_DATA == 5_000 and not CHOSEN:
        structure_regression.main()


if __name__ == "__main__":
    main()
