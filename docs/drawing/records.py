"""What the benchmarks recorded in `benchmarks/results`, as means, and what a method needs."""

import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from drawing.style import BLUE, GREEN, GREY, ORANGE, PINK, VERMILLION

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import report  # noqa: E402

MODE = "the network alone"
NEEDS = {
    MODE: GREY,
    "the optimizer's state": BLUE,
    "passes over the data": ORANGE,
    "validation data": GREEN,
    "a training of its own": PINK,
    "five trainings": VERMILLION,
}
OWN_TRAINING = ("MC dropout", "SWAG", "IVON", "HMC")
PASSES = ("laplace-torch", "posteriors", "laplax", "diagonal GGN", "full GGN")
SEVERAL = ("deep ensemble", "ensemble", "L2M around each")


@cache
def record(name: str) -> dict[str, Any]:
    return json.loads((report.RESULTS / f"{name}.json").read_text())


def headings(name: str) -> list[str]:
    return list(record(name)["tables"])


def means(name: str, heading: str, column: str) -> dict[str, tuple[float, float]]:
    """Of each method that ran: the mean over seeds, and the standard deviation."""
    rows = record(name)["tables"][heading].items()
    values = {m: [seed[column] for seed in row] for m, row in rows if not isinstance(row, str)}
    found = {m: (float(np.mean(v)), float(np.std(v))) for m, v in values.items()}
    return {method: pair for method, pair in found.items() if not np.isnan(pair[0])}


def text(name: str, heading: str, method: str, column: str) -> str:
    """A figure that was recorded as words, "10 of 13" for example."""
    return record(name)["tables"][heading][method][0][column]


def needs(method: str) -> str:
    """Most of all: what is hardest to come by decides."""
    if method.startswith(SEVERAL):
        return "five trainings"
    if method.startswith(OWN_TRAINING):
        return "a training of its own"
    if "(v)" in method:
        return "validation data"
    if method.startswith(PASSES):
        return "passes over the data"
    return MODE if method == "mode" else "the optimizer's state"


def colours(methods: Iterable[str]) -> dict[str, str]:
    """Of those needs that occur."""
    occur = {needs(method) for method in methods}
    return {need: colour for need, colour in NEEDS.items() if need in occur}


def claim(title: str, holds: bool) -> str:
    """A title, if the record bears it out."""
    if not holds:
        raise ValueError(f"the record no longer says {title!r}: write what it says now")
    return title


def chosen(table: Mapping[str, Any], methods: Iterable[str]) -> dict[str, Any]:
    return {method: table[method] for method in methods if method in table}
