"""Tables of benchmarks, as Markdown for readers and JSON for programs, in `benchmarks/results`."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
FAST = bool(os.environ.get("FAST"))
PACKAGES = (
    "jax",
    "optax",
    "numpyro",
    "torch",
    "laplace-torch",
    "laplax",
    "posteriors",
    "ivon-opt",
)

Row = Sequence[Mapping[str, float]] | str  # one mapping a seed, or why there is none


def write(name: str, tables: Mapping[str, Mapping[str, Row]], seeds: str) -> None:
    """Write and print tables; ± is the standard deviation over seeds or splits.

    Args:
      name: of the files; a run with FAST=1 writes to ``name-fast``.
      tables: for each heading, for each method, its figures under each seed, or its error.
      seeds: what the seeds are, in words.
    """
    name = f"{name}-fast" if FAST else name
    RESULTS.mkdir(exist_ok=True)
    about = {"machine": _machine(), "versions": _versions(), "seeds": seeds}
    record = {"about": about, "tables": tables}
    text = "\n\n".join([_about(about), *(_markdown(head, t) for head, t in tables.items())])
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text + "\n")
    print(text)


def failure(error: Exception) -> str:
    """The row of what could not run."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:120]


def _markdown(heading: str, table: Mapping[str, Row]) -> str:
    columns = next((list(row[0]) for row in table.values() if not isinstance(row, str)), [])
    lines = [f"| {heading} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for method, row in table.items():
        if isinstance(row, str):
            cells = [f"did not run: {row}", *[""] * (len(columns) - 1)]
        else:
            cells = [_cell([seed[column] for seed in row]) for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if any(value is None or np.isnan(value) for value in values):
        return "-"
    mean, spread = float(np.mean(values)), float(np.std(values))
    digits = max(0, 3 - max(0, int(np.floor(np.log10(abs(mean)))) + 1)) if mean else 3
    spread_text = f" ± {spread:.{digits}f}" if len(values) > 1 and spread else ""
    return f"{mean:.{digits}f}{spread_text}"


def _about(about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    return f"{about['machine']}; {versions}; {about['seeds']}."


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
