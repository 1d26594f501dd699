"""What do squared per-example gradients cost beside a plain step, in time and in memory?

Run: `make bench-examples`.
"""

import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import l2m_optax as l2m

WIDTHS = (784, 128, 128, 10)


def apply_fn(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def loss_fn(params, example):
    x, label = example
    return -jax.nn.log_softmax(apply_fn(params, x))[label]


def mean_loss(params, batch):
    return jnp.mean(jax.vmap(loss_fn, in_axes=(None, 0))(params, batch))


def by_vmap(params, batch):
    """The same by forming every example's gradient."""
    each = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, batch)
    return jax.tree.map(lambda g: jnp.sum(jnp.square(g), axis=0), each)


def medians(functions, repeats: int = 31) -> list[float]:
    """Seconds of each, taken in turns."""
    times = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[1:]) for seconds in times]


def megabytes(compiled) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def error(found, reference) -> float:
    """The largest difference relative to the largest entry of a leaf, over leaves."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(reference), strict=True)
    return max(float(np.abs(f - r).max() / np.abs(r).max()) for f, r in pairs)


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    params = [
        {"kernel": jax.random.normal(key, (a, b)) / a**0.5, "bias": jnp.zeros(b)}
        for key, (a, b) in zip(keys, itertools.pairwise(WIDTHS), strict=False)
    ]
    print("MLP 784-128-128-10; seconds are medians of 31 runs in turns.\n")
    print(
        "| batch | value_and_grad | with squares | ratio | vmap(grad) | MB | MB of vmap | error |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in (64, 256, 1024):
        x = jax.random.normal(keys[3], (size, WIDTHS[0]))
        batch = x, jax.random.randint(keys[4], (size,), 0, WIDTHS[-1])
        functions = (
            jax.value_and_grad(mean_loss),
            lambda p, b: l2m.jacobians.second_moment_of_examples(loss_fn, p, b),
            by_vmap,
        )
        step, moments, slow = (jax.jit(f).lower(params, batch).compile() for f in functions)
        plain, ours, theirs = medians([lambda f=f: f(params, batch) for f in (step, moments, slow)])  # noqa: B023
        difference = error(moments(params, batch).sum_of_squares, slow(params, batch))
        print(
            f"| {size} | {plain:.5f} | {ours:.5f} | {ours / plain:.2f} | {theirs:.5f} "
            f"| {megabytes(moments):.1f} | {megabytes(slow):.1f} | {difference:.0e} |"
        )

    print("\nSequences of 16 rows, whose gradients are formed: MB of temporaries.\n")
    print("| batch | chunk 8 | chunk 32 | chunk 128 |")
    print("|---|---|---|---|")
    for size in (128, 512, 2048):
        shapes = (
            jax.ShapeDtypeStruct((size, 16, WIDTHS[0]), jnp.float32),
            jax.ShapeDtypeStruct((size,), jnp.int32),
        )

        def moments(p, b, chunk):
            def of_mean(p, e):
                return -jax.nn.log_softmax(apply_fn(p, e[0]).mean(0))[e[1]]

            return l2m.jacobians.second_moment_of_examples(of_mean, p, b, chunk_size=chunk)

        row = [
            megabytes(jax.jit(moments, static_argnums=2).lower(params, shapes, chunk).compile())
            for chunk in (8, 32, 128)
        ]
        print(f"| {size} | " + " | ".join(f"{mb:.1f}" for mb in row) + " |")


if __name__ == "__main__":
    main()
