"""What does a posterior cost in bytes and in bandwidth, on whatever device jax finds?

For each size: the bytes that building a posterior adds, those of a draw, and the peak of a Monte
Carlo prediction; the speed of building, precision, evidence, log-density and sampling beside a
plain copy and beside `jax.random.normal` itself. Needs jax, optax and this package alone. Prints
tables, and writes JSON where `--json` says. Run: `python benchmarks/accelerator.py`, or
`make bench-scale`; `--sizes 1000000000` for a billion parameters.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp

import l2m_optax as l2m

SIZES = [1_000_000, 25_000_000, 250_000_000]
WIDTH = 1024


def network(params, x):
    for kernel in params.values():
        x = jnp.tanh(x @ kernel)
    return x


def build(params, moment):
    return l2m.laplace(params, moment, num_data=10_000, batch_size=100, prior_precision=10.0)


def live_bytes() -> int:
    return sum(x.nbytes for x in jax.live_arrays())


def added_by(function) -> int:
    """Bytes of device memory that what it returns takes."""
    before = live_bytes()
    result = jax.block_until_ready(function())
    added = live_bytes() - before
    del result
    return added


def temporaries(function, *arguments) -> int:
    """Bytes that the compiled program allocates beside its arguments and results."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def median(function, repeats: int) -> float:
    """Seconds, after a first call that compiles."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(size: int) -> dict[str, float]:
    layers = max(1, round(size / WIDTH**2))
    keys = jax.random.split(jax.random.key(0), layers)
    params = {str(i): jax.random.normal(k, (WIDTH, WIDTH)) / 32 for i, k in enumerate(keys)}
    nu = {name: 1e-6 * jnp.square(1 + p) for name, p in params.items()}
    moment = l2m.SecondMoment(nu=nu, count=1000)
    jax.block_until_ready((params, nu))
    bytes_of_params = sum(p.nbytes for p in params.values())
    posterior = build(params, moment)  # what it compiles for its checks is not its own
    added = added_by(lambda: build(params, moment))
    key, x = jax.random.key(1), jnp.ones((8, WIDTH))

    def one_draw(key, posterior):
        return jax.tree.map(lambda leaf: leaf[0], l2m.sample(key, posterior, 1))

    def predicted(key, posterior, x):
        return l2m.monte_carlo(key, network, posterior, x, num_samples=4, chunk_size=1)

    draw = jax.jit(one_draw)
    copy = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree))  # reads and writes each once
    normal = jax.jit(
        lambda key: [jax.random.normal(k, (WIDTH, WIDTH)) for k in jax.random.split(key, layers)]
    )
    repeats = 3 if size > 100_000_000 else 9
    gigabytes = bytes_of_params / 1e9
    seconds = {
        "copy": median(lambda: copy(params), repeats),
        "normal": median(lambda: normal(key), repeats),
        "build": median(lambda: build(params, moment).mean, repeats),
        "precision": median(lambda: l2m.posterior.precision(posterior), repeats),
        "evidence": median(lambda: l2m.tuning.log_evidence(posterior), repeats),
        "log_prob": median(lambda: l2m.log_prob(posterior, params), repeats),
        "sample": median(lambda: draw(key, posterior), repeats),
    }
    moved = {"copy": 2, "precision": 2, "evidence": 2, "log_prob": 3}  # copies read and written
    return {
        "parameters": layers * WIDTH**2,
        "added_bytes": added,
        "draw_copies": added_by(lambda: draw(key, posterior)) / bytes_of_params,
        "monte_carlo_temporaries": temporaries(predicted, key, posterior, x) / bytes_of_params,
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **{f"{name}_GB/s": moved[name] * gigabytes / seconds[name] for name in moved},
        "precision_of_copy": seconds["copy"] / seconds["precision"],
        "evidence_of_copy": seconds["copy"] / seconds["evidence"],
        "log_prob_of_copy": 1.5 * seconds["copy"] / seconds["log_prob"],
        "sample_of_normal": seconds["normal"] / seconds["sample"],
    }


def report(rows: list[dict[str, float]]) -> None:
    print("| parameters | bytes added | a draw | Monte Carlo, temporary | build, s |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['parameters'] / 1e6:.0f}M | {row['added_bytes']} "
            f"| {row['draw_copies']:.2f} copies | {row['monte_carlo_temporaries']:.2f} copies "
            f"| {row['build_seconds']:.4f} |"
        )
    print("\n| parameters | copy, GB/s | precision | evidence | log_prob | sample, of normal |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = [
            f"{row[f'{name}_GB/s']:.1f} ({row[f'{name}_of_copy']:.0%})"
            for name in ("precision", "evidence", "log_prob")
        ]
        print(
            f"| {row['parameters'] / 1e6:.0f}M | {row['copy_GB/s']:.1f} | {' | '.join(cells)} "
            f"| {row['sample_of_normal']:.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="parameters")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, Python {platform.python_version()}\n")
    rows = [measure(size) for size in arguments.sizes]
    report(rows)
    if arguments.json:
        whole = {"device": device.device_kind, "jax": jax.__version__, "rows": rows}
        arguments.json.write_text(json.dumps(whole, indent=2))


if __name__ == "__main__":
    main()
