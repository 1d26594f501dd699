"""How small a temperature without validation data should be, with correlations and without.

Classifiers of `everyday`, two seeds, trained with two trackers of the same gradients. All layers,
scale checked, prior by the evidence; T = c γ / (N K) for several c. "Gain" is the share of the
network's own test NLL that is saved, in per cent; below 0 the network alone is better.
`tuning.cold_temperature` takes c = 0.01 for a diagonal and 0.1 with correlations.
Run: `make bench-cold`; `FAST=1` for one seed of few tasks.
"""

import everyday
import jax
import jax.numpy as jnp
import numpy as np
import optax
import report

import l2m_optax as l2m

TASKS = [
    name
    for name in everyday.CLASSIFIERS
    if name not in ("letters, transformer", "digits CNN, BatchNorm, Dropout, AdamW")
]
FEW = "wine", "digits CNN, 15 epochs"
SEEDS = range(1 if report.FAST else 2)
MOST = 500  # test inputs
KINDS = {
    "diagonal": l2m.track_second_moment(0.999),
    "Kronecker": l2m.track_second_moment(0.999, structure="kronecker", every=10),
}
FACTORS = 0.003, 0.01, 0.03, 0.1, 0.3, 1.0


def trained(name, seed):
    """The data, the network, its parameters before and after, and the state of each tracker."""
    recipe = everyday.RECIPES[name]
    data = recipe.load(seed)
    steps = recipe.epochs * (len(data.x) // recipe.batch_size)
    tx = optax.chain(*KINDS.values(), recipe.make_tx(steps))
    before, rest = everyday.start(recipe, data, seed)
    key = jax.random.fold_in(jax.random.key(seed), 1)
    params, state, _ = everyday.run(
        recipe.network, tx, recipe.epochs, recipe.batch_size, key, before, rest, data.x, data.y
    )
    return (
        data,
        everyday.plain(recipe.network),
        before,
        params,
        dict(zip(KINDS, state, strict=False)),
    )


def posterior_of(recipe, data, apply_fn, before, params, state):
    posterior = l2m.laplace(
        params,
        state,
        num_data=len(data.x),
        batch_size=recipe.batch_size,
        prior_mean=before if recipe.pretrain else None,
    )
    scale = l2m.tuning.check_scale(
        apply_fn, posterior, data.x[:1024], data.y[:1024], likelihood="categorical"
    )
    posterior = l2m.tuning.rescale(posterior, float(scale.ratio))
    return l2m.fit_prior_precision(posterior).posterior


def nll(data, apply_fn, posterior, temperature):
    cooled = posterior._replace(temperature=jnp.float32(temperature))
    parts = np.array_split(np.arange(min(len(data.x_test), MOST)), 5)
    probs = [np.asarray(l2m.classify(apply_fn, cooled, data.x_test[rows]).probs) for rows in parts]
    return float(l2m.metrics.negative_log_likelihood(np.concatenate(probs), data.y_test[:MOST]))


def gains(name, seed):
    data, apply_fn, before, params, states = trained(name, seed)
    classes = apply_fn(params, data.x[:1]).shape[-1]
    for kind, state in states.items():
        posterior = posterior_of(everyday.RECIPES[name], data, apply_fn, before, params, state)
        unit = float(l2m.tuning.effective_parameters(posterior)) / (len(data.x) * classes)
        alone = nll(data, apply_fn, posterior, 0.0)
        yield (
            kind,
            {"network": alone, "γ/(NK)": unit}
            | {
                f"c = {c:g}": 100 * (1 - nll(data, apply_fn, posterior, c * unit) / alone)
                for c in FACTORS
            },
        )


def main():
    tables = {f"{kind}, gain in per cent": {} for kind in KINDS}
    for name in FEW if report.FAST else TASKS:
        for seed in SEEDS:
            for kind, row in gains(name, seed):
                tables[f"{kind}, gain in per cent"].setdefault(name, []).append(row)
                print(name, seed, kind, {k: round(v, 3) for k, v in row.items()}, flush=True)
    report.write("cold", tables, f"{len(SEEDS)} seeds, {MOST} test inputs at most")


if __name__ == "__main__":
    main()
