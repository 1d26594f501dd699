"""What correlations are worth in regression: one and three hidden layers of 50.

Diagonal, Kronecker and full moments of the same training run, prior and noise by the evidence,
beside the exact generalised Gauss-Newton matrix (GGN) with its own. "TV to GGN" is the total
variation between a method's predictive distribution and that of the GGN, a mean over held-out
inputs. HMC is in `make bench-regression`. Run: `make bench-structure`; `FAST=1` for one split.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import report
from scipy.stats import norm
from tables import (
    BATCH_SIZE,
    EPOCHS,
    SPLITS,
    Split,
    apply_fn,
    ggn_predictions,
    load,
    make_train_tracked,
    split,
    total_variation,
)

import l2m_optax as l2m

CORRELATED = {
    "L2M, Kronecker": l2m.track_second_moment(0.999, structure="kronecker"),
    "L2M, full": l2m.track_second_moment(0.999, structure="full"),
    "L2M, Kronecker, true Fisher": l2m.track_second_moment(0.999, structure="kronecker"),
}
TRACKERS = {"L2M, diagonal": l2m.track_second_moment(0.999), **CORRELATED}
ROUNDS = 10  # of the noise variance and the true Fisher, each of which needs the other


def predictions(params: Any, tracked: dict[str, Any], data: Split) -> Iterator[tuple[str, Any]]:
    """The mean and the variance of every held-out target, by the name of the tracker."""
    for name, state in tracked.items():
        make = of_model if "true" in name else of_data
        yield name, predictive(make(params, state, data), data)


def predictive(posterior: l2m.posterior.Posterior, data: Split) -> tuple[np.ndarray, np.ndarray]:
    mean = np.asarray(apply_fn(posterior.mean, data.x_test), np.float64)
    variance = np.asarray(l2m.output_variance(apply_fn, posterior, data.x_test), np.float64)
    return mean, variance + float(posterior.noise_variance)


def of_data(params: Any, state: Any, data: Split) -> l2m.posterior.Posterior:
    posterior = l2m.laplace(
        params, state, num_data=len(data.x), batch_size=BATCH_SIZE, loss_scale=2.0
    )
    return l2m.fit_noise_variance(apply_fn, posterior, data.x, data.y).posterior


def of_model(params: Any, state: Any, data: Split) -> l2m.posterior.Posterior:
    """F goes as 1/s², and for squared residuals, which `fit_noise_variance` takes, as 1/s⁴."""
    unit = l2m.laplace(
        params, state, num_data=len(data.x), batch_size=BATCH_SIZE, with_replacement=True
    )
    noise = float(np.mean(np.square(data.y - apply_fn(params, data.x))))
    for _ in range(ROUNDS):
        as_residuals = l2m.tuning.rescale(unit, 1 / noise)
        posterior = l2m.fit_noise_variance(apply_fn, as_residuals, data.x, data.y).posterior
        noise = float(posterior.noise_variance)
    return posterior


def scores(found: tuple, reference: tuple, data: Split) -> dict[str, float]:
    """NLL in the target's own units."""
    mean, variance, y = (np.ravel(a) for a in (*found, data.y_test))
    nll = l2m.metrics.gaussian_negative_log_likelihood
    return {
        "NLL": float(nll(mean * data.scale, variance * data.scale**2, y * data.scale)),
        "covered": float(l2m.metrics.interval_coverage(mean, variance, y)),
        "TV to GGN": total_variation(*(functools.partial(density, f) for f in (found, reference))),
    }


def density(found: tuple, grid: np.ndarray) -> np.ndarray:
    mean, variance = (np.ravel(a)[:, None] for a in found)
    return norm.pdf(grid, mean, np.sqrt(variance))


def study(name: str, depth: int) -> dict[str, list[dict[str, float]]]:
    table, results = load(name), {}
    num_data = len(table["x"]) - len(table["x"]) // 10
    train = make_train_tracked(num_data, EPOCHS[name], TRACKERS, depth)
    for seed in range(SPLITS):
        data = split(table, seed)
        params, _, tracked = train(jax.random.key(100 * seed), data.x, data.y)
        _, by_full, _, _ = ggn_predictions(params, data)
        mean = np.asarray(apply_fn(params, data.x_test), np.float64)
        residuals = np.mean(np.square(data.y - apply_fn(params, data.x)))
        rows = {
            "the network": (mean, np.full_like(mean, residuals)),
            **dict(predictions(params, tracked, data)),
            "full GGN": (mean, by_full),
        }
        for method, found in rows.items():
            results.setdefault(method, []).append(scores(found, rows["full GGN"], data))
        print(name, depth, seed, {m: round(r[-1]["NLL"], 3) for m, r in results.items()})
    return results


def main() -> None:
    titles = {"concrete": "concrete", "wine_red": "red wine", "diabetes": "diabetes"}
    layers = {1: "one layer", 3: "three layers"}
    tables = {
        f"{title}, {layers[depth]}": study(name, depth)
        for name, title in titles.items()
        for depth in layers
    }
    report.write("structure-regression", tables, f"{SPLITS} splits; ± is the deviation over them")


if __name__ == "__main__":
    main()
