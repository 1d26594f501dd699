"""A decoder-only transformer on real text, then LoRA on other text: mode against L2M.

The text is Python's own documentation: the pages of `pydoc_data.topics` to pre-train on, the
docstrings of the standard library to adapt to. Both are bytes. The posterior is over the adapters
alone; what is asked is how well the next byte is predicted, and how well calibrated that is.
Run: `make bench-scale`, or `python benchmarks/text.py`.
"""

import ast
import math
import sysconfig
import time
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2m_optax as l2m

WIDTH, DEPTH, HEADS, LENGTH, RANK = 256, 4, 8, 64, 4
BATCH, STEPS, ADAPTER_STEPS, NUM_SAMPLES = 16, 500, 300, 16
ADAPT_TO = 4_000  # bytes: little, so that what is learnt from them is unsure
SEEDS = 2


def documentation() -> np.ndarray:
    return np.frombuffer("\n".join(topics.values()).encode(), np.uint8)


def docstrings(limit: int = 120_000) -> np.ndarray:
    """Those of the modules of the standard library, in the order of their names."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
        nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        found += [text for node in nodes if (text := ast.get_docstring(node))]
    return np.frombuffer("\n\n".join(found).encode(), np.uint8)[:limit]


def initial(key):
    def dense(i, a, b):
        return jax.random.normal(jax.random.fold_in(key, i), (a, b)) / math.sqrt(a)

    layers = [
        {
            "qkv": dense(4 * i, WIDTH, 3 * WIDTH),
            "out": dense(4 * i + 1, WIDTH, WIDTH) / math.sqrt(2 * DEPTH),
            "up": dense(4 * i + 2, WIDTH, 4 * WIDTH),
            "down": dense(4 * i + 3, 4 * WIDTH, WIDTH) / math.sqrt(2 * DEPTH),
        }
        for i in range(DEPTH)
    ]
    table = 0.02 * jax.random.normal(jax.random.fold_in(key, 999), (256 + LENGTH, WIDTH))
    return {"layers": layers, "embedding": table, "head": dense(1000, WIDTH, 256)}


def initial_adapters(key):
    """Rank-4 factors beside the attention's and the last matrix; their products start at zero."""

    def pair(i, a, b):
        left = jax.random.normal(jax.random.fold_in(key, i), (a, RANK)) / math.sqrt(a)
        return {"a": left, "b": jnp.zeros((RANK, b))}

    return {
        "qkv": [pair(i, WIDTH, 3 * WIDTH) for i in range(DEPTH)],
        "head": pair(DEPTH, WIDTH, 256),
    }


def normalised(x):
    return x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def transformer(params, tokens, adapters=None):
    """Logits of the next byte at every place: (N, LENGTH, 256)."""
    length = tokens.shape[1]
    x = params["embedding"][tokens] + params["embedding"][256 : 256 + length]
    mask = jnp.tril(jnp.ones((length, length), bool))
    for i, layer in enumerate(params["layers"]):
        inner = normalised(x)
        qkv = inner @ layer["qkv"]
        if adapters is not None:
            qkv += inner @ adapters["qkv"][i]["a"] @ adapters["qkv"][i]["b"]
        q, k, v = jnp.split(qkv.reshape(*x.shape[:2], HEADS, -1), 3, axis=-1)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape)
        x += mixed @ layer["out"]
        x += jax.nn.gelu(normalised(x) @ layer["up"]) @ layer["down"]
    last = normalised(x)
    logits = last @ params["head"]
    if adapters is not None:
        logits += last @ adapters["head"]["a"] @ adapters["head"]["b"]
    return logits


def train(key, tx, params, apply_fn, text, steps):
    """Batches of windows drawn with replacement."""

    @jax.jit
    def run(params, state, starts):
        def step(carry, start):
            params, state = carry
            windows = text[start[:, None] + jnp.arange(LENGTH + 1)]

            def loss(p):
                logits = apply_fn(p, windows[:, :-1])
                labels = windows[:, 1:]
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, state), starts)

    starts = jax.random.randint(key, (steps, BATCH), 0, len(text) - LENGTH - 1)
    (params, state), losses = run(params, tx.init(params), starts)
    return params, state, float(jnp.mean(losses[-20:]))


