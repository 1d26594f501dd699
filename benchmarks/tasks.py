"""Tasks of ordinary users: what `fit` makes of their networks, beside what people use now.

Classifiers and regressions of `everyday`, three seeds each; everything around the same trained
weights. (v) is given the validation data. NLL is in nats an observation, over standardised targets;
"against the mode" is the difference in NLL, less than 0 where a method is better, ± one standard
error over seeds and test inputs; "covered" is the share in 90% intervals; AUROC tells the shifted
inputs from the test's, by entropy, for L2M by `decisions.novelty`.
Run: `make bench-tasks`; `FAST=1` for one seed of few tasks. `make bench-other-seeds` gives the
classifiers seeds that had no part in any choice: the network, temperature scaling and L2M (v).
`python benchmarks/tasks.py classifiers "L2M, fit"` makes the rows of one method anew, and keeps the
rest of the record, the counts too.
"""

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import everyday
import everyday_methods as ways
import jax
import numpy as np
import report
from everyday import Task
from everyday_methods import Classes, Numbers

from l2m_optax import metrics

FEW = "digits CNN, 15 epochs", "wine", "concrete, one layer"
SEEDS = range(1 if report.FAST else everyday.SEEDS)
OTHER_SEEDS = range(everyday.SEEDS, everyday.SEEDS + len(SEEDS))
SEEDS_IN_WORDS = f"{len(SEEDS)} seeds of split and training; ± is the deviation over them"
SCALED = "mode, temperature scaling (v)"
FAITHFUL = 0.86, 0.94  # the shares of the data that a 90% interval should hold


class Result(NamedTuple):
    """Figures of a method on one task under one seed, and the NLL of every test input."""

    figures: dict[str, float | str]
    losses: np.ndarray


def of_classes(found: Classes, task: Task) -> Result:
    labels, inside = task.data.y_test, len(task.data.y_test)
    probs = found.probs[:inside]
    chosen = np.take_along_axis(probs, labels[..., None], axis=-1)[..., 0]
    losses = -np.log(np.maximum(chosen, 1e-30)).reshape(inside, -1).mean(1)
    flat = probs.reshape(-1, probs.shape[-1]), labels.ravel()
    shifted = np.arange(len(found.novelty)) >= inside
    return Result(
        {
            "NLL": float(losses.mean()),
            "ECE": float(metrics.expected_calibration_error(*flat)),
            "accuracy": float(metrics.accuracy(*flat)),
            "AUROC": float(metrics.auroc(found.novelty, shifted)) if shifted.any() else np.nan,
        },
        losses,
    )


def of_numbers(found: Numbers, task: Task) -> Result:
    errors = task.data.y_test - found.mean
    losses = 0.5 * (np.log(2 * np.pi * found.variance) + np.square(errors) / found.variance)
    return Result(
        {
            "NLL": float(losses.mean()),
            "covered": float(np.mean(np.abs(errors) <= found.half)),
            "width": float(2 * np.mean(found.half)),
            "RMSE": float(np.sqrt(np.mean(np.square(errors)))),
        },
        losses.ravel(),
    )


def scored(method: Callable[[Task], Any], task: Task) -> Result | str:
    """A method's figures, or its error: one that cannot run is reported, not dropped."""
    start = time.perf_counter()
    try:
        found = method(task)
    except Exception as error:
        return report.failure(error)
    seconds = time.perf_counter() - start
    score = of_numbers if task.kind == "gaussian" else of_classes
    figures, losses = score(found, task)
    more = {"chosen": found.chosen, "T": found.temperature, "seconds": seconds}
    return Result(figures | more, losses)


def difference(found: list[Result], mode: list[Result]) -> tuple[float, float]:
    """In NLL, and its standard error over seeds and over the test inputs."""
    each = np.stack([f.losses - m.losses for f, m in zip(found, mode, strict=True)])
    of_inputs = each.mean(0).var(ddof=1) / each.shape[1]
    of_seeds = each.mean(1).var(ddof=1) / len(each) if len(each) > 1 else 0.0
    return float(each.mean()), float(np.sqrt(of_inputs + of_seeds))


def compare(
    name: str, methods: Mapping[str, Callable[[Task], Any]], seeds: range = SEEDS
) -> dict[str, Any]:
    """Every method's results under all seeds of a task, or its error."""
    table: dict[str, Any] = {}
    for seed in seeds:
        task = everyday.trained(name, seed)
        for method, predict in methods.items():
            if isinstance(table.get(method), str):
                continue
            result = scored(predict, task)
            if isinstance(result, str):
                table[method] = result
            else:
                table.setdefault(method, []).append(result)
        print(name, seed, flush=True)
    jax.clear_caches()  # the programs of all tasks would fill the memory
    return table


def rows(table: Mapping[str, Any]) -> dict[str, Any]:
    """Figures for `report.write`."""

    def row(found):
        if isinstance(found, str):
            return found
        text = against_mode(found, table)
        return [{"NLL": f["NLL"], "against the mode": text, **f} for f, _ in found]

    return {method: row(found) for method, found in table.items()}


def against_mode(found: list[Result] | str, table: Mapping[str, Any]) -> str:
    if isinstance(found, str):
        return "-"
    less, error = difference(found, table["mode"])
    return "-" if np.isnan(less) else f"{less:+.3f} ± {error:.3f}"


