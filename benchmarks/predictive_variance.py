"""What does the exact variance of linearised outputs, the diagonal of J Σ Jᵀ, cost?

`output_variance` is set against ten plain forward and backward passes over the same inputs, against
the Jacobians of `vmap(jacrev)` in chunks, and against the GLM predictive of laplace-torch, with the
same weights and the same posterior. Weights and second moments are drawn, not trained: neither the
cost nor the exactness depends on them. Run: `make bench-variance`, or name the parts:
`python benchmarks/predictive_variance.py bases mlp networks many-outputs memory`.

Memory is what the compiled program allocates beside its arguments and results, as XLA plans it.

The peer is optional. Next to the package's own `[demo]` extra, in the same environment:

    python -m pip install torch==2.13.0
    python -m pip install --no-deps laplace-torch==0.3 asdfghjkl backpack-for-pytorch \
        curvlinops-for-pytorch torchmetrics lightning-utilities einops einconv unfoldNd \
        linear_operator jaxtyping wadler_lindig mpmath opt-einsum tqdm packaging
"""

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import l2m_optax as l2m

ROOT = Path(__file__).parents[1]
JACOBIAN_ENTRIES = 2**25  # of the plain way, at a time: 128 MiB
PEER_INPUTS, PEER_BATCH = 200, 20
MIB = 2**20
PRIOR = 1.0


class Cost(NamedTuple):
    """What a compiled function needs, and what it returned; no seconds if it was not run."""

    seconds: float
    bytes: int
    value: jax.Array | None


# Networks


def mlp(params, x):
    """Dense layers with a ReLU between them."""
    *body, head = params
    for kernel, bias in body:
        x = jax.nn.relu(x @ kernel + bias)
    return x @ head[0] + head[1]


def mlp_params(key: jax.Array, *widths: int) -> list[tuple[jax.Array, jax.Array]]:
    keys = jax.random.split(key, len(widths) - 1)
    pairs = zip(keys, widths[:-1], widths[1:], strict=True)
    return [(jax.random.normal(k, (a, b)) * math.sqrt(2 / a), jnp.zeros(b)) for k, a, b in pairs]


