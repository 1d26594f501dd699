"""The method in four panels, each of them from one real training."""

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

import l2m_optax as l2m
from drawing import band, style, training

WEIGHTS = (0, 20, 40)  # of the tree, from first to last
COLOURS = (style.BLUE, style.VERMILLION, style.GREEN)


def picture(run: training.Run) -> Figure:
    made = style.figure(
        "Training has measured it already: from an optimizer's state to a band", 5.6
    )
    axes = made.subplots(2, 2)
    _losses(axes[0, 0], run)
    _squares(axes[0, 1], run)
    _weights(axes[1, 0], run)
    band.draw(axes[1, 1], run, run.moments[-1])
    axes[1, 1].set(title="4. a band around\neach prediction", xlabel="input", yticks=[])
    made.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return made


def _losses(ax: Axes, run: training.Run) -> None:
    smooth = run.losses.reshape(-1, 30).mean(1)
    ax.plot(30 * np.arange(1, len(smooth) + 1), smooth, color=style.GREY, lw=1.2)
    ax.set(yscale="log", title="1. train as always", xlabel="step", ylabel="loss")
    ax.set_xticks([0, training.STEPS], ["0", f"{training.STEPS:,}"])
    ax.set_yticks([0.1, 1], ["0.1", "1"])
    ax.minorticks_off()


def _squares(ax: Axes, run: training.Run) -> None:
    flat = _flat(run.nu)
    ax.vlines(np.arange(len(flat)), flat.min() / 2, flat, color=style.GREY, lw=2)
    for place, colour in zip(WEIGHTS, COLOURS, strict=True):
        ax.vlines(place, flat.min() / 2, flat[place], color=colour, lw=3)
    ax.set(
        yscale="log", title="2. Adam keeps ν, mean\nsquared gradients", xlabel="weight", ylabel="ν"
    )
    ax.set(
        xticks=[0, len(flat) - 1], xticklabels=["1", f"{len(flat)}"], ylim=(flat.min() / 2, None)
    )
    ax.set_yticks([], minor=True)


def _weights(ax: Axes, run: training.Run) -> None:
    means, deviations = _flat(run.posterior.mean), _flat(l2m.variance(run.posterior)) ** 0.5
    grid = np.linspace(-5, 5, 1200)
    for place, colour in zip(WEIGHTS, COLOURS, strict=True):
        density = norm.pdf(grid, means[place], deviations[place])
        ax.fill_between(grid, density / density.max(), color=colour, alpha=0.35, lw=0)
        ax.plot(grid, density / density.max(), color=colour, lw=1.5)
    ax.set(title="3. that is a Gaussian\nfor each weight", xlabel="value of the weight", yticks=[])


def _flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
