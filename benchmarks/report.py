"""Tables of benchmarks, as Markdown for readers and JSON for programs, in `benchmarks/results`."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
FAST = bool(os.environ.get("FAST"))
WIDEST = 8  # columns that a page has room for; a wider table is continued below itself
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

Row = Sequence[Mapping[str, float | str]] | str  # one mapping a seed, or why there is none
Table = Mapping[str, Row]


def write(name: str, tables: Mapping[str, Table], seeds: str) -> None:
    """Write and print tables; ± is the standard deviation over seeds or splits.

    Args:
      name: of the files; a run with FAST=1 writes to ``name-fast``.
      tables: for each heading, for each method, its figures under each seed, or its error.
      seeds: what the seeds are, in words.
    """
    name = f"{name}-fast" if FAST else name
    RESULTS.mkdir(exist_ok=True)
    record = {
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "versions": {"Python": platform.python_version(), **_versions()},
        "seeds": seeds,
        "tables": tables,
    }
    text = markdown(record)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def markdown(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    about = f"{record['machine']}; {versions}; {record['seeds']}."
    tables = [part for head, table in record["tables"].items() for part in _parts(head, table)]
    return "\n\n".join([about, *tables]) + "\n"


def failure(error: Exception) -> str:
    """The row of what could not run."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:120]


def _parts(heading: str, table: Table) -> Iterator[str]:
    columns = next((list(row[0]) for row in table.values() if not isinstance(row, str)), [""])
    for start in range(0, len(columns), WIDEST):
        yield _part(heading, table, columns[start : start + WIDEST])


def _part(heading: str, table: Table, columns: Sequence[str]) -> str:
    lines = [f"| {heading} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for method, row in table.items():
        if isinstance(row, str):
            cells = [f"did not run: {row}", *[""] * (len(columns) - 1)]
        else:
            cells = [_cell([seed[column] for seed in row]) for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[Any]) -> str:
    if isinstance(values[0], str):
        return "; ".join(sorted(set(values)))
    if any(np.isnan(value) for value in values):
        return "-"
    mean, spread = float(np.mean(values)), float(np.std(values))
    if not mean:
        return "0"
    if abs(mean) < 1e-3 or abs(mean) >= 1e5:
        return f"{mean:.1e}"
    digits = max(0, 2 - int(np.floor(np.log10(abs(mean)))))  # three that count, down to thousandths
    digits = min(digits, 3) if abs(mean) > 5e-3 else digits
    spread_text = f" ± {spread:.{digits}f}" if len(values) > 1 and spread else ""
    return f"{mean:.{digits}f}{spread_text}"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
