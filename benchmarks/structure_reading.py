"""What a posterior of tracked Kronecker factors costs to read, at 25 million parameters.

The eight blocks of a transformer of width 512 and 2,048 inside. The factors are those of drawn
gradients: no cost depends on what they are. CPU time is of all cores together. Let nothing else
run: beside other programs it took many times as long.
Run: `make bench-structure-cost`; `FAST=1` for one block.
"""

import time

import jax
import report

import l2m_optax as l2m

BLOCKS, WIDTH, INSIDE = 1 if report.FAST else 8, 512, 2_048
SHAPES = {
    **dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH)),
    "up": (WIDTH, INSIDE),
    "down": (INSIDE, WIDTH),
    "up bias": (INSIDE,),
    "down bias": (WIDTH,),
    "scale": (WIDTH,),
}
TRACKER = l2m.track_second_moment(0.999, structure="kronecker", every=10)


def drawn(key):
    keys = iter(jax.random.split(key, BLOCKS * len(SHAPES)))
    return {
        f"block{i}": {name: jax.random.normal(next(keys), shape) for name, shape in SHAPES.items()}
        for i in range(BLOCKS)
    }


def megabytes(tree) -> float:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6


def figures() -> dict[str, float]:
    params = drawn(jax.random.key(0))
    follow = jax.jit(lambda g, s: TRACKER.update(g, s)[1], donate_argnums=1)
    state = jax.block_until_ready(follow(drawn(jax.random.key(1)), TRACKER.init(params)))
    start, cpu = time.perf_counter(), time.process_time()
    posterior = l2m.laplace(params, state, num_data=1_000_000, batch_size=256)
    jax.block_until_ready(jax.tree.leaves(posterior))
    return {
        "CPU time, s": time.process_time() - cpu,
        "elapsed, s": time.perf_counter() - start,
        "squares, MB": megabytes(state.nu),
        "products, MB": megabytes(state.factors),
    }


def main() -> None:
    rows = {f"{BLOCKS} blocks": [figures()]}
    report.write("structure-reading", {"25.2 million parameters": rows}, "one run")


if __name__ == "__main__":
    main()
