"""Tables of benchmarks, as Markdown for readers and JSON for programs, in `benchmarks/results`.

`python benchmarks/report.py` makes the Markdown again, from the JSON that is there.
"""

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
FAST = bool(os.environ.get("FAST"))
WIDEST = 4  # columns of figures that a phone has room for; the rest is a table below
LESS = {"NLL", "test NLL", "ECE", "Brier", "AURC", "RMSE", "CRPS", "TV to HMC"}  # is better
LESS |= {"NLL, shifted", "ECE, shifted"}
MORE = {"accuracy", "AUROC", "AUROC, digits", "AUROC, entropy", "AUROC, information"}  # is better
REFERENCES = {"HMC", "grid, by the test data"}  # no method that could win
ACROSS = {"NLL of ": LESS, "ECE of ": LESS, "AUROC of ": MORE}  # tables whose columns are methods
SECONDS, MEGABYTES = (", s", "seconds", "s / 1,000"), (" MB",)  # how such a column's name ends
TITLES = {"s / 1,000": "1,000 predictions"}
PACKAGES = (
    "jax",
    "optax",
    "numpyro",
    "torch",
    "laplace-torch",
    "curvlinops-for-pytorch",
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


def recorded(name: str) -> dict[str, Table]:
    """The tables that an earlier run wrote; none where there was no run."""
    path = RESULTS / f"{name}-fast.json" if FAST else RESULTS / f"{name}.json"
    return json.loads(path.read_text())["tables"] if path.exists() else {}


def markdown(record: Mapping[str, Any], heads: Collection[str] | None = None) -> str:
    """The tables with these headings, all of them by default; the best figure is bold."""
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    about = f"{record['machine']}; {versions}; {record['seeds']}."
    chosen = {head: t for head, t in record["tables"].items() if heads is None or head in heads}
    parts = tables(chosen)
    if any("| **" in part for part in parts):
        about += " The best figure is bold."
    return "\n\n".join([about, *parts]) + "\n"


def tables(chosen: Mapping[str, Table]) -> list[str]:
    return [part for head, table in chosen.items() for part in _parts(head, table)]


def failure(error: Exception) -> str:
    """The row of what could not run."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:120]


def duration(seconds: float) -> str:
    """In the unit that a reader would choose."""
    units = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "days": 86400}
    most = {"s": 120, "min": 7200, "h": 172800}  # two of the next unit
    unit = next((u for u, one in units.items() if seconds < most.get(u, 1000 * one)), "days")
    return f"{_number(seconds / units[unit])} {unit}"


def size(megabytes: float) -> str:
    units = {"B": 1e-6, "kB": 1e-3, "MB": 1, "GB": 1e3}
    unit = next((unit for unit, one in units.items() if megabytes < 1000 * one), "GB")
    return f"{_number(megabytes / units[unit])} {unit}" if megabytes else "0"


def _parts(heading: str, table: Table) -> Iterator[str]:
    columns = next((list(row[0]) for row in table.values() if not isinstance(row, str)), [""])
    cells = {method: _cells(row, columns) for method, row in table.items()}
    for method, column in _best(heading, table, columns):
        figure, *spread = cells[method][column].split(" ±")
        cells[method][column] = " ±".join([f"**{figure}**", *spread])
    number = -(-len(columns) // WIDEST)
    for part in np.array_split(np.arange(len(columns)), number):
        yield _part(
            heading, [columns[i] for i in part], {m: [c[i] for i in part] for m, c in cells.items()}
        )


def _part(heading: str, columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> str:
    rows = [[heading, *map(_title, columns)], ["---", *["---:"] * len(columns)]]
    rows += [[method, *row] for method, row in cells.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(row: Row, columns: Sequence[str]) -> list[str]:
    if isinstance(row, str):
        return [f"did not run: {row}", *[""] * (len(columns) - 1)]
    return [_cell(column, _values(row, column)) for column in columns]


def _values(row: Sequence[Mapping[str, Any]], column: str) -> list[Any]:
    """One a seed; NaN in rows that were recorded before there was this column."""
    return [seed.get(column, np.nan) for seed in row]


def _best(heading: str, table: Table, columns: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Where the best figures are: of each column, or of each row if columns are methods.

    A method that has seen fewer seeds than others is compared with none.
    """
    seeds = max((len(row) for row in table.values() if not isinstance(row, str)), default=0)
    means = {
        method: [_mean(_values(row, column)) for column in columns]
        for method, row in table.items()
        if not isinstance(row, str) and method not in REFERENCES and len(row) == seeds
    }
    across = next((better for start, better in ACROSS.items() if heading.startswith(start)), None)
    if across is not None:
        for method, row in means.items():
            yield from ((method, i) for i in _winners(row, across is MORE))
        return
    for i, column in enumerate(columns):
        if column in LESS | MORE or column.endswith(SECONDS + MEGABYTES):
            winners = _winners([row[i] for row in means.values()], column in MORE)
            yield from ((list(means)[place], i) for place in winners)


def _winners(values: Sequence[float], most: bool) -> list[int]:
    """The places of the best value, and of what prints the same; none if nothing differs."""
    known = {i: value for i, value in enumerate(values) if not np.isnan(value)}
    printed = {i: _number(value) for i, value in known.items()}
    if len(set(printed.values())) < 2:
        return []
    best = printed[(max if most else min)(known, key=known.__getitem__)]
    return [i for i, text in printed.items() if text == best]


def _mean(values: Sequence[Any]) -> float:
    return np.nan if isinstance(values[0], str) else float(np.mean(values))


def _title(column: str) -> str:
    """Without the unit, where the cells have one."""
    return TITLES.get(column, re.sub(r", s$|,? MB$", "", column))


def _cell(column: str, values: Sequence[Any]) -> str:
    if isinstance(values[0], str):
        return "; ".join(sorted(set(values)))
    if any(np.isnan(value) for value in values):
        return "-"
    mean, spread = float(np.mean(values)), float(np.std(values))
    if column.endswith(SECONDS):
        return duration(mean)
    if column.endswith(MEGABYTES):
        return size(mean)
    spread_text = (
        f" ±\N{NO-BREAK SPACE}{spread:.{_digits(mean)}f}" if len(values) > 1 and spread else ""
    )
    return f"{_number(mean)}{spread_text}"


def _number(value: float) -> str:
    """Three digits that count, down to thousandths; large numbers as people write them."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.{0 if abs(value) >= 1e7 else 1}f} million"
    return f"{value:,.{_digits(value)}f}" if value else "0"


def _digits(value: float) -> int:
    if not value:
        return 0
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return min(digits, 3) if abs(value) > 5e-3 else digits


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        path.with_suffix(".md").write_text(markdown(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