def mean(table: Mapping[str, Any], method: str, figure: str) -> float:
    """Over seeds; NaN where there is none."""
    found = table.get(method, "")
    if isinstance(found, str):
        return np.nan
    return float(np.mean([result.figures.get(figure, np.nan) for result in found]))


def worse(table: Mapping[str, Any], method: str) -> bool:
    """Than the mode, by more than two standard errors."""
    found = table.get(method, "")
    if isinstance(found, str):
        return False
    less, error = difference(found, table["mode"])
    return less > 2 * error


def better(tables: Mapping[str, Any], method: str, than: str) -> str:
    """On how many tasks, by what is not rounding: the mode by another way is no better."""
    pairs = [(mean(t, method, "NLL"), mean(t, than, "NLL")) for t in tables.values()]
    known = [one < other - 1e-4 for one, other in pairs if not np.isnan(one + other)]
    return f"{sum(known)} of {len(known)}" if known else "-"


def coverage(tables: Mapping[str, Any], method: str) -> dict[str, str]:
    """The least and the greatest share in 90% intervals, and on how many tasks it is right."""
    shares = [share for t in tables.values() if not np.isnan(share := mean(t, method, "covered"))]
    if not shares:
        return {"covered": "-", "covered 0.86 to 0.94": "-"}
    right = sum(FAITHFUL[0] <= share <= FAITHFUL[1] for share in shares)
    return {
        "covered": f"{min(shares):.2f} to {max(shares):.2f}",
        "covered 0.86 to 0.94": f"{right} of {len(shares)}",
    }


def summary(tables: Mapping[str, Any], others: Mapping[str, str]) -> dict[str, Any]:
    """On how many tasks each method is worse than the mode, and has less NLL than others."""
    numeric = not np.isnan(mean(next(iter(tables.values())), "mode", "covered"))

    def row(method):
        lost = sum(worse(table, method) for table in tables.values())
        versus = {f"less than {title}": better(tables, method, o) for title, o in others.items()}
        covered = coverage(tables, method) if numeric else {}
        return [{"worse than the mode": f"{lost}"} | versus | covered]

    return {method: row(method) for method in methods_of(tables)}


def overview(tables: Mapping[str, Any], figure: str) -> dict[str, Any]:
    """One figure of all tasks and methods, means over seeds."""
    methods = methods_of(tables)
    return {
        name: [{method: mean(table, method, figure) for method in methods}]
        for name, table in tables.items()
    }


def methods_of(tables: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(method for table in tables.values() for method in table))


def chosen(names) -> list[str]:
    return [name for name in names if name in FEW or not report.FAST]


def other_seeds() -> None:
    """The ways to use validation data, under seeds that chose nothing."""
    methods = {name: ways.CLASSIFIERS[name] for name in ("mode", SCALED, "L2M, fit (v)")}
    found = {name: compare(name, methods, OTHER_SEEDS) for name in chosen(everyday.CLASSIFIERS)}
    tables = {
        "classifiers, NLL": summary(found, {"the mode": "mode", "temperature scaling": SCALED}),
        "NLL of classifiers": overview(found, "NLL"),
        "against the mode": {
            name: [{method: against_mode(table[method], table) for method in list(methods)[1:]}]
            for name, table in found.items()
        },
    }
    seeds = ", ".join(map(str, OTHER_SEEDS))
    report.write("tasks-other-seeds", tables, f"means over the seeds {seeds} of split and training")


def all_tasks() -> None:
    classes = {name: compare(name, ways.CLASSIFIERS) for name in chosen(everyday.CLASSIFIERS)}
    numbers = {name: compare(name, ways.REGRESSIONS) for name in chosen(everyday.REGRESSIONS)}
    peer = "laplace-torch, default"
    tables = {
        "classifiers, NLL": summary(
            classes,
            {
                "the mode": "mode",
                "temperature scaling": SCALED,
                "laplace-torch": peer,
            },
        ),
        "regressions, NLL": summary(
            numbers,
            {
                "the mode": "mode",
                "the mode with noise (v)": "mode, noise of validation (v)",
                "laplace-torch": peer,
            },
        ),
        "NLL of classifiers": overview(classes, "NLL"),
        "ECE of classifiers": overview(classes, "ECE"),
        "NLL of regressions": overview(numbers, "NLL"),
        "90% intervals' coverage": overview(numbers, "covered"),
    } | {name: rows(table) for name, table in (classes | numbers).items()}
    report.write("tasks", tables, SEEDS_IN_WORDS)


def anew(kind: str, method: str) -> None:
    """The rows of one method, beside the network, in the tables of each task."""
    known = {"classifiers": ways.CLASSIFIERS, "regressions": ways.REGRESSIONS}[kind]
    tasks = {"classifiers": everyday.CLASSIFIERS, "regressions": everyday.REGRESSIONS}[kind]
    methods, tables = {name: known[name] for name in ("mode", method)}, report.recorded("tasks")
    for name in chosen(tasks):
        made = rows(compare(name, methods))
        tables[name] = {**tables[name], method: made[method]}
        print(name, method, flush=True)
    report.write("tasks", tables, SEEDS_IN_WORDS)


def main() -> None:
    warnings.simplefilter("ignore")
    if "other-seeds" in sys.argv[1:]:
        other_seeds()
    elif sys.argv[1:]:
        anew(*sys.argv[1:])
    else:
        all_tasks()


if __name__ == "__main__":
    main()
