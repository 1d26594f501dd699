"""One process of several: trains data-parallel, builds the posterior, predicts and saves.

Run by tests/test_processes.py: `worker.py FOLDER NUMBER INDEX PORT`.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import l2m_optax as l2m

BATCH, STEPS = 32, 20


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def main(folder: Path, number: int, index: int, port: int) -> None:
    if number > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", number, index)
    assert jax.process_count() == number
    mesh = jax.make_mesh((number,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, BATCH, 4)).astype(np.float32)
    y = np.argmax(x[..., :3], axis=-1).astype(np.int32)
    specs = {"w": P(None, "data"), "v": P("data", None)}  # parameters are sharded as well
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    batched = NamedSharding(mesh, P("data"))

    def globally(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda place: array[place])

    params = {
        "w": globally(rng.normal(size=(4, 8)).astype(np.float32), shardings["w"]),
        "v": globally(rng.normal(size=(8, 3)).astype(np.float32), shardings["v"]),
    }
    tx = optax.adam(1e-2)
    state = jax.jit(tx.init)(params)

    @jax.jit
    def step(params, state, x, y):
        def loss(p):
            logits = network(p, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(STEPS):
        params, state = step(params, state, globally(x[i], batched), globally(y[i], batched))

    moment = l2m.second_moment(state, params, tx=tx)
    posterior = l2m.laplace(params, moment, num_data=STEPS * BATCH, batch_size=BATCH)
    posterior = l2m.fit_prior_precision(posterior).posterior
    logits = l2m.linearized(
        jax.random.key(1), network, posterior, globally(x[0], batched), num_samples=4
    )
    everywhere = NamedSharding(mesh, P())
    found = {
        "probs": l2m.classification(logits).probs,
        "log_evidence": l2m.tuning.log_evidence(posterior),
        "prior_precision": posterior.prior_precision,
        "draw": l2m.sample(jax.random.key(2), posterior, 1)["w"],
    }
    found = jax.jit(lambda x: x, out_shardings=everywhere)(found)
    l2m.checkpoint.save(folder / f"posterior{number}", posterior)
    like = jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s), params, shardings
    )
    restored = l2m.checkpoint.restore(folder / f"posterior{number}", like=like)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(posterior), strict=True):
        if jnp.ndim(ours):
            for a, b in zip(ours.addressable_shards, theirs.addressable_shards, strict=True):
                np.testing.assert_array_equal(a.data, b.data)
    if index == 0:
        np.savez(folder / f"{number}.npz", **{k: np.asarray(v) for k, v in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
