"""The picture of the landing page: what the quickstart's `fit` changes."""

import runpy

import numpy as np
from matplotlib.figure import Figure

from drawing import style
from drawing.records import ROOT
from l2m_optax import metrics

SCRIPT = ROOT / "notebooks" / "01_quickstart.py"
FEWEST = 30  # images in a bin that is drawn


def picture() -> Figure:
    """From the predictions that the quickstart leaves behind, `alone` and `p`."""
    found = runpy.run_path(str(SCRIPT))
    curves = {"network alone": found["alone"], "after fit": found["p"].probs}
    return draw(curves, found["y_test"])


def draw(curves, labels) -> Figure:
    made = style.figure("Three lines after training, and 90% sure means 90% right", 4.6)
    ax = made.subplots()
    ax.plot([0.3, 1], [0.3, 1], ":", color=style.GREY, lw=2)
    ax.annotate("perfect", (0.42, 0.42), (-8, 6), textcoords="offset points", ha="right")
    colours = {"network alone": (style.VERMILLION, "D"), "after fit": (style.BLUE, "o")}
    for name, probs in curves.items():
        curve = metrics.reliability_curve(probs, labels, num_bins=10)
        full = np.asarray(curve.size) > FEWEST
        loss = metrics.negative_log_likelihood(probs, labels)
        text = f"{name}: NLL {loss:.2f} on test images"
        shape = style.shape(colours[name][1], colours[name][0])
        ax.plot(curve.confidence[full], curve.accuracy[full], lw=2, label=text, **shape)
    ax.set(xlabel="how sure the prediction is", ylabel="share that is right")
    percent = np.arange(0.3, 1.05, 0.1)
    ax.set_xticks(percent, [f"{p:.0%}" for p in percent])
    ax.set_yticks(percent, [f"{p:.0%}" for p in percent])
    made.legend(loc="outside lower left")
    return made
