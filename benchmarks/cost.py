"""Seconds and bytes from a trained network to a posterior, and from there to predictions.

Perceptrons 784-W-W-10 of 100k, 1M and 10M parameters, 5,000 training inputs. Weights and inputs are
drawn: no cost depends on what they are. L2M against laplace-torch (the same diagonal, of the
empirical Fisher), posteriors (the same), laplax (Lanczos of rank 20; its diagonal takes a product
with the curvature for each parameter, of which one is timed). Every row is a process of its own.

Predictions: 30 networks drawn from the posterior and run on 1,000 inputs; and the exact variances
of the linearised network's outputs for 1,000 inputs. What grows in proportion to examples or inputs
is measured on fewer of them where networks are large, and scaled up. "First" compiles, where
anything is compiled. "Held" is what a posterior keeps beyond network and optimizer; peaks are
resident memory beyond what it was before. Run: `make bench-cost`; `FAST=1` for 100k alone.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import report
from measure import timed

SIZES = {"100k": 112, "1M": 687, "10M": 2_790}  # the width W for as many parameters
EXAMPLES = {"100k": 5_000, "1M": 2_000, "10M": 250}  # of which curvature is taken
INPUTS = {"100k": 200, "1M": 50, "10M": 5}  # whose Jacobians are formed
DRAWS, RANK, NUM_DATA, BATCH = 30, 20, 5_000, 100


# --- what is common ------------------------------------------------------------------------------


def initial(width):
    shapes = {"body0": (784, width), "body1": (width, width), "head": (width, 10)}
    rng = np.random.default_rng(0)
    return {
        name: {
            "kernel": (rng.normal(size=shape) * (2 / shape[0]) ** 0.5).astype(np.float32),
            "bias": np.zeros(shape[1], np.float32),
        }
        for name, shape in shapes.items()
    }


def examples(number):
    rng = np.random.default_rng(1)
    return rng.normal(size=(number, 784)).astype(np.float32), rng.integers(0, 10, number)


def network(params, x):
    for name in ("body0", "body1"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def loss(params, x, y):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(network(params, x), y))


class Peak:
    """Megabytes of resident memory that were taken while this was entered; NaN if unknown."""

    def __enter__(self):
        self.megabytes = float("nan")
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        except OSError:
            return self
        self.before = self._status("VmRSS")
        return self

    def __exit__(self, *_):
        if hasattr(self, "before"):
            self.megabytes = max(0.0, self._status("VmHWM") - self.before)

    @staticmethod
    def _status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measured(
    fit: Callable, held: Callable, draw: Callable, variance: Callable, share: float, inputs: int
) -> dict[str, float]:
    """The figures of one row.

    Args:
      fit: ``fit() -> posterior``.
      held: ``held(posterior) -> bytes`` beyond network and optimizer.
      draw: ``draw(posterior, x) -> probabilities``, by networks drawn.
      variance: ``variance(posterior, x)``, of the linearised outputs.
      share: of the training examples that the fit looks at.
      inputs: how many `variance` is run on.
    """
    x, _ = examples(1_000)
    with Peak() as fitting:
        start = time.perf_counter()
        posterior = jax.block_until_ready(fit())
        first = time.perf_counter() - start
    again = timed_once(fit)
    with Peak() as predicting:
        _, drawing = timed(draw, posterior, x)
    with Peak() as exact:
        _, jacobians = timed(variance, posterior, x[:inputs])
    return {
        "posterior, first, s": max(0.0, first - again) + again / share,
        "posterior, s": again / share,
        "held, MB": held(posterior) / 1e6,
        "peak, MB": fitting.megabytes,
        "draws, s": drawing,
        "draws, peak MB": predicting.megabytes,
        "variances, s": jacobians * 1_000 / inputs,
        "variances, peak MB": exact.megabytes,
    }


def timed_once(function):
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


# --- the rows ------------------------------------------------------------------------------------


def l2m_row(size):
    import l2m_optax as l2m

    params = jax.tree.map(jnp.asarray, initial(SIZES[size]))
    x, y = map(jnp.asarray, examples(BATCH))
    tx = optax.adam(1e-3)
    state = tx.init(params)
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p, x, y), s, p), donate_argnums=1)
    for _ in range(3):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    ours = {p.unsafe_buffer_pointer() for p in jax.tree.leaves((params, state))}

    def fit():
        moment = l2m.second_moment(state, params, tx=tx)
        posterior = l2m.laplace(params, moment, num_data=NUM_DATA, batch_size=BATCH)
        return l2m.fit_prior_precision(posterior).posterior

    def held(posterior):
        leaves = [p for p in jax.tree.leaves(posterior) if isinstance(p, jax.Array)]
        return sum(p.nbytes for p in leaves if p.unsafe_buffer_pointer() not in ours)

    @jax.jit
    def draw(posterior, x):
        key = jax.random.key(0)
        logits = l2m.monte_carlo(key, network, posterior, x, num_samples=DRAWS, chunk_size=1)
        return l2m.classification(logits).probs

    @jax.jit
    def variance(posterior, x):
        return l2m.output_variance(network, posterior, x)

    return measured(fit, held, draw, variance, 1.0, 1_000)


def torch_network(size):
    import torch

    modules = []
    for layer in initial(SIZES[size]).values():
        module = torch.nn.Linear(*layer["kernel"].shape)
        module.weight.data = torch.tensor(layer["kernel"].T.copy())
        module.bias.data = torch.tensor(layer["bias"])
        modules += [module, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def laplace_torch_row(size):
    import laplace
    import torch
    from laplace.curvature import BackPackEF

    number, model = EXAMPLES[size], torch_network(size)
    data = torch.utils.data.TensorDataset(*map(torch.tensor, examples(number)))

    def fit():
        fitted = laplace.Laplace(
            model,
            "classification",
            subset_of_weights="all",
            hessian_structure="diag",
            backend=BackPackEF,
        )
        fitted.fit(torch.utils.data.DataLoader(data, batch_size=50))
        fitted.optimize_prior_precision(method="marglik")
        return fitted

    def held(fitted):
        return fitted.H.nbytes + fitted.mean.nbytes

    def draw(fitted, x):
        inputs = torch.tensor(x)
        return fitted(inputs, pred_type="nn", link_approx="mc", n_samples=DRAWS).numpy()

    def variance(fitted, x):
        parts = torch.tensor(x).split(5)
        return [fitted._glm_predictive_distribution(part)[1].detach().numpy() for part in parts]

    return measured(fit, held, draw, variance, number / NUM_DATA, INPUTS[size])


def posteriors_row(size):
    import posteriors
    import torch
    from posteriors.laplace import diag_fisher

    number, model = EXAMPLES[size], torch_network(size)
    params = dict(model.named_parameters())
    params = {name: p.detach() for name, p in params.items()}
    inputs, labels = map(torch.tensor, examples(number))

    def forward(params, x):
        return torch.func.functional_call(model, params, x), torch.tensor([])

    def log_posterior(params, batch):
        logits, aux = forward(params, batch[0])
        return -torch.nn.functional.cross_entropy(logits, batch[1], reduction="none"), aux

    def fit():
        transform = diag_fisher.build(log_posterior, per_sample=True, init_prec_diag=1.0)
        state = transform.init(params)
        for batch in zip(inputs.split(50), labels.split(50), strict=True):
            state, _ = transform.update(state, batch)
        return state

    def held(state):
        return sum(p.nbytes for p in state.prec_diag.values())

    def draw(state, x):
        x = torch.tensor(x)
        with torch.no_grad():
            draws = [forward(dict(diag_fisher.sample(state)), x)[0] for _ in range(DRAWS)]
        return torch.stack(draws).softmax(-1).mean(0).numpy()

    def variance(state, x):
        deviations = {name: p.rsqrt() for name, p in state.prec_diag.items()}
        return [
            posteriors.linearized_forward_diag(forward, params, part, deviations)[1].numpy()
            for part in torch.tensor(x).split(5)
        ]

    return measured(fit, held, draw, variance, number / NUM_DATA, INPUTS[size])


def laplax_row(size, **curvature):
    from laplax.api import laplace
    from laplax.eval import pushforward

    number = EXAMPLES[size]
    params = jax.tree.map(jnp.asarray, initial(SIZES[size]))
    x, y = map(jnp.asarray, examples(number))

    def model(input, params):
        return network(params, input)

    def fit():
        return laplace(
            model,
            params,
            {"input": x, "target": y},
            loss_fn="cross_entropy",
            num_curv_samples=number,
            num_total_samples=NUM_DATA,
            **curvature,
        )

    def held(posterior):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(posterior[1]))

    def predictive(posterior, functions, make, **options):
        found = make(
            model_fn=model,
            mean_params=params,
            posterior_fn=posterior[0],
            prior_arguments={"prior_prec": 1.0},
            pushforward_fns=functions,
            **options,
        )
        return jax.jit(jax.vmap(found))

    def draw(posterior, x):
        functions = [pushforward.nonlin_setup, pushforward.nonlin_pred_mean]
        make = pushforward.set_nonlin_pushforward
        options = {"key": jax.random.key(0), "num_samples": DRAWS}
        return predictive(posterior, functions, make, **options)(x)

    def variance(posterior, x):
        functions = [pushforward.lin_setup, pushforward.lin_pred_mean, pushforward.lin_pred_var]
        return predictive(posterior, functions, pushforward.set_lin_pushforward)(x)

    return measured(fit, held, draw, variance, number / NUM_DATA, INPUTS[size])


def lanczos_row(size):
    return laplax_row(size, curv_type="lanczos", rank=RANK, key=jax.random.key(0))


def laplax_diagonal_row(size):
    """One product of the curvature with a vector, times the number of parameters."""
    from laplax.api import GGN

    params = jax.tree.map(jnp.asarray, initial(SIZES[size]))
    x, y = map(jnp.asarray, examples(EXAMPLES[size]))
    data = {"input": x, "target": y}
    product = jax.jit(
        GGN(lambda input, params: network(params, input), params, data, "cross_entropy")
    )
    _, seconds = timed(product, params)
    number = sum(p.size for p in jax.tree.leaves(params))
    columns = dict.fromkeys(COLUMNS, float("nan"))
    seconds *= number * NUM_DATA / EXAMPLES[size]
    return columns | {"posterior, s": seconds, "held, MB": number * 4e-6}


COLUMNS = (
    "posterior, first, s",
    "posterior, s",
    "held, MB",
    "peak, MB",
    "draws, s",
    "draws, peak MB",
    "variances, s",
    "variances, peak MB",
)
ROWS = {
    "L2M": l2m_row,
    "laplace-torch, diagonal EF": laplace_torch_row,
    "posteriors, diagonal EF": posteriors_row,
    f"laplax, Lanczos, rank {RANK}": lanczos_row,
    "laplax, diagonal GGN, by one product": laplax_diagonal_row,
}


def in_a_process(row: str, size: str) -> list[dict[str, float]] | str:
    """The figures, or why there are none."""
    command = [sys.executable, "-W", "ignore", __file__, row, size]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1_800)
    except subprocess.TimeoutExpired:
        return "took over 30 minutes"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:120]
    return [json.loads(done.stdout.splitlines()[-1])]


def with_ratios(rows: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """These columns, each of seconds followed by its ratio to that of L2M."""

    def expanded(figures):
        for column in columns:
            yield column, figures[column]
            if column.endswith(", s") and "first" not in column:
                ratio = figures[column] / rows["L2M"][0][column]
                yield column.replace(", s", " / L2M"), ratio

    return {
        name: row if isinstance(row, str) else [dict(expanded(figures)) for figures in row]
        for name, row in rows.items()
    }


def main() -> None:
    tables = {}
    for size in list(SIZES)[: 1 if report.FAST else None]:
        rows = {}
        for row in ROWS:
            rows[row] = in_a_process(row, size)
            print(size, row, rows[row], flush=True)
        tables[f"{size} parameters: the posterior"] = with_ratios(rows, COLUMNS[:4])
        tables[f"{size} parameters: predictions"] = with_ratios(rows, COLUMNS[4:])
    report.write("cost", tables, "seconds once compiled, of one run")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(ROWS[sys.argv[1]](sys.argv[2])))
    else:
        main()
