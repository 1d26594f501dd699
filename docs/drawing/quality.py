"""Classifiers of clothes beside other methods: `benchmarks/results/quality.json`."""

from matplotlib.figure import Figure

from drawing import methods, records

NETWORKS = {
    "perceptron": "Fashion-MNIST, perceptron 784-128-128-10",
    "convolutional network": "Fashion-MNIST, convolutional network",
}
SHOWN = (
    "mode",
    "mode, temperature scaling (v)",
    "MC dropout",
    "IVON (v)",
    "laplace-torch, Kronecker",
    "laplace-torch, Kronecker, last layer",
    "laplace-torch, Kronecker, last layer, tuned (v)",
    "L2M, all layers",
    "L2M, last layer",
    "L2M, all layers, tuned (v), mean field",
    "deep ensemble of 5",
    "L2M around each of 5, last layer",
    "L2M, fit",
    "L2M, fit (v)",
)
MODE, SCALED, LAST = SHOWN[0], SHOWN[1], SHOWN[8]
PEER, KRONECKER, DROPOUT = SHOWN[5], SHOWN[4], SHOWN[2]


def pictures() -> dict[str, Figure]:
    return {"quality-nll": nll(), "quality-novelty": novelty(), "quality-shift": shift()}


def nll() -> Figure:
    found = _means("NLL")
    title = records.claim(
        "Without validation data or another training, L2M over the last layer predicts best",
        all(
            table[LAST][0] == min(v for m, (v, _) in table.items() if _frugal(m))
            for table in found.values()
        ),
    )
    return _plot(title, found, "NLL on test images, less is better")


def novelty() -> Figure:
    found = _means("AUROC, digits")
    title = records.claim(
        "L2M tells digits from clothes better than the network; Kronecker factors do it best",
        all(
            t[LAST][0] > t[MODE][0] and t[KRONECKER][0] == max(v for v, _ in t.values())
            for t in found.values()
        ),
    )
    return _plot(title, found, "AUROC, digits against clothes, more is better", most=True)


def shift() -> Figure:
    found = _means("NLL, shifted")
    title = records.claim(
        "Where L2M loses: its last layer is too sure of rotated and noisy images",
        all(max(t[PEER][0], t[DROPOUT][0]) < t[LAST][0] < t[MODE][0] for t in found.values()),
    )
    return _plot(title, found, "NLL on rotated and noisy images, less is better")


def _frugal(method: str) -> bool:
    return records.needs(method) in (
        records.MODE,
        "the optimizer's state",
        "passes over the data",
    )


def _means(column: str):
    return {
        network: records.chosen(records.means("quality", heading, column), SHOWN)
        for network, heading in NETWORKS.items()
    }


def _plot(title, found, axis, most=False) -> Figure:
    return methods.plot(title, found, axis, found["perceptron"], most=most)[0]
