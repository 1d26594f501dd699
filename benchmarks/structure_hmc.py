"""What correlations are worth in regression, with HMC as the reference: one hidden layer of 50.

The structures of `structure_regression`, scored as in `regression`. HMC (NUTS) has the prior and
the noise of the full generalised Gauss-Newton matrix (GGN), and its draws are kept in a cache.
`SPLITS=3` takes the first three splits.
Run: `make bench-structure-hmc`; `FAST=1` for one split and short chains.
"""

import os

import jax
import numpy as np
import report
import structure_regression as structure
from regression import Prediction, of_draws, scores
from tables import (
    EPOCHS,
    HMC_DRAWS,
    SPLITS,
    apply_fn,
    ggn_predictions,
    hmc_outputs,
    load,
    make_train_tracked,
    split,
)

NUMBER = min(SPLITS, int(os.environ.get("SPLITS", SPLITS)))
TITLES = {"concrete": "concrete", "wine_red": "red wine", "diabetes": "diabetes"}


def predictions(name, seed, train) -> tuple[structure.Split, dict[str, Prediction]]:
    data = split(load(name), seed)
    params, _, tracked = train(jax.random.key(100 * seed), data.x, data.y)
    mean = np.asarray(apply_fn(params, data.x_test), np.float64)
    by_diagonal, by_full, prior, noise = ggn_predictions(params, data)
    outputs = hmc_outputs(f"hmc-{name}-{seed}-{HMC_DRAWS}", params, data, prior, noise)
    residuals = np.mean(np.square(data.y - apply_fn(params, data.x)))
    found = {"the network": (mean, np.full_like(mean, residuals))}
    found |= structure.predictions(params, tracked, data)
    found |= {"diagonal GGN": (mean, by_diagonal), "full GGN": (mean, by_full)}
    hmc = of_draws(outputs, noise)._replace(outputs=outputs, noise=noise)
    return data, {"HMC": hmc} | {method: Prediction(*pair) for method, pair in found.items()}


def study(name: str) -> dict[str, list[dict[str, float]]]:
    number, table = len(load(name)["x"]), {}
    train = make_train_tracked(number - number // 10, EPOCHS[name], structure.TRACKERS, 1)
    for seed in range(NUMBER):
        data, found = predictions(name, seed, train)
        for method, prediction in found.items():
            row = scores(prediction, found["HMC"], data)
            kept = {column: row[column] for column in ("NLL", "covered", "TV to HMC")}
            table.setdefault(method, []).append(kept)
        print(name, seed, flush=True)
    return table


def main() -> None:
    tables = {f"{title}, one layer": study(name) for name, title in TITLES.items()}
    report.write("structure-hmc", tables, f"{NUMBER} splits; ± is the deviation over them")


if __name__ == "__main__":
    main()
