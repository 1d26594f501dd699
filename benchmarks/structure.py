"""What correlations are worth: diagonal, Kronecker and full moments of one training run.

5,000 images of Fashion-MNIST, MNIST's digits as out of distribution. The trackers see the gradients
of the same run; the true Fisher's are drawn at each tenth step. Priors are those of the evidence,
the temperature is 1, covariances of the outputs are exact, and draws are taken of the outputs.
Run: `make bench-structure`; ``SEEDS=1`` takes one seed.
"""

import functools
import os

import images
import jax
import jax.numpy as jnp
import report

import l2m_optax as l2m

KIND = os.environ.get("KIND", "mlp")
SEEDS = int(os.environ.get("SEEDS", "3"))
DRAWS = 200
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
PARTS = {"last layer": "head", "all layers": None}


@jax.jit
def train(seed, x, y):
    """The parameters, and the state of each tracker."""
    key, tx = jax.random.key(seed), images.optimizer("adam")
    steps = len(x) // images.BATCH

    def step(carry, args):
        (params, state, tracked), (rows, key) = carry, args
        grads = jax.grad(images.loss)(params, x[rows], y[rows])
        fisher = functools.partial(
            l2m.jacobians.fisher_gradients, key, images.network, params, x[rows]
        )
        tracked = {
            name: tracker.update(
                grads, tracked[name], moment_updates=fisher if "true" in name else None
            )[1]
            for name, tracker in TRACKERS.items()
        }
        updates, state = tx.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state, tracked), None

    def epoch(carry, key):
        order = jax.random.permutation(key, len(x))[: steps * images.BATCH]
        keys = jax.random.split(jax.random.fold_in(key, 1), steps)
        return jax.lax.scan(step, carry, (order.reshape(steps, -1), keys))

    params = images.initial(KIND, key)
    start = params, tx.init(params), {name: t.init(params) for name, t in TRACKERS.items()}
    (params, _, tracked), _ = jax.lax.scan(epoch, start, jax.random.split(key, images.EPOCHS))
    return params, tracked


@jax.jit
def draws_of(logits, covariance):
    """Logits of draws, shape (S, n, K)."""
    classes = logits.shape[-1]
    size = jnp.trace(covariance, axis1=-2, axis2=-1)[:, None, None] / classes
    root = jnp.linalg.cholesky(covariance + (1e-5 * size + 1e-9) * jnp.eye(classes))
    normals = jax.random.normal(jax.random.key(0), (DRAWS, classes))
    return logits + jnp.einsum("nij,sj->sni", root, normals)


def figures(data, posterior):
    """NLL and the areas under the curves of two scores of novelty."""
    inputs = jnp.concatenate([data.x_test, data.digits])
    logits = images.network(posterior.mean, inputs)
    covariance = l2m.output_covariance(images.network, posterior, inputs)
    found = l2m.classification(draws_of(logits, covariance))
    new = jnp.arange(len(inputs)) >= len(data.x_test)
    probs = found.probs[: len(data.x_test)]
    return {
        "NLL": float(l2m.metrics.negative_log_likelihood(probs, data.y_test)),
        "AUROC, entropy": float(l2m.metrics.auroc(found.total, new)),
        "AUROC, information": float(l2m.metrics.auroc(found.epistemic, new)),
        "γ": float(l2m.tuning.effective_parameters(posterior)),
    }


def posteriors(params, tracked, num_data):
    """Every posterior by name, its prior by the evidence."""
    for name, state in tracked.items():
        true = "true" in name
        whole = l2m.laplace(
            params, state, num_data=num_data, batch_size=images.BATCH, with_replacement=true
        )
        for part, key in PARTS.items():
            if name == "full head" and key is None:
                continue
            some = whole if key is None else l2m.restrict(whole, key)
            yield f"{name}, {part}", l2m.fit_prior_precision(some).posterior


def main():
    data, table = images.load(), {}
    for seed in range(SEEDS):
        params, tracked = train(seed, data.x, data.y)
        for name, posterior in posteriors(params, tracked, len(data.x)):
            table.setdefault(name, []).append(figures(data, posterior))
            print(name, table[name][-1], flush=True)
    title = f"Fashion-MNIST, 5,000 images, {KIND}, T = 1"
    report.write(f"structure-{KIND}", {title: table}, f"seeds 0 to {SEEDS - 1}")


if __name__ == "__main__":
    main()
