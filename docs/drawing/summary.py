"""The four rows of results on README and on the landing page, from what was recorded."""

from collections.abc import Iterable

import numpy as np

from drawing import records
from drawing.records import report

FIT, TUNED, PEER, MODE = "L2M, fit", "L2M, fit (v)", "laplace-torch, default", "mode"
COLUMNS = {"network alone": MODE, "laplace-torch": PEER, "L2M": FIT, "L2M (v)": TUNED}
LEVEL = 0.9
START, END = "<!-- results, by docs/make_readme.py -->\n", "<!-- end of results -->"


def table() -> str:
    """The best of each row is bold."""
    better = _row("classifiers, NLL", "less than the mode")
    worse = _row("classifiers, NLL", "worse than the mode")
    covered = _row("regressions, NLL", "covered")
    seconds = records.means("cost", "10M parameters: the posterior", "posterior, s")
    times = [np.nan, seconds["laplace-torch, diagonal EF"][0], seconds["L2M"][0], np.nan]
    rows = {
        "classifiers predicted better than by the network": _bold(better, map(_lost, better)),
        "classifiers predicted worse, beyond chance": _bold(worse, map(float, worse)),
        "share of targets in 90% intervals, over regressions": _bold(covered, map(_off, covered)),
        "time to a posterior of 10 million weights": _bold(map(_time, times), times),
    }
    for name in list(rows)[:2]:
        rows[name][0] = "-"  # the network against itself
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" + "|---:" * len(COLUMNS) + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


def _row(heading: str, column: str) -> list[str]:
    return [records.text("tasks", heading, method, column) for method in COLUMNS.values()]


def _bold(cells: Iterable[str], losses: Iterable[float]) -> list[str]:
    """The cell with the least loss in bold."""
    losses = list(losses)
    best = np.nanmin(losses)
    pairs = zip(cells, losses, strict=True)
    return [f"**{cell}**" if loss == best else cell for cell, loss in pairs]


def _lost(text: str) -> float:
    """Of "10 of 13", the share that was not won."""
    won, total = map(float, text.split(" of "))
    return 1 - won / total


def _off(text: str) -> float:
    """Of "0.88 to 0.92", the largest distance from the share that was asked for."""
    return max(abs(float(share) - LEVEL) for share in text.split(" to "))


def _time(seconds: float) -> str:
    return "-" if np.isnan(seconds) else report.duration(seconds)


def replaced(text: str) -> str:
    """A page with the present table between its two marks."""
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"no {START!r} and {END!r}: the page says nothing of where the table goes")
    return before + START + table() + end + after
