"""What do predictions with 30 draws cost beside thirty passes of the bare network?

Monte Carlo and linearised draws, of many inputs and of one, made once or fresh; laplace-torch's
Monte Carlo with the same weights and the same diagonal posterior, where it is installed
(benchmarks/predictive_variance.py says how); and what mirror images are worth, on digits.
Run: `make bench-serving`.
"""

import itertools
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import l2m_optax as l2m

WIDTHS = (784, 128, 128, 10)
INPUTS, SAMPLES, CHUNK = 10_000, 30, 1
PRIOR = 50.0


def apply_fn(params, x):
    *body, head = params
    for layer in body:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ head["kernel"] + head["bias"]


def initial(key, widths):
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {"kernel": jax.random.normal(k, (a, b)) * math.sqrt(2 / a), "bias": jnp.zeros(b)}
        for k, (a, b) in zip(keys, itertools.pairwise(widths), strict=True)
    ]


def medians(functions, repeats):
    """Seconds of each, taken in turns after a first call that compiles."""
    times = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[1:]) for seconds in times]


def many_inputs(posterior, x):
    """10,000 inputs: against thirty calls of the jitted network, or of its derivative."""
    forward = jax.jit(apply_fn)
    draws = [jax.tree.map(lambda d, i=i: d[i], stack(posterior)) for i in range(SAMPLES)]
    tangents = [jax.tree.map(jnp.subtract, draw, posterior.mean) for draw in draws]

    @jax.jit
    def jvp(tangent, x):
        return jax.jvp(lambda p: apply_fn(p, x), (posterior.mean,), (tangent,))[1]

    kwargs = {"num_samples": SAMPLES, "chunk_size": CHUNK}
    key = jax.random.key(1)
    made = {
        kind: l2m.make_predictive(key, apply_fn, posterior, kind=kind, **kwargs)
        for kind in ("monte_carlo", "linearized")
    }
    seconds = medians(
        [
            lambda: [forward(draw, x) for draw in draws],
            lambda: l2m.monte_carlo(key, apply_fn, posterior, x, **kwargs),
            lambda: made["monte_carlo"](x),
            lambda: [jvp(tangent, x) for tangent in tangents],
            lambda: l2m.linearized(key, apply_fn, posterior, x, **kwargs),
            lambda: made["linearized"](x),
        ],
        7,
    )
    theirs = laplace_torch(posterior, x)
    print(f"| {INPUTS:,} inputs, {SAMPLES} draws | seconds | ratio |\n|---|---|---|")
    for name, value, reference in [
        ("thirty forward passes", seconds[0], seconds[0]),
        ("Monte Carlo, fresh draws", seconds[1], seconds[0]),
        ("Monte Carlo, draws made once", seconds[2], seconds[0]),
        ("laplace-torch, Monte Carlo", theirs, seconds[0]),
        ("thirty directional derivatives", seconds[3], seconds[3]),
        ("linearised, fresh draws", seconds[4], seconds[3]),
        ("linearised, draws made once", seconds[5], seconds[3]),
    ]:
        print(f"| {name} | {value:.3f} | {value / reference:.2f} |")


def one_input(posterior, x):
    """One input: against the vmapped network itself."""
    key, draws = jax.random.key(1), stack(posterior)
    vmapped = jax.jit(jax.vmap(apply_fn, in_axes=(0, None)))
    made = {
        kind: l2m.make_predictive(key, apply_fn, posterior, kind=kind, num_samples=SAMPLES)
        for kind in ("monte_carlo", "linearized")
    }
    names = ["vmapped forward", "Monte Carlo", "linearised"]
    seconds = medians(
        [lambda: vmapped(draws, x), *(lambda p=p: p(x) for p in made.values())],
        301,
    )
    print(f"\n| one input, {SAMPLES} draws made once | microseconds | ratio |\n|---|---|---|")
    for name, value in zip(names, seconds, strict=True):
        print(f"| {name} | {1e6 * value:.0f} | {value / seconds[0]:.2f} |")


def stack(posterior):
    return l2m.sample(jax.random.key(1), posterior, SAMPLES)


def laplace_torch(posterior, x) -> float:
    """Seconds of laplace-torch's Monte Carlo for the same posterior; NaN where not installed."""
    try:
        import laplace
        import torch
    except ImportError:
        return math.nan
    layers, precisions = [], []
    for layer, precision in zip(
        posterior.mean, l2m.posterior.data_precision(posterior), strict=True
    ):
        linear = torch.nn.Linear(*layer["kernel"].shape)
        linear.weight.data = torch.tensor(np.array(layer["kernel"].T))
        linear.bias.data = torch.tensor(np.array(layer["bias"]))
        layers += [linear, torch.nn.ReLU()]
        precisions += [np.ravel(precision["kernel"].T), np.ravel(precision["bias"])]
    model = torch.nn.Sequential(*layers[:-1])
    fitted = laplace.DiagLaplace(model, "classification", prior_precision=PRIOR)
    fitted.H = torch.tensor(np.concatenate(precisions))  # in place of fit: the same posterior
    fitted.mean = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    fitted.n_outputs = model.output_size = WIDTHS[-1]
    inputs = torch.tensor(np.array(x))

    def predict():
        with torch.no_grad():
            return fitted(inputs, pred_type="nn", link_approx="mc", n_samples=SAMPLES).numpy()

    return medians([predict], 5)[0]


def mirror_images():
    """The variance of mean probabilities over keys, at S draws, with and without mirror images."""
    digits = load_digits()
    x, y = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
    params, tx = initial(jax.random.key(0), (64, 64, 10)), optax.adam(3e-3)

    @jax.jit
    def step(carry, rows):
        params, state = carry

        def loss(p):
            logits = apply_fn(p, x[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    rows = jax.random.randint(jax.random.key(1), (600, 64), 0, 1000)
    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), rows)
    moment = l2m.second_moment(state, params, tx=tx)
    posterior = l2m.laplace(params, moment, num_data=1000, batch_size=64, with_replacement=True)
    posterior = l2m.fit_prior_precision(posterior).posterior
    x, y = x[1000:], y[1000:]
    print("\n| digits, temperature | predictive | draws | variance, mirrored / independent |")
    print("|---|---|---|---|")
    for temperature, kind in itertools.product((0.01, 0.1, 1.0), (l2m.linearized, l2m.monte_carlo)):
        at = posterior._replace(temperature=jnp.float32(temperature))
        variances = []
        for antithetic in (True, False):

            def mean_probs(key, at=at, kind=kind, antithetic=antithetic):
                logits = kind(key, apply_fn, at, x, num_samples=32, antithetic=antithetic)
                return l2m.classification(logits).probs

            probs = jax.lax.map(mean_probs, jax.random.split(jax.random.key(2), 60))
            variances.append(float(jnp.mean(jnp.var(probs, axis=0))))
        print(f"| {temperature} | {kind.__name__} | 32 | {variances[0] / variances[1]:.2f} |")


def main():
    params = initial(jax.random.key(0), WIDTHS)
    nu = jax.tree.map(lambda p: jnp.full(p.shape, 1e-3), params)
    posterior = l2m.laplace(
        params, l2m.SecondMoment(nu=nu), num_data=1000, batch_size=100, prior_precision=PRIOR
    )
    x = jax.random.normal(jax.random.key(2), (INPUTS, WIDTHS[0]))
    many_inputs(posterior, x)
    one_input(posterior, x[:1])
    mirror_images()


if __name__ == "__main__":
    main()
