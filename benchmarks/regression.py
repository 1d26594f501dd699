"""Gaussian regression on concrete, red wine and diabetes, with no validation data anywhere.

Ten splits each, one hidden layer of 50. HMC (NUTS) with the prior and the noise of the full
generalised Gauss-Newton matrix (GGN) is the reference posterior: "TV to HMC" is the total variation
between a method's predictive distribution and HMC's, averaged over the held-out inputs. The Laplace
posteriors, all around the same weights, find noise and prior by their own evidence; the noise of
the others is that of the training residuals of their mean prediction. IVON's rate and first Hessian
are the best, on the first split, for a tenth of the training data that was left out.
The rows with a structure are those of `make bench-structure`.
Run: `make bench-regression`; `FAST=1` for one split and short chains.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import regression_peers as peers
import report
import structure_regression as structure
from numpyro.diagnostics import split_gelman_rubin
from scipy.stats import norm
from tables import (
    DRAWS,
    EPOCHS,
    HMC_DRAWS,
    SPLITS,
    Split,
    apply_fn,
    ggn_predictions,
    hmc_outputs,
    initial,
    load,
    make_train,
    make_train_tracked,
    split,
    total_variation,
)

import l2m_optax as l2m

MEMBERS = 5
IVON = [{"lr": lr, "hess_init": h} for lr in (0.01, 0.03, 0.1) for h in (0.5, 5.0)]


class Prediction(NamedTuple):
    """A Gaussian for every held-out input, or the outputs whose mixture it is, in units of y."""

    mean: np.ndarray
    variance: np.ndarray
    outputs: np.ndarray | None = None
    noise: float = 0.0

    def density(self, grid):
        """Shape (N, grid)."""
        if self.outputs is None:
            return norm.pdf(
                grid, np.ravel(self.mean)[:, None], np.sqrt(np.ravel(self.variance))[:, None]
            )
        return np.mean([norm.pdf(grid, f, self.noise**0.5) for f in self.outputs], axis=0)


def of_draws(outputs, noise) -> Prediction:
    outputs = np.asarray(outputs, np.float64)
    return Prediction(outputs.mean(0), outputs.var(0) + noise)


def scores(prediction: Prediction, reference: Prediction, data: Split) -> dict[str, float]:
    """In the target's own units."""
    mean, y = np.ravel(prediction.mean) * data.scale, np.ravel(data.y_test) * data.scale
    variance = np.ravel(prediction.variance) * data.scale**2
    m = l2m.metrics
    return {
        "RMSE": float(m.root_mean_squared_error(mean, y)),
        "NLL": float(m.gaussian_negative_log_likelihood(mean, variance, y)),
        "CRPS": float(m.gaussian_crps(mean, variance, y)),
        "covered": float(m.interval_coverage(mean, variance, y)),
        "TV to HMC": total_variation(prediction.density, reference.density),
    }


def l2m_prediction(tx, params, state, data: Split) -> Prediction:
    moment = l2m.second_moment(state, params, tx=tx)
    return Prediction(*structure.predictive(structure.of_data(params, moment, data), data))


def mixture(predictions) -> Prediction:
    """The moments of an equal mixture."""
    means = np.stack([p.mean for p in predictions])
    variances = np.stack([np.reshape(p.variance, p.mean.shape) for p in predictions])
    return Prediction(means.mean(0), variances.mean(0) + means.var(0))


def residual_variance(params, data: Split) -> float:
    return float(np.mean(np.square(data.y - apply_fn(params, data.x))))


def best_ivon(data: Split, name, train) -> dict[str, float]:
    """The settings that predict best a tenth of the training data, left out."""
    noise = residual_variance(train(jax.random.key(0), data.x, data.y)[0], data)
    rows = len(data.x) - len(data.x) // 10
    part = Split(data.x[:rows], data.y[:rows], data.x[rows:], data.y[rows:], 1.0)

    def loss(settings):
        start = initial(jax.random.key(0), data.x.shape[1])
        weights = peers.ivon(name, start, part, noise, 0, **settings)
        outputs = jax.vmap(apply_fn, (0, None))(weights, part.x_test)
        return float(np.mean(np.square(part.y_test - np.mean(outputs, axis=0))))

    return min(IVON, key=loss)


