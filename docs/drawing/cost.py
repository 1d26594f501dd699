"""What a posterior costs: `benchmarks/results/cost.json`."""

from matplotlib.figure import Figure

from drawing import methods, records
from drawing.records import report

SIZES = ("100k", "1M", "10M")
TICKS = {1e-3: "1 ms", 1: "1 s", 60: "1 min", 3600: "1 h", 86400: "1 day", 8.64e6: "100 days"}


def pictures() -> dict[str, Figure]:
    return {"cost-posterior": posterior(), "cost-variances": variances()}


def posterior() -> Figure:
    found = _times("the posterior", "posterior, s")
    own, others = found["10M parameters"]["L2M"][0], _others(found)
    title = (
        f"A posterior of ten million weights takes L2M {report.duration(own)}; "
        f"the next fastest takes {report.duration(others)}"
    )
    return _plot(title, found, "time from a trained network to a posterior")


def variances() -> Figure:
    found = _times("predictions", "variances, s")
    own, others = found["10M parameters"]["L2M"][0], _others(found)
    title = (
        f"Exact variances of 1,000 predictions take L2M {report.duration(own)}, "
        f"the next fastest {report.duration(others)}, with ten million weights"
    )
    return _plot(title, found, "time for the variances of 1,000 predictions")


def _others(found) -> float:
    return min(value for method, (value, _) in found["10M parameters"].items() if method != "L2M")


def _times(part: str, column: str):
    return {
        f"{size} parameters": records.means("cost", f"{size} parameters: {part}", column)
        for size in SIZES
    }


def _plot(title, found, axis) -> Figure:
    made, ax = methods.plot(title, found, axis, found["10M parameters"], scale="log")
    highest = max(value for table in found.values() for value, _ in table.values())
    ticks = {second: name for second, name in TICKS.items() if second < 3 * highest}
    ax.set_xticks(list(ticks), ticks.values(), rotation=35, ha="right", rotation_mode="anchor")
    ax.minorticks_off()
    return made