def windows(text, number):
    """Windows side by side: inputs, and the byte after each input."""
    cut = jnp.asarray(text[: number * LENGTH + 1])
    return cut[:-1].reshape(number, LENGTH), cut[1:].reshape(number, LENGTH)


def scores(probs, labels):
    """NLL in nats a byte, ECE."""
    flat, truth = np.asarray(probs).reshape(-1, 256), np.asarray(labels).ravel()
    return (
        float(l2m.metrics.negative_log_likelihood(flat, truth)),
        float(l2m.metrics.expected_calibration_error(flat, truth)),
    )


def run_seed(seed, frozen, adapted):
    def apply_fn(adapters, tokens):
        return transformer(frozen, tokens, adapters)

    key = jax.random.key(100 + seed)
    small = jnp.asarray(adapted[:ADAPT_TO], jnp.int32)
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, ADAPTER_STEPS))
    adapters, state, loss = train(key, tx, initial_adapters(key), apply_fn, small, ADAPTER_STEPS)
    moment = l2m.second_moment(state, adapters, tx=tx)
    # The loss is a mean over BATCH · LENGTH bytes, of which the text holds so many.
    posterior = l2m.laplace(
        adapters,
        moment,
        num_data=len(small),
        batch_size=BATCH * LENGTH,
        with_replacement=True,
    )
    posterior = l2m.fit_prior_precision(posterior).posterior
    held = np.asarray(adapted[60_000:], np.int32)
    x_val, y_val = windows(held[:20_000], 64)
    x, y = windows(held[20_000:], 256)

    tuned = l2m.tune(apply_fn, posterior, x_val, y_val, num_samples=8, chunk_size=1)

    @jax.jit
    def of(posterior, x):
        logits = l2m.linearized(
            jax.random.key(0), apply_fn, posterior, x, num_samples=NUM_SAMPLES, chunk_size=1
        )
        return l2m.classification(logits).probs

    batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, len(x), 32)]

    def found_mode(x):
        return jax.nn.softmax(apply_fn(adapters, x))

    found = {
        "before adapting": lambda x: jax.nn.softmax(transformer(frozen, x)),
        "mode": found_mode,
        "L2M, evidence": lambda x: of(posterior, x),
        # At the lower edge the validation text prefers the mode, which is then what to use.
        "L2M, tuned (v)": found_mode if bool(tuned.info.edge) else lambda x: of(tuned.posterior, x),
    }
    results = {
        name: np.mean([scores(predict(x), y) for x, y in batches], axis=0)
        for name, predict in found.items()
    }
    return results, loss, math.nan if tuned.info.edge else float(tuned.info.value)


def main() -> None:
    start = time.perf_counter()
    text = jnp.asarray(documentation(), jnp.int32)
    params = initial(jax.random.key(0))
    size = sum(p.size for p in jax.tree.leaves(params))
    tx = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS))
    params, _, loss = train(jax.random.key(1), tx, params, transformer, text, STEPS)
    adapters = sum(p.size for p in jax.tree.leaves(initial_adapters(jax.random.key(0))))
    print(
        f"\n{size:,} parameters, {adapters:,} of adapters; pre-trained on {len(text):,} bytes to "
        f"{loss:.2f} nats a byte in {time.perf_counter() - start:.0f} s\n"
    )
    runs = [run_seed(seed, params, docstrings()) for seed in range(SEEDS)]
    print("| docstrings, next byte | NLL, nats | perplexity | ECE |\n|---|---|---|---|")
    for name in runs[0][0]:
        rows = np.array([results[name] for results, _, _ in runs])
        (nll, ece), (nll_s, ece_s) = rows.mean(0), rows.std(0)
        print(
            f"| {name} | {nll:.4f} ± {nll_s:.4f} | {math.exp(nll):.3f} | {ece:.4f} ± {ece_s:.4f} |"
        )
    losses = ", ".join(f"{loss:.2f}" for _, loss, _ in runs)
    temperatures = ", ".join(f"{temperature:.2g}" for _, _, temperature in runs)
    print(f"\nTraining loss of the adapters {losses}; tuned T {temperatures} (nan: an edge).")


if __name__ == "__main__":
    main()
