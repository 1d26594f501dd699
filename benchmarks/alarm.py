"""How well the alarm tells inputs of another kind, at which temperature.

The networks of `everyday` that see images, trained with two trackers of the same gradients; all
layers, scale checked, prior by the evidence. The AUROC tells tests from shifted inputs: digits
turned by 45 degrees, or MNIST's for clothes, or clothes for MNIST's; and from the negatives of the
tests. "novelty" is `decisions.novelty` with the training loss L: T = N L / γ, of a diagonal a
tenth of it. Seeds 0 and 1 chose this rule, with the first kind of shift; the seeds here, 2 and 3,
had no part in that.
Run: `make bench-alarm`; `FAST=1` for one seed of one network.
"""

from collections.abc import Iterator

import cold
import everyday
import jax.numpy as jnp
import numpy as np
import report
from everyday_methods import in_chunks

import l2m_optax as l2m
from l2m_optax.predict._classify import Settings, at_settings

TASKS = [
    "digits CNN, 15 epochs",
    "digits CNN, 60 epochs",
    "digits MLP, interpolates",
    "Fashion-MNIST MLP, 20 epochs",
    "Fashion-MNIST MLP, 100 epochs",
    "Fashion-MNIST CNN, 10 epochs",
    "MNIST from Fashion-MNIST, fine-tuned",
]
SEEDS = (2,) if report.FAST else (2, 3)
MOST = 500  # inputs of a kind
TEMPERATURES = jnp.array([0.01, 0.1, 1.0])


def kinds_of(data) -> dict[str, np.ndarray]:
    """Tests first, then the shifted inputs, by the name of the shift."""
    tests = data.x_test[:MOST]
    shifts = {"shifted": data.shifted[:MOST], "negatives": 1.0 - tests}
    return {name: np.concatenate([tests, others]) for name, others in shifts.items()}


def scores(apply_fn, posterior, inputs) -> dict[str, np.ndarray]:
    """What could be an alarm, by name."""
    settings = Settings(TEMPERATURES, jnp.ones(len(TEMPERATURES)))

    def at_temperatures(x):
        found = at_settings(apply_fn, posterior, x, settings)
        return found.total.T, found.epistemic.T

    total, epistemic = in_chunks(at_temperatures, inputs)
    alone = l2m.classify(apply_fn, posterior._replace(temperature=jnp.zeros(())), inputs).total
    unknown = posterior._replace(training_loss=None)

    def novelty(posterior):
        return in_chunks(lambda x: l2m.decisions.novelty(apply_fn, posterior, x), inputs)

    by_temperature = {
        f"{name}, T = {t:g}": row
        for name, rows in (("entropy", total), ("information", epistemic))
        for t, row in zip(TEMPERATURES.tolist(), rows.T, strict=True)
    }
    return (
        {"network": alone}
        | by_temperature
        | {"novelty, L unknown": novelty(unknown), "novelty": novelty(posterior)}
    )


def of_network(name, seed) -> Iterator[tuple[str, str, dict[str, float]]]:
    """The tracker, the shift, and the AUROC of each score."""
    data, apply_fn, before, params, states = cold.trained(name, seed)
    recipe, logits = everyday.RECIPES[name], apply_fn(params, data.x)
    loss = -l2m.likelihoods.categorical(logits, data.y).mean()
    for kind, state in states.items():
        posterior = cold.posterior_of(recipe, data, apply_fn, before, params, state)
        posterior = posterior._replace(training_loss=loss)
        gamma = float(l2m.tuning.effective_parameters(posterior))
        for shift, inputs in kinds_of(data).items():
            new = np.arange(len(inputs)) >= len(data.x_test[:MOST])
            found = scores(apply_fn, posterior, inputs)
            row = {score: float(l2m.metrics.auroc(s, new)) for score, s in found.items()}
            yield kind, shift, {"N L / γ": len(data.x) * float(loss) / gamma} | row


def main() -> None:
    tables: dict[str, report.Table] = {}
    for name in TASKS[:1] if report.FAST else TASKS:
        for seed in SEEDS:
            for kind, shift, row in of_network(name, seed):
                tables.setdefault(f"{kind}, {shift}", {}).setdefault(name, []).append(row)
                print(name, seed, kind, shift, {k: round(v, 3) for k, v in row.items()}, flush=True)
    report.write("alarm", tables, f"{len(SEEDS)} seeds, {MOST} inputs of a kind at most")


if __name__ == "__main__":
    main()
