"""The four rows of results on README and on the landing page, from what was recorded."""

from drawing import records
from drawing.records import report

FIT, TUNED, PEER, MODE = "L2M, fit", "L2M, fit (v)", "laplace-torch, default", "mode"
COLUMNS = {"network alone": MODE, "laplace-torch": PEER, "L2M": FIT, "L2M (v)": TUNED}
START, END = "<!-- results, by docs/make_readme.py -->\n", "<!-- end of results -->"


def table() -> str:
    better = _row("classifiers, NLL", "less than the mode", "-")
    worse = _row("classifiers, NLL", "worse than the mode", "-")
    covered = _row("regressions, NLL", "covered")
    rows = {
        "classifiers predicted better than by the network": better,
        "classifiers predicted worse, beyond chance": worse,
        "share of targets in 90% intervals, over regressions": covered,
        "time to a posterior of 10 million weights": _times(),
    }
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" + "|---:" * len(COLUMNS) + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


def _row(heading: str, column: str, of_mode: str | None = None) -> list[str]:
    methods = list(COLUMNS.values())
    cells = [records.text("tasks", heading, method, column) for method in methods]
    return cells if of_mode is None else [of_mode, *cells[1:]]


def _times() -> list[str]:
    seconds = records.means("cost", "10M parameters: the posterior", "posterior, s")
    own, peer = (report.duration(seconds[m][0]) for m in ("L2M", "laplace-torch, diagonal EF"))
    return ["-", peer, own, "-"]


def replaced(text: str) -> str:
    """A page with the present table between its two marks."""
    before, _, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"no {START!r} and {END!r}: the page says nothing of where the table goes")
    return before + START + table() + end + after