class LeNet(nn.Module):
    """The layers of LeNet-5, on images of 8 by 8."""

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.tanh(nn.Conv(6, (5, 5))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.tanh(nn.Conv(16, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.tanh(nn.Dense(120)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.tanh(nn.Dense(84)(x)))


class Transformer(nn.Module):
    """Two causal layers over characters; the logits of the character after the last."""

    vocabulary: int

    @nn.compact
    def __call__(self, tokens):
        places = self.param("places", nn.initializers.normal(0.02), (tokens.shape[1], 64))
        x = nn.Embed(self.vocabulary, 64)(tokens) + places
        for _ in range(2):
            normed = nn.LayerNorm()(x)
            x += nn.MultiHeadDotProductAttention(num_heads=4)(
                normed, mask=nn.make_causal_mask(tokens)
            )
            x += nn.Dense(64)(nn.gelu(nn.Dense(128)(nn.LayerNorm()(x))))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x)[:, -1])


def posterior_of(params) -> l2m.posterior.Posterior:
    """A posterior whose precisions are spread over two orders of magnitude."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    draws = [jnp.square(jax.random.normal(k, p.shape)) for k, p in zip(keys, leaves, strict=True)]
    moment = l2m.SecondMoment(nu=jax.tree.unflatten(treedef, draws))
    return l2m.laplace(params, moment, num_data=100, batch_size=1, prior_precision=PRIOR)


# Measures


def median_seconds(function: Callable[[], object], repeats: int = 3, budget: float = 15.0) -> float:
    """The median of some runs: `repeats`, or as many as fit into `budget` seconds."""
    times: list[float] = []
    while len(times) < repeats and sum(times) < budget:
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cost(function, *args, limit: int) -> Cost:
    """Compile, and run (once to warm up, then timed) unless it would take more than `limit`."""
    compiled = jax.jit(function).lower(*args).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    if temporary > limit:
        return Cost(math.nan, temporary, None)
    value = jax.block_until_ready(compiled(*args))
    return Cost(median_seconds(lambda: compiled(*args)), temporary, value)


def ours(apply_fn, posterior, inputs, limit: int, chunk_size: int | None = None) -> Cost:
    function = functools.partial(l2m.output_variance, apply_fn, chunk_size=chunk_size)
    return cost(function, posterior, inputs, limit=limit)


def plain(apply_fn, posterior, inputs, limit: int) -> Cost:
    """What one writes first: Jacobians of a chunk of examples, squared, times the variances."""
    outputs = math.prod(jax.eval_shape(apply_fn, posterior.mean, inputs).shape[1:])
    size = sum(v.size for v in jax.tree.leaves(posterior.mean))
    chunk = max(1, JACOBIAN_ENTRIES // (outputs * size))

    def everything(posterior, inputs):
        variances = l2m.variance(posterior)

        def one(example):
            jacobian = jax.jacrev(lambda params: apply_fn(params, example[None])[0])(posterior.mean)
            terms = jax.tree.map(lambda j, v: jnp.tensordot(j**2, v, v.ndim), jacobian, variances)
            return sum(jax.tree.leaves(terms))

        return jax.lax.map(one, inputs, batch_size=chunk)

    return cost(everything, posterior, inputs, limit=limit)


def dense_difference(apply_fn, posterior, inputs, variance) -> float:
    """The largest relative difference from dense Jacobians, contracted in float64.

    They are those of the first three inputs, and of as many outputs as fit into 256 MiB.
    """
    few, size = inputs[:3], sum(v.size for v in jax.tree.leaves(posterior.mean))
    outputs = max(1, 2**26 // (len(few) * size))
    jacobian = jax.jacrev(lambda p: apply_fn(p, few)[:, :outputs])(posterior.mean)
    terms = jax.tree.map(
        lambda j, v: np.tensordot(np.square(j, dtype=np.float64), v.astype(np.float64), v.ndim),
        jax.device_get(jacobian),
        jax.device_get(l2m.variance(posterior)),
    )
    dense = sum(jax.tree.leaves(terms))
    return float(np.max(np.abs(np.asarray(variance)[:3, :outputs] / dense - 1)))


# The peer


def peer(posterior, inputs, variance) -> tuple[float, float] | None:
    """Seconds of laplace-torch for all inputs, and its largest difference in probability.

    They are measured on `PEER_INPUTS` of the inputs, in batches, and scaled up linearly.
    """
    try:
        import torch
    except ImportError:
        return None
    layers: list[torch.nn.Module] = []
    precisions = []
    for (kernel, bias), (f_kernel, f_bias) in zip(
        posterior.mean, l2m.posterior.data_precision(posterior), strict=True
    ):
        linear = torch.nn.Linear(*kernel.shape)
        linear.weight.data = torch.tensor(np.array(kernel.T))
        linear.bias.data = torch.tensor(np.array(bias))
        layers += [linear, torch.nn.ReLU()]
        precisions += [np.array(f_kernel.T).ravel(), np.array(f_bias)]
    model = torch.nn.Sequential(*layers[:-1])
    seconds, probs = glm(model, np.concatenate(precisions), posterior.mean[-1][1].size, inputs)
    logits = mlp(posterior.mean, inputs[:PEER_INPUTS])
    difference = np.abs(probs - np.asarray(l2m.predict.probit(logits, variance[:PEER_INPUTS])))
    return seconds, float(difference.max())


def peer_lenet(images) -> float | None:
    """Seconds of laplace-torch for the layers of `LeNet`, with weights of its own."""
    try:
        from torch import nn as tnn
    except ImportError:
        return None
    model = tnn.Sequential(
        *(tnn.Conv2d(1, 6, 5, padding="same"), tnn.Tanh(), tnn.AvgPool2d(2)),
        *(tnn.Conv2d(6, 16, 3, padding="same"), tnn.Tanh(), tnn.AvgPool2d(2)),
        *(tnn.Flatten(), tnn.Linear(64, 120), tnn.Tanh(), tnn.Linear(120, 84), tnn.Tanh()),
        tnn.Linear(84, 10),
    )
    size = sum(p.numel() for p in model.parameters())
    return glm(model, np.ones(size, np.float32), 10, np.moveaxis(images, -1, 1))[0]


def glm(model, precision, outputs: int, inputs) -> tuple[float, np.ndarray]:
    """Seconds of laplace-torch for all inputs, and probabilities of those that were measured."""
    import laplace
    import torch

    fitted = laplace.DiagLaplace(model, "classification", prior_precision=PRIOR)
    fitted.H = torch.tensor(precision)  # in place of fit: the same posterior
    fitted.mean = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    fitted.n_outputs = model.output_size = outputs
    batches = torch.tensor(np.array(inputs[:PEER_INPUTS])).split(PEER_BATCH)

    def predict():
        return [fitted(x, pred_type="glm", link_approx="probit") for x in batches]

    probs = torch.cat(predict()).numpy()
    return median_seconds(predict) * len(inputs) / PEER_INPUTS, probs


# Parts


def table(*rows: tuple[object, ...]) -> None:
    """Print rows, the first of which is the header, with aligned columns."""
    cells = [[str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * w for w in widths])
    for first, *rest in cells:
        padded = [first.ljust(widths[0])]
        padded += [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        print("| " + " | ".join(padded) + " |")


def seconds_of(cost: Cost) -> str:
    return "not run" if math.isnan(cost.seconds) else f"{cost.seconds:.4f}"


def ratio(a: float, b: float) -> str:
    return "-" if math.isnan(a / b) else f"{a / b:.2f}"


def part_mlp(limit: int) -> None:
    posterior = posterior_of(mlp_params(jax.random.key(0), 784, 128, 128, 10))
    x = jax.random.uniform(jax.random.key(1), (10_000, 784))
    y = jnp.arange(len(x)) % 10

    def loss(params, x):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(mlp(params, x), y))

    step = jax.jit(jax.grad(loss))
    jax.block_until_ready(step(posterior.mean, x))
    passes = median_seconds(lambda: [step(posterior.mean, x) for _ in range(10)])
    exact, jacobians = ours(mlp, posterior, x, limit), plain(mlp, posterior, x, limit)
    rows = [("MLP 784-128-128-10, 10,000 inputs", "seconds", "/ ten passes", "MiB", "rel. diff.")]
    rows.append(("ten forward and backward passes", f"{passes:.4f}", "1.00", "-", "-"))
    for name, spent in {"output_variance": exact, "vmap(jacrev), chunked": jacobians}.items():
        difference = "-"
        if spent.value is not None:
            difference = f"{dense_difference(mlp, posterior, x, spent.value):.1e}"
        over = ratio(spent.seconds, passes)
        rows.append((name, seconds_of(spent), over, f"{spent.bytes / MIB:.1f}", difference))
    theirs = None if exact.value is None else peer(posterior, x, exact.value)
    name = "laplace-torch, GLM, probit (scaled)"
    if theirs is None:
        rows.append((name, "not installed", "-", "-", "-"))
    else:
        rows.append((name, f"{theirs[0]:.4f}", ratio(theirs[0], passes), "-", "-"))
    table(*rows)
    print(f"\nvmap(jacrev) / output_variance: {ratio(jacobians.seconds, exact.seconds)}")
    if theirs is not None:
        print(f"laplace-torch / output_variance: {ratio(theirs[0], exact.seconds)}")
        print(
            f"laplace-torch: {PEER_INPUTS} inputs in batches of {PEER_BATCH}, times "
            f"{len(x) // PEER_INPUTS}; largest difference in probability {theirs[1]:.1e}"
        )


def compared(title: str, cases: dict[str, tuple], limit: int) -> None:
    """One row for each case (apply_fn, posterior, inputs): ours beside the plain way."""
    header = (title, "free params", "seconds", "plain, s", "plain / ours", "MiB", "plain, MiB")
    rows = [(*header, "rel. diff.")]
    for name, (apply_fn, posterior, inputs) in cases.items():
        size = sum(int(jnp.sum(v > 0)) for v in jax.tree.leaves(l2m.variance(posterior)))
        exact = ours(apply_fn, posterior, inputs, limit)
        jacobians = plain(apply_fn, posterior, inputs, limit)
        difference = "-"
        if exact.value is not None:
            difference = f"{dense_difference(apply_fn, posterior, inputs, exact.value):.1e}"
        rows.append(
            (
                name,
                f"{size:,}",
                seconds_of(exact),
                seconds_of(jacobians),
                ratio(jacobians.seconds, exact.seconds),
                f"{exact.bytes / MIB:.1f}",
                f"{jacobians.bytes / MIB:.1f}",
                difference,
            )
        )
    table(*rows)


def windows(length: int = 32, count: int = 64) -> tuple[jax.Array, int]:
    """Stretches of the README as numbers of characters, and how many characters there are."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    characters = sorted(set(text))
    tokens = np.array([characters.index(c) for c in text], np.int32)
    starts = np.linspace(0, len(tokens) - length, count, dtype=int)
    return jnp.asarray(tokens[starts[:, None] + np.arange(length)]), len(characters)


def part_networks(limit: int) -> None:
    images = jnp.asarray(load_digits().images[..., None] / 16.0, jnp.float32)
    tokens, vocabulary = windows()
    cases = {}
    for name, model, inputs in (
        ("LeNet, 1,797 digits, 10 outputs", LeNet(), images),
        (f"transformer, 64 texts, {vocabulary} outputs", Transformer(vocabulary), tokens),
    ):
        params = jax.jit(model.init)(jax.random.key(0), inputs[:1])
        cases[name] = (model.apply, posterior_of(params), inputs)
    compared("network", cases, limit)
    theirs = peer_lenet(images)
    print(f"\nlaplace-torch on LeNet: {'not installed' if theirs is None else f'{theirs:.1f} s'}")


def part_many_outputs(limit: int) -> None:
    body, head = mlp_params(jax.random.key(0), 64, 512, 3100)
    everything = posterior_of({"body": body, "head": head})
    x = jax.random.normal(jax.random.key(1), (1, 64))

    def apply_fn(params, x):
        return mlp([params["body"], params["head"]], x)

    features = jax.nn.relu(x @ body[0] + body[1])
    cases = {
        "the last layer by itself": (mlp, posterior_of([head]), features),
        "restricted to the last layer": (apply_fn, l2m.restrict(everything, "head"), x),
        "all layers": (apply_fn, everything, x),
    }
    compared("64-512-3,100, one input", cases, limit)


def part_memory(limit: int) -> None:
    del limit  # nothing is run
    base = {"chunk size": 16, "inputs": 1000, "outputs": 10}
    varied = {"chunk size": (4, 16, 64), "inputs": (100, 1000, 10_000), "outputs": (2, 10, 100)}
    rows = [("varied", *base, "MiB")]
    for name, values in varied.items():
        for value in values:
            case = base | {name: value}
            posterior = posterior_of(mlp_params(jax.random.key(0), 784, 128, 128, case["outputs"]))
            x = jnp.zeros((case["inputs"], 784))
            spent = ours(mlp, posterior, x, -1, case["chunk size"])
            rows.append((name, *(f"{c:,}" for c in case.values()), f"{spent.bytes / MIB:.1f}"))
    table(*rows)


def in_bases_of(params) -> l2m.posterior.Posterior:
    """A posterior of which every leaf has a Kronecker basis, of gradients that are noise."""
    tx = l2m.track_second_moment(0.9, structure="kronecker")
    state = tx.init(params)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noise = [jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    _, state = tx.update(jax.tree.unflatten(treedef, noise), state)
    moment = l2m.second_moment(state)
    return l2m.laplace(params, moment, num_data=100, batch_size=1, prior_precision=PRIOR)


def flops(function, apply_fn, posterior, inputs) -> float:
    """Of all inputs in one chunk, as XLA counts them."""
    whole = functools.partial(function, apply_fn, chunk_size=len(inputs))
    analysis = jax.jit(whole).lower(posterior, inputs).compile().cost_analysis()
    return analysis["flops"]


def fastest_in_turns(functions, repeats: int = 9) -> list[float]:
    """The least CPU seconds of each, measured in turns, so that other work slows all alike."""
    least = [math.inf] * len(functions)
    for _ in range(repeats):
        for i, function in enumerate(functions):
            start = time.process_time()
            jax.block_until_ready(function())
            least[i] = min(least[i], time.process_time() - start)
    return least


def part_bases(limit: int) -> None:
    del limit
    images = jnp.asarray(load_digits().images[:300, ..., None] / 16.0, jnp.float32)
    lenet, wide = LeNet(), jax.random.uniform(jax.random.key(1), (2000, 784))
    cases = {
        "MLP 784-128-128-10, 2,000 inputs": (
            mlp,
            mlp_params(jax.random.key(0), 784, 128, 128, 10),
            wide,
        ),
        "MLP 64-128-128-10, 2,000 inputs": (
            mlp,
            mlp_params(jax.random.key(0), 64, 128, 128, 10),
            wide[:, :64],
        ),
        "LeNet, 300 digits": (
            lenet.apply,
            jax.jit(lenet.init)(jax.random.key(0), images[:1]),
            images,
        ),
    }
    rows = [
        ("Kronecker bases / diagonal", "function", "CPU s", "diagonal, CPU s", "ratio", "flops")
    ]
    for name, (apply_fn, params, inputs) in cases.items():
        posteriors = in_bases_of(params), posterior_of(params)
        for function in (l2m.output_variance, l2m.output_covariance):
            calls = [functools.partial(function, apply_fn, p, inputs) for p in posteriors]
            for call in calls:  # compiled
                jax.block_until_ready(call())
            ours, plain = fastest_in_turns(calls)
            counted = [flops(function, apply_fn, p, inputs[:100]) for p in posteriors]
            spent = f"{ours:.3f}", f"{plain:.3f}", ratio(ours, plain), ratio(*counted)
            rows.append((name, function.__name__, *spent))
    table(*rows)


PARTS = {
    "bases": part_bases,
    "mlp": part_mlp,
    "networks": part_networks,
    "many-outputs": part_many_outputs,
    "memory": part_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--limit", type=float, default=4.0, help="GiB above which nothing is run")
    arguments = parser.parse_args()
    for name in arguments.parts or PARTS:
        if name not in PARTS:
            parser.error(f"{name}: expected one of {', '.join(PARTS)}")
        print(f"\n{name}\n")
        PARTS[name](int(arguments.limit * 2**30))


if __name__ == "__main__":
    main()