def methods(
    data: Split, seed, name, tools, ivon_settings
) -> Iterator[tuple[str, Callable[[], Prediction]]]:
    """HMC first."""
    (tx, train, swag), train_tracked = tools
    members = [train(jax.random.key(100 * seed + i), data.x, data.y) for i in range(MEMBERS)]
    params, state = members[0]
    again, _, tracked = train_tracked(jax.random.key(100 * seed), data.x, data.y)
    correlated = {
        name: Prediction(*found) for name, found in structure.predictions(again, tracked, data)
    }
    mean = np.asarray(apply_fn(params, data.x_test), np.float64)
    by_diagonal, by_full, prior, noise = ggn_predictions(params, data)

    def hmc():
        outputs = hmc_outputs(f"hmc-{name}-{seed}-{HMC_DRAWS}", params, data, prior, noise)
        return of_draws(outputs, noise)._replace(outputs=outputs, noise=noise)

    def with_residuals(draws):
        """Noise from the training residuals of the mean prediction."""
        residuals = np.mean(np.square(data.y - np.mean(draws(data.x), axis=0)))
        return of_draws(draws(data.x_test), residuals)

    def dropout():
        keys = jax.random.split(jax.random.key(seed), DRAWS)
        dropped, _ = train(jax.random.key(100 * seed), data.x, data.y, dropout=True)
        return with_residuals(lambda x: jax.vmap(lambda k: apply_fn(dropped, x, k))(keys))

    def of_weights(weights):
        return with_residuals(lambda x: jax.vmap(lambda w: apply_fn(w, x))(weights))

    def ivon():
        residuals = residual_variance(params, data)
        start = initial(jax.random.key(100 * seed), data.x.shape[1])
        return of_weights(peers.ivon(name, start, data, residuals, seed, **ivon_settings))

    def by_laplace_torch(**options):
        return Prediction(mean, peers.laplace_torch(params, data, **options))

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(p for p, _ in members))
    yield "HMC", hmc
    yield "mode", lambda: with_residuals(lambda x: apply_fn(params, x)[None])
    yield "MC dropout", dropout
    yield "SWAG, diagonal", lambda: of_weights(swag(params, jax.random.key(seed), data.x, data.y))
    yield "IVON", ivon
    yield (
        "laplace-torch, diagonal EF",
        lambda: by_laplace_torch(structure="diag", backend="BackPackEF"),
    )
    yield (
        "laplace-torch, diagonal GGN",
        lambda: by_laplace_torch(structure="diag", backend="BackPackGGN"),
    )
    yield (
        "laplace-torch, Kronecker",
        lambda: by_laplace_torch(structure="kron", backend="CurvlinopsGGN"),
    )
    yield "L2M", lambda: l2m_prediction(tx, params, state, data)
    yield from ((name, lambda found=found: found) for name, found in correlated.items())
    yield "diagonal GGN", lambda: Prediction(mean, by_diagonal)
    yield "full GGN", lambda: Prediction(mean, by_full)
    yield f"ensemble of {MEMBERS}", lambda: of_weights(stacked)
    yield (
        f"L2M around each of {MEMBERS}",
        lambda: mixture([l2m_prediction(tx, *member, data) for member in members]),
    )


def main() -> None:
    warnings.simplefilter("ignore")
    results, mixing = {}, []
    for name, title in {
        "concrete": "concrete, MPa",
        "wine_red": "red wine, tasters' score",
        "diabetes": "diabetes, score",
    }.items():
        table = load(name)
        number = len(table["x"]) - len(table["x"]) // 10
        plain = make_train(number, EPOCHS[name])
        tools = plain, make_train_tracked(number, EPOCHS[name], structure.CORRELATED, 1)
        ivon_settings = best_ivon(split(table, 0), name, plain[1])
        rows = results.setdefault(title, {})
        for seed in range(SPLITS):
            data, reference = split(table, seed), None
            for method, make in methods(data, seed, name, tools, ivon_settings):
                if isinstance(rows.get(method), str):
                    continue
                try:
                    found = make()
                except Exception as error:  # a peer that cannot run is reported, not dropped
                    if not method.startswith("laplace-torch"):
                        raise
                    rows[method] = report.failure(error)
                    continue
                if reference is None:
                    reference = found
                    mixing.append(split_gelman_rubin(found.outputs[None, :, :, 0]))
                rows.setdefault(method, []).append(scores(found, reference, data))
            print(name, seed, flush=True)
    rhat = np.concatenate(mixing)
    report.write(
        "regression",
        results,
        f"{SPLITS} splits; ± is the deviation over them; split R-hat of HMC's outputs: median "
        f"{np.median(rhat):.3f}, 99th percentile {np.quantile(rhat, 0.99):.3f}",
    )


if __name__ == "__main__":
    main()
