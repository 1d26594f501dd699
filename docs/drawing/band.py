"""A band that narrows as training goes on, as a small moving picture."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from drawing import style, training

SHOWN = [int(step) for step in np.unique(np.geomspace(15, training.STEPS, 22).round())]
TITLE = "As training goes on, the band narrows where there are data, not where there are none"
MILLISECONDS, LAST = 220, 3000


def save(run: training.Run, path: Path) -> None:
    frames = [_frame(run, moment) for moment in run.moments]
    reduced = [frame.quantize(48, dither=Image.Dither.NONE) for frame in frames]
    lengths = [MILLISECONDS] * (len(frames) - 1) + [LAST]
    rest = {"save_all": True, "append_images": reduced[1:], "duration": lengths, "loop": 0}
    reduced[0].save(path, optimize=True, **rest)


def draw(ax: Axes, run: training.Run, moment: training.Moment) -> None:
    """Observations, the mean, and bands of 95%: of the function, and of new observations."""
    grid = training.GRID[:, 0]
    ax.plot(run.x, run.y, ".", color=style.INK, ms=4)
    for variance, colour in (
        (moment.variance + moment.noise, style.SKY),
        (moment.variance, style.BLUE),
    ):
        half = 1.96 * np.sqrt(variance)
        ax.fill_between(
            grid, moment.mean - half, moment.mean + half, color=colour, alpha=0.35, lw=0
        )
    ax.plot(grid, moment.mean, color=style.BLUE, lw=2)
    ax.set(xlim=(-3.2, 3.2), ylim=(-2.4, 2.4))


def _frame(run: training.Run, moment: training.Moment) -> Image.Image:
    made = style.figure(TITLE, 3.7)
    ax = made.subplots()
    draw(ax, run, moment)
    ax.text(0.02, 0.04, f"step {moment.step:,}", transform=ax.transAxes, fontsize=14)
    ax.set(xlabel="input", ylabel="output")
    canvas = FigureCanvasAgg(made)
    made.set_dpi(110)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
