"""A weight decay by the evidence of one training, beside grids of decays and other ways.

    make bench-evidence

The test NLL of the network itself, without a posterior. A grid is seven trainings and one without a
decay; the one of the best NLL on validation data is taken, or that on the test data. L2 adds the
decay to the gradient before Adam, AdamW subtracts it behind. "a" is the overcount, by which F is
divided. For numbers the targets are standardised, and the noise is the mean squared training
residual, for `evidence_weight_decay` its own. The seconds are those of the processor, without
compilation. Tables on other ways, rules, limits, ranks and posteriors follow; their modules say
what they are. Names of tables, or of rows of the limits, as arguments make these alone, and keep
the record of the others. `SEEDS=3` runs three of five seeds of split and training, and with
`FIRST=3` the other two are added to three that are recorded.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence

import evidence_limits
import numpy as np
import report
from evidence_rules import of_rules
from evidence_tasks import TASKS, Task
from evidence_training import (
    Found,
    no_decay,
    of_adamw,
    of_default,
    of_diagonal,
    of_kronecker,
    of_l2,
)

FIRST = int(os.environ.get("FIRST", "0"))
SEEDS = range(FIRST, 1 if report.FAST else int(os.environ.get("SEEDS", "5")))
Way = Callable[[Task, int], dict[str, Found]]
ALL: tuple[Way, ...] = (no_decay, of_l2, of_adamw, of_diagonal, of_kronecker)
FEW: tuple[Way, ...] = (no_decay, of_l2, of_default)
WITH_FEW = {
    "diabetes, three layers of 64",
    "friedman1, three layers of 64",
    "letters, transformer",
    "MNIST from Fashion-MNIST, fine-tuned MLP",
    "MNIST from Fashion-MNIST, fine-tuned MLP, at a rate that is too small",
}
AMONG_PEERS = (
    "digits, MLP",
    "digits, a tenth of the labels by chance, MLP",
    "wines of three growers, MLP",
    "concrete, one layer of 50",
    "Fashion-MNIST, 5,000 images, MLP",
)
ON_TOP = (
    "Fashion-MNIST, 5,000 images, MLP",
    "digits, MLP",
    "digits, a tenth of the labels by chance, MLP",
)
EASY = ("digits, MLP", "breast cancer, MLP", "wines of three growers, MLP")
LIMITS = {
    "NLL of 1,000 images of clothes": evidence_limits.BATCHES,
    "NLL of few and of many examples": evidence_limits.NUMBERS,
}
RANKED = ("Fashion-MNIST, 1,000 images", "digits")


def figures(task: Task, one: Found, none: Found) -> dict[str, float]:
    nats = {"nats a determined parameter": one.nats} if task.kind == "categorical" else {}
    return {
        "test NLL": one.test,
        "less that of no decay": one.test - none.test,
        "seconds, over those of no decay": one.seconds / none.seconds,
    } | nats


def rows(
    task: Task, ways: Sequence[Way], figures: Callable[..., dict[str, float]] = figures
) -> dict[str, list[dict[str, float]]]:
    """Each method's figures under every seed."""
    table: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        found = {name: one for way in ways for name, one in way(task, seed).items()}
        for name, one in found.items():
            table.setdefault(name, []).append(figures(task, one, found["no decay"]))
    return table


def beside_peers(name: str) -> dict[str, list[dict[str, float]]]:
    """The same, and for numbers with the noise of the residuals on validation data as well."""
    from evidence_peers import dropout, early_stopping, marglik_training

    ways = (*FEW, early_stopping, dropout, marglik_training)
    return rows(TASKS[name], ways, of_peers)


def of_peers(task: Task, one: Found, none: Found) -> dict[str, float]:
    of_validation = {"noise by validation data: NLL": one.test_by_validation}
    others = of_validation if task.kind == "gaussian" else {"test accuracy": one.accuracy}
    seconds = {"seconds, over those of no decay": one.seconds / none.seconds}
    return {"test NLL": one.test, "less that of no decay": one.test - none.test} | others | seconds


def with_posteriors(name: str) -> dict[str, list[dict[str, float]]]:
    from evidence_on_top import on_top

    each = [on_top(TASKS[name], seed) for seed in SEEDS]
    return {way: [one[way] for one in each] for way in each[0]}


def with_rules(name: str) -> dict[str, list[dict[str, float | str]]]:
    made = rows(TASKS[name], (no_decay, of_rules), of_rule)
    return {way: with_error(found) for way, found in made.items()}


def of_rule(task: Task, one: Found, none: Found) -> dict[str, float]:
    return {
        "nats a determined parameter": one.nats,
        "test NLL": one.test,
        "less that of no decay": one.test - none.test,
    }


def with_error(found: list[dict[str, float]]) -> list[dict[str, float | str]]:
    """The standard error of the mean difference, over seeds."""
    less = [one["less that of no decay"] for one in found]
    error = f"{np.std(less, ddof=1) / len(less) ** 0.5:.3f}" if len(less) > 1 else "-"
    return [one | {"standard error of this": error} for one in found]


MAKE = {
    name: functools.partial(rows, task, FEW if name in WITH_FEW else ALL)
    for name, task in TASKS.items()
} | {f"other ways: {name}": functools.partial(beside_peers, name) for name in AMONG_PEERS}
MAKE |= {f"rules: {name}": functools.partial(with_rules, name) for name in EASY}
MAKE |= {
    name: functools.partial(evidence_limits.of_limits, tasks, SEEDS)
    for name, tasks in LIMITS.items()
}
MAKE["balance of loss and decay"] = functools.partial(
    evidence_limits.of_balance, TASKS | evidence_limits.BATCHES, SEEDS
)
MAKE |= {
    f"order of 24 widths and depths, {name}": functools.partial(evidence_limits.of_ranks, name)
    for name in RANKED
}
MAKE |= {f"posteriors: {name}": functools.partial(with_posteriors, name) for name in ON_TOP}
TABLE_OF = {row: name for name, tasks in LIMITS.items() for row in tasks}


def main() -> None:
    for name in sys.argv[1:] or list(MAKE):
        if name in TABLE_OF:
            table = TABLE_OF[name]
            made = evidence_limits.of_limits({name: LIMITS[table][name]}, SEEDS)
            record(table, recorded(table) | joined(table, made))
        else:
            record(name, joined(name, MAKE[name]()))


def recorded(name: str) -> report.Table:
    """The rows of one table."""
    found = (table for head, table in report.recorded("evidence").items() if _name(head) == name)
    return next(found, {})


def joined(name: str, made: report.Table) -> report.Table:
    """The rows that were made, behind what is recorded of earlier seeds."""
    earlier = {row: found[:FIRST] for row, found in recorded(name).items() if FIRST}
    return earlier | {row: [*earlier.get(row, []), *found] for row, found in made.items()}


def record(name: str, made: report.Table) -> None:
    """Put a table among those that are recorded; read anew, for others may have been added."""
    held = report.recorded("evidence")
    tables = {head: table for head, table in held.items() if _name(head) != name}
    seeds = max(map(len, made.values()))
    tables[f"{name} ({seeds} {'seed' if seeds == 1 else 'seeds'})"] = made
    order = {name: place for place, name in enumerate(MAKE)}
    tables = dict(sorted(tables.items(), key=lambda item: order.get(_name(item[0]), len(order))))
    report.write("evidence", tables, "seeds of split and training; ± is the deviation over them")


def _name(heading: str) -> str:
    return heading.rsplit(" (", 1)[0]


if __name__ == "__main__":
    main()
