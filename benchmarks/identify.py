"""What does `identify` cost on a network of 25 million parameters, and on one of 1,000 leaves?

Run: `make bench-identify`.
"""

import itertools
import time

import jax
import jax.numpy as jnp
import optax

import l2m_optax as l2m

WIDTHS = (1024, 3072, 3072, 3072, 1000)


def seconds(function, repeats: int = 5) -> float:
    """The fastest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)


def many_leaves() -> None:
    params = {f"layer{i}": jnp.ones((3, 4)) for i in range(1000)}
    tx = optax.adam(1e-3)
    first, again = (seconds(lambda: l2m.identify(tx, params).treedef, repeats=1) for _ in range(2))
    print(f"\n1,000 leaves, adam: first call {first:.2f} s, again {again:.4f} s")


def main() -> None:
    layers = itertools.pairwise(WIDTHS)
    params = {
        f"layer{i}": {"kernel": jnp.ones((a, b)), "bias": jnp.ones(b)}
        for i, (a, b) in enumerate(layers)
    }
    size = sum(p.size for p in jax.tree.leaves(params))
    print(f"{size / 1e6:.1f} million parameters\n")
    print("| optimizer | one step (s) | identify, first call (s) | again (s) | again, in steps |")
    print("|---|---|---|---|---|")
    for name in ("adam", "rmsprop", "lamb", "adafactor"):
        tx = getattr(optax, name)(1e-3)
        state = tx.init(params)
        step = jax.jit(lambda g, s, p, tx=tx: tx.update(g, s, p))
        jax.block_until_ready(step(params, state, params))
        one = seconds(lambda step=step, state=state: step(params, state, params))
        first = seconds(lambda tx=tx: l2m.identify(tx, params).treedef, repeats=1)
        again = seconds(lambda tx=tx: l2m.identify(tx, params).treedef, repeats=3)
        print(f"| {name} | {one:.3f} | {first:.2f} | {again:.4f} | {again / one:.3f} |")
    many_leaves()


if __name__ == "__main__":
    main()
