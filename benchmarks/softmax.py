"""The mean of a softmax over Gaussian logits: points, draws and closed forms against many draws.

    make bench-softmax

The error is the largest over the classes, a mean over five random covariances; the reference has
400,000 draws. `classify` uses the lattice.
"""

import jax.numpy as jnp
import numpy as np
from scipy import special, stats

import l2m_optax as l2m
from l2m_optax.predict._integral import _points, _root

COVARIANCES, REFERENCE, POINTS = 5, 400_000, 256


def problem(classes, scale, seed):
    """Means between -2 and 2, and a dense covariance whose mean variance is scale²."""
    factor = np.random.default_rng(seed).normal(size=(classes, classes + 2))
    matrix = factor @ factor.T
    return np.linspace(-2, 2, classes), scale**2 * classes * matrix / np.trace(matrix)


def of_normals(mean, covariance, normals):
    root = np.asarray(_root(jnp.asarray(covariance, jnp.float32)))
    return special.softmax(mean + normals @ root.T, axis=-1).mean(axis=0)


def draws(mean, covariance, number, seed=1, batch=50_000):
    rng, total = np.random.default_rng(seed), 0
    for start in range(0, number, batch):
        size = min(batch, number - start)
        total += size * of_normals(mean, covariance, rng.normal(size=(size, len(mean))))
    return total / number


def mirrored(mean, covariance):
    half = np.random.default_rng(2).normal(size=(POINTS // 2, len(mean)))
    return of_normals(mean, covariance, np.concatenate([half, -half]))


def sobol(mean, covariance):
    uniform = stats.qmc.Sobol(len(mean), seed=0).random(POINTS)
    return of_normals(mean, covariance, special.ndtri(uniform))


def lattice(mean, covariance):
    half = _points(len(mean))
    return of_normals(mean, covariance, np.concatenate([half, -half]))


METHODS = {
    "lattice, mirrored, 256 points (`classify`)": lattice,
    "Sobol, scrambled, 256 points": sobol,
    "random, mirrored, 256 draws": mirrored,
    "random, 10,000 draws": lambda mean, covariance: draws(mean, covariance, 10_000, seed=3),
    "mean field": lambda *problem: np.asarray(l2m.predict.mean_field(*problem)),
    "probit": lambda mean, c: np.asarray(l2m.predict.probit(mean, np.diagonal(c))),
    "Laplace bridge": lambda mean, c: laplace_bridge(mean, c),
}


def laplace_bridge(mean, covariance):
    alpha = np.asarray(l2m.predict.laplace_bridge(mean, np.diagonal(covariance)))
    return alpha / alpha.sum()


def main():
    cases = [(classes, scale) for classes in (2, 10, 100) for scale in (0.3, 1.0, 3.0)]
    print("| error of a probability | " + " | ".join(f"K={k}, sd {s:g}" for k, s in cases) + " |")
    print("|---|" + "---|" * len(cases))
    problems = {case: [problem(*case, seed) for seed in range(COVARIANCES)] for case in cases}
    truths = {case: [draws(*p, REFERENCE) for p in found] for case, found in problems.items()}
    for name, method in METHODS.items():
        errors = [
            np.mean([np.abs(method(*p) - t).max() for p, t in zip(problems[c], truths[c], strict=True)])
            for c in cases
        ]
        print(f"| {name} | " + " | ".join(f"{error:.4f}" for error in errors) + " |", flush=True)


if __name__ == "__main__":
    main()
