"""Regressions with HMC as the reference: `benchmarks/results/regression.json`."""

from matplotlib.figure import Figure

from drawing import methods, records

SHOWN = (
    "mode",
    "MC dropout",
    "IVON",
    "laplace-torch, diagonal EF",
    "laplace-torch, Kronecker",
    "L2M",
    "L2M, Kronecker",
    "L2M, Kronecker, true Fisher",
    "full GGN",
    "ensemble of 5",
    "L2M around each of 5",
)
L2M, MODE = "L2M", "mode"
TRUE_FISHER, PEER = "L2M, Kronecker, true Fisher", "laplace-torch, Kronecker"


def pictures() -> dict[str, Figure]:
    return {"regression-hmc": distance(), "regression-nll": nll()}


def distance() -> Figure:
    found = _means("TV to HMC")
    title = records.claim(
        "With factors of the true Fisher L2M is nearer to exact inference than laplace-torch",
        all(table[TRUE_FISHER][0] < table[PEER][0] for table in found.values()),
    )
    return _plot(title, found, "total variation to HMC, less is better")


def nll() -> Figure:
    exact = _means("NLL", ("HMC",))
    found = {
        name: {m: (value - exact[name]["HMC"][0], 0.0) for m, (value, _) in table.items()}
        for name, table in _means("NLL").items()
    }
    title = f"Without validation data L2M predicts better than the mode on {_wins(found)} data sets"
    return _plot(title, found, "NLL above that of HMC, less is better")


def _wins(found) -> str:
    better = [table for table in found.values() if table[L2M][0] < table[MODE][0]]
    return f"{len(better)} of {len(found)}"


def _means(column: str, shown=SHOWN):
    return {
        heading.split(",")[0]: records.chosen(records.means("regression", heading, column), shown)
        for heading in records.headings("regression")
    }


def _plot(title, found, axis) -> Figure:
    return methods.plot(title, found, axis, next(iter(found.values())))[0]
