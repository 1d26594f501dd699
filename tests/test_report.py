"""The tables of the benchmarks say what was recorded, in units that a reader would choose."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
SPEC = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(report)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_markdown_is_that_of_the_record(path):
    assert path.with_suffix(".md").read_text() == report.markdown(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2e-6, "2.00 µs"), (0.0713, "71.3 ms"), (90, "90.0 s"), (434, "7.23 min"), (75544, "21.0 h")],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


@pytest.mark.parametrize(("megabytes", "text"), [(2.4e-5, "24.0 B"), (5160, "5.16 GB"), (0, "0")])
def test_sizes(megabytes, text):
    assert report.size(megabytes) == text


def test_the_best_of_each_column_is_bold_and_no_reference_is():
    rows = {
        "HMC": [{"NLL": 0.1, "AUROC": 0.9}],
        "one": [{"NLL": 0.3, "AUROC": 0.7}],
        "two": [{"NLL": 0.2, "AUROC": 0.6}],
        "none": "ValueError: no",
    }
    (table,) = report.tables({"data": rows})
    assert table.splitlines()[2:] == [
        "| HMC | 0.100 | 0.900 |",
        "| one | 0.300 | **0.700** |",
        "| two | **0.200** | 0.600 |",
        "| none | did not run: ValueError: no |  |",
    ]


def test_a_method_of_fewer_seeds_is_not_the_best():
    rows = {
        "all": [{"NLL": 0.3}, {"NLL": 0.3}],
        "both": [{"NLL": 0.4}] * 2,
        "first": [{"NLL": 0.1}],
    }
    (table,) = report.tables({"data": rows})
    assert "| all | **0.300** |" in table
    assert "| first | 0.100 |" in table


def test_a_figure_that_a_row_lacks_is_a_dash():
    rows = {"new": [{"NLL": 0.3, "ECE": 0.2}], "old": [{"NLL": 0.4}]}
    (table,) = report.tables({"data": rows})
    assert "| new | **0.300** | 0.200 |" in table
    assert "| old | 0.400 | - |" in table


def test_the_best_of_each_row_is_bold_where_columns_are_methods():
    one, two = {"mode": 0.2, "fit": 0.1, "-": np.nan}, {"mode": 0.3, "fit": 0.3, "-": np.nan}
    (table,) = report.tables({"NLL of tasks": {"one": [one], "two": [two]}})
    assert table.splitlines()[2:] == [
        "| one | 0.200 | **0.100** | - |",
        "| two | 0.300 | 0.300 | - |",
    ]


def test_a_table_has_at_most_four_columns_of_figures():
    row = [{f"c{i}": float(i) for i in range(9)}]
    widths = [part.splitlines()[0].count("|") - 2 for part in report.tables({"data": {"a": row}})]
    assert widths == [3, 3, 3]
