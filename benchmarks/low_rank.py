r"""Is a posterior of the last K batch gradients worth its memory?

The perceptron and the data of `images`. With U the last K gradients of training as rows, scaled so
that their squares sum to F, the precision is $U^\top U + \delta I$, and Woodbury gives the
covariance of the logits $J \Sigma J^\top = (J J^\top - J U^\top (\delta I + U U^\top)^{-1} U
J^\top) / \delta$. A diagonal and Kronecker factors of the same run stand beside it. Every prior is
that of the evidence. The temperature is the one of a grid with the best likelihood on validation
images; "AUROC, best" is that of entropy or information at the best temperature for digits.
Run: `make bench-low-rank`; `FAST=1` for one seed.
"""

import functools
from typing import NamedTuple

import images
import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
import training
from structure import scores

import l2m_optax as l2m

SEEDS = range(1 if report.FAST else 3)
TEMPERATURES = tuple(10.0 ** (power / 2) for power in range(-12, 1))
RANKS = (16, 64, 256)
ITERATIONS = 1_000  # of the evidence


class Last(NamedTuple):
    """The gradients of the last steps, on a leading axis."""

    count: jax.Array
    gradients: dict


def keep_last(number: int) -> optax.GradientTransformationExtraArgs:
    def init(params):
        rows = jax.tree.map(lambda p: jnp.zeros((number, *p.shape)), params)
        return Last(jnp.zeros((), jnp.int32), rows)

    def update(updates, state, params=None, **extra):
        row = state.count % number
        rows = jax.tree.map(lambda r, g: r.at[row].set(g), state.gradients, updates)
        return updates, Last(state.count + 1, rows)

    return optax.GradientTransformationExtraArgs(init, update)


TRACKERS = {
    "diagonal": l2m.track_second_moment(0.999),
    "Kronecker, every 10th": l2m.track_second_moment(0.999, structure="kronecker", every=10),
    "last": keep_last(max(RANKS)),
}


@jax.jit
def train(seed, x, y):
    """The parameters, and the state of each tracker."""
    key = jax.random.key(seed)
    start, keys = images.initial("mlp", key), jax.random.split(key, images.EPOCHS)
    tx = optax.named_chain(*TRACKERS.items(), ("adam", images.optimizer("adam")))
    return training.run(images.loss, tx, start, keys, x, y, images.BATCH)[0]


def newest(last: Last, rank: int, num_data: int) -> jax.Array:
    """U, of which the squares of the rows sum to F."""
    rows = (last.count - 1 - jnp.arange(rank)) % max(RANKS)
    scale = num_data * images.BATCH * (num_data - 1) / (num_data - images.BATCH) / rank
    return jax.tree.map(lambda g: scale**0.5 * g[rows], last.gradients)


def gram(rows) -> jax.Array:
    flat = [jnp.reshape(r, (len(r), -1)) for r in jax.tree.leaves(rows)]
    return sum(r @ r.T for r in flat)


def evidence(values: jax.Array, norm: jax.Array) -> jax.Array:
    """MacKay's fixed point of the prior precision, for the eigenvalues of a curvature."""
    return jax.lax.fori_loop(
        0, ITERATIONS, lambda _, prior: jnp.sum(values / (values + prior)) / norm, jnp.ones(())
    )


@jax.jit
def through(params, rows, x) -> jax.Array:
    """J U^T of inputs, (N, outputs, K)."""
    _, push = jax.linearize(lambda p: images.network(p, x), params)
    return jnp.moveaxis(jax.lax.map(push, rows), 0, -1)


def low_rank(params, rows, x) -> jax.Array:
    """The covariance of the logits, by Woodbury."""
    products = gram(rows)
    prior = evidence(jnp.linalg.eigvalsh(products), optax.tree.norm(params, squared=True))
    nothing = l2m.SecondMoment(nu=jax.tree.map(lambda p: jnp.full_like(p, 1e-30), params))
    alone = l2m.laplace(params, nothing, num_data=2, batch_size=1, prior_precision=prior)
    held = jnp.linalg.inv(products + prior * jnp.eye(len(products)))
    a = through(params, rows, x)
    reached = jnp.einsum("nik,kl,njl->nij", a, held, a, optimize=True)
    return l2m.output_covariance(images.network, alone, x) - reached / prior


def megabytes(tree) -> float:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6


def covariances(params, tracked, data, x):
    """The name of each posterior, its megabytes, the covariances of the logits at T = 1."""
    number = len(data.x)
    for rank in RANKS:
        rows = newest(tracked["last"], rank, number)
        yield f"last {rank} gradients", megabytes(rows), low_rank(params, rows, x)
    for name in ("diagonal", "Kronecker, every 10th"):
        posterior = l2m.laplace(params, tracked[name], num_data=number, batch_size=images.BATCH)
        fitted = l2m.fit_prior_precision(posterior).posterior
        held = megabytes(tracked[name])
        yield name, held, l2m.output_covariance(images.network, fitted, x)


def figures(data, logits, covariance) -> dict[str, float]:
    predict = functools.partial(l2m.predict.softmax_integral, logits)
    found = [predict(t * covariance) for t in TEMPERATURES]
    held_out = len(data.x_val)
    nll = [l2m.metrics.negative_log_likelihood(p.probs[:held_out], data.y_val) for p in found]
    best = int(np.argmin(nll))
    of = [
        scores(
            data,
            np.asarray(p.probs[held_out:]),
            {"entropy": p.total[held_out:], "information": p.epistemic[held_out:]},
        )
        for p in found
    ]
    most = max(max(s["AUROC, entropy"], s["AUROC, information"]) for s in of)
    return {"T": TEMPERATURES[best]} | of[best] | {"AUROC, best": most}


def main() -> None:
    data, table = images.load(), {}
    x = np.concatenate([data.x_val, data.inputs])
    for seed in SEEDS:
        params, tracked = train(seed, data.x, data.y)
        logits = images.network(params, x)
        for name, held, covariance in covariances(params, tracked, data, x):
            row = {"state, MB": held} | figures(data, logits, covariance)
            table.setdefault(name, []).append(row)
            print(seed, name, table[name][-1], flush=True)
    report.write("low-rank", {"perceptron": table}, f"5,000 images, {len(SEEDS)} seeds")


if __name__ == "__main__":
    main()
