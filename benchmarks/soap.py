"""SOAP's moment: what the entries that belong to older bases cost, on a small network.

    make bench-soap

The digits of scikit-learn, 64-32-10. SOAP's squares were taken in the basis of their own steps; the
reference takes those of the same gradients, with the same weights, in the basis that the state
holds at the end. The error of the moment is the sum of absolute differences over the sum; that of
the output variance is the mean over test images and classes, at the prior precision that the
evidence of the reference has.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import l2m_optax as l2m
from l2m_optax.moments._basis import over_leaves, rotate_into

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from second_order import soap

RESULTS = Path(__file__).parent / "results" / "soap.md"
BATCH, STEPS, TRAIN = 64, 400, 1_400
DECAYS, TURNS = (0.95, 0.99, 0.999), (1, 10, 100)


def data():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16.0, jnp.float32), jnp.asarray(y[order])
    return (x[:TRAIN], y[:TRAIN]), x[TRAIN:]


def network(params, x):
    hidden = jnp.tanh(x @ params["one"]["w"] + params["one"]["b"])
    return hidden @ params["two"]["w"] + params["two"]["b"]


def initial():
    one, two = jax.random.split(jax.random.key(0))
    return {
        "one": {"w": jax.random.normal(one, (64, 32)) / 8.0, "b": jnp.zeros(32)},
        "two": {"w": jax.random.normal(two, (32, 10)) / 6.0, "b": jnp.zeros(10)},
    }


def trained(tx, x, y):
    """The parameters and the state at the end, and the gradients of all steps."""
    batches = np.random.default_rng(1).integers(0, TRAIN, (STEPS, BATCH))

    def loss(params, batch):
        logits = network(params, x[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[batch]).mean()

    def step(carry, batch):
        params, state = carry
        g = jax.grad(loss)(params, batch)
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), g

    params = initial()
    return jax.jit(lambda *a: jax.lax.scan(step, *a))((params, tx.init(params)), batches)


def in_one_basis(moment, grads):
    """The moment of the same gradients, but for the first, with all squares in its own basis."""
    weights = jnp.asarray((1 - moment.decay) * moment.decay ** np.arange(STEPS - 1)[::-1])

    def mean(basis, g):
        squares = jax.vmap(lambda one: jnp.square(rotate_into(basis, one)))(g[1:])
        return jnp.tensordot(weights.astype(g.dtype), squares, axes=1)

    return moment._replace(nu=over_leaves(mean, moment.basis, grads))


def distance(moment, reference, leaves):
    pairs = [(moment.nu[leaf]["w"], reference.nu[leaf]["w"]) for leaf in leaves]
    return sum(jnp.sum(jnp.abs(a - b)) for a, b in pairs) / sum(jnp.sum(b) for _, b in pairs)


def posterior_of(params, moment):
    return l2m.laplace(params, moment, num_data=TRAIN, batch_size=BATCH, prior_precision=1.0)


def row(decay, every):
    (x, y), test = data()
    tx = soap(3e-3, b2=decay, every=every)
    (params, state), grads = trained(tx, x, y)
    moment = l2m.second_moment(state, params, tx=tx)
    reference = in_one_basis(moment, grads)
    exact, _ = l2m.fit_prior_precision(posterior_of(params, reference))
    read = posterior_of(params, moment)._replace(prior_precision=exact.prior_precision)
    variances = [l2m.output_variance(network, one, test) for one in (read, exact)]
    ratio = variances[0] / variances[1]
    return (
        float(distance(moment, reference, ("one", "two"))),
        float(jnp.mean(jnp.abs(ratio - 1))),
        float(jnp.mean(ratio)),
    )


def table():
    yield "| decay of the squares | turned every | moment | output variance | its mean ratio |"
    yield "|---|---|---|---|---|"
    for decay in DECAYS:
        for every in TURNS:
            moment, variance, ratio = row(decay, every)
            yield f"| {decay} | {every} | {moment:.1%} | {variance:.1%} | {ratio:.3f} |"


if __name__ == "__main__":
    lines = []
    for line in table():
        print(line, flush=True)
        lines.append(line)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
