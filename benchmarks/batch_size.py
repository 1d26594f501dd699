"""Does F depend on the batch size? At fixed weights it should not.

A network is trained on the Fashion-MNIST images beside the quickstart, and its weights are held
fixed twice: after one epoch, away from a mode, and after thirty with an annealed rate, near one.
At each, the second moment is gathered at learning rate 0 over batches of 8 to 2,048, and the total
of F is printed over that of the exact per-example empirical Fisher: from squares of whole batches,
the same centered by the optimizer's running mean, and from micro-batches of 8 inside each batch
(`moment_updates=`). Run: `make bench-batch-size`.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2m_optax as l2m

DATA = Path(__file__).parents[1] / "notebooks" / "data" / "fashion_mnist_subset.npz"
MICRO = 8
DECAY, MEAN_DECAY = 0.99, 0.9


def load() -> tuple[jax.Array, jax.Array]:
    arrays = np.load(DATA)
    x = arrays["x_train"].reshape(5000, -1) / 255.0
    return jnp.asarray(x, jnp.float32), jnp.asarray(arrays["y_train"], jnp.int32)


def initial(key: jax.Array) -> dict[str, jax.Array]:
    one, two = jax.random.split(key)
    return {
        "w1": jax.random.normal(one, (784, 64)) / 28.0,
        "b1": jnp.zeros(64),
        "w2": jax.random.normal(two, (64, 10)) / 8.0,
        "b2": jnp.zeros(10),
    }


def loss(params, x, y):
    """Mean negative log-likelihood of a batch, or that of one example."""
    logits = jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def train(x, y, *, epochs: int, batch_size: int = 128) -> dict[str, jax.Array]:
    per_epoch = len(x) // batch_size
    tx = optax.adam(optax.cosine_decay_schedule(1e-3, epochs * per_epoch))

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, x[batch], y[batch]), state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        order = jax.random.permutation(key, len(x))[: per_epoch * batch_size]
        return jax.lax.scan(step, carry, order.reshape(per_epoch, batch_size))

    params = initial(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), epochs)
    return jax.jit(lambda c: jax.lax.scan(epoch, c, keys)[0][0])((params, tx.init(params)))


def gather(params, x, y, *, batch_size: int, steps: int) -> tuple[l2m.SecondMoment, ...]:
    """The moments of whole batches and of their micro-batches, at fixed weights."""
    whole = optax.scale_by_adam(b1=MEAN_DECAY, b2=DECAY)
    micro = l2m.track_second_moment(DECAY)

    def step(states, key):
        batch = jax.random.choice(key, len(x), (batch_size,), replace=False)
        stacked = batch.reshape(-1, MICRO)
        grads = jax.lax.map(lambda i: jax.grad(loss)(params, x[i], y[i]), stacked, batch_size=8)
        mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        _, one = whole.update(mean, states[0], params)
        _, two = micro.update(mean, states[1], params, moment_updates=grads)
        return (one, two), None

    keys = jax.random.split(jax.random.key(batch_size), steps)
    start = whole.init(params), micro.init(params)
    one, two = jax.jit(lambda s: jax.lax.scan(step, s, keys)[0])(start)
    return l2m.second_moment(one, params, tx=whole), l2m.second_moment(two, params)


def total(params, moment, **kwargs) -> float:
    posterior = l2m.laplace(params, moment, num_data=5000, **kwargs)
    return float(sum(jnp.sum(f) for f in jax.tree.leaves(l2m.posterior.data_precision(posterior))))


def study(params, x, y, sizes: list[int], steps: int) -> list[tuple[int, float, float, float]]:
    """For each batch size F over the exact one: whole batches, centered, micro-batches."""
    exact = l2m.jacobians.empirical_fisher(lambda p, e: loss(p, *e), params, (x, y), num_data=5000)
    scale = float(sum(jnp.sum(f) for f in jax.tree.leaves(exact)))
    rows = []
    for size in sizes:
        whole, micro = gather(params, x, y, batch_size=size, steps=steps)
        totals = (
            total(params, whole, batch_size=size),
            total(params, whole, batch_size=size, centered=True),
            total(params, micro, batch_size=MICRO),
        )
        rows.append((size, *(t / scale for t in totals)))
    return rows


def spread(values: list[float]) -> float:
    """The largest over the smallest, less 1."""
    return max(values) / min(values) - 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="updates gathered at each size")
    arguments = parser.parse_args()
    x, y = load()
    for name, epochs in {"away from a mode, 1 epoch": 1, "near a mode, 30 epochs": 30}.items():
        rows = study(train(x, y, epochs=epochs), x, y, [8, 32, 128, 512, 2048], arguments.steps)
        print(f"\n{name}: total of F over the exact empirical Fisher's\n")
        print("| batch | whole batches | centered | micro-batches of 8 |")
        print("|---|---|---|---|")
        for size, *ratios in rows:
            print(f"| {size} | " + " | ".join(f"{r:.3f}" for r in ratios) + " |")
        columns = list(zip(*rows, strict=True))[1:]
        print("| spread | " + " | ".join(f"{spread(c):.1%}" for c in columns) + " |")


if __name__ == "__main__":
    main()
