"""Which posterior, as a flowchart: questions on the left, answers on the right."""

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drawing import style

LEFT, RIGHT, STEP = 0.23, 0.74, 1.0
FIT = "fit(..., validation=...)\nthe best of network alone,\nlast layer and all layers"


class Question(NamedTuple):
    text: str
    answer: str
    to: str
    otherwise: str


QUESTIONS = (
    Question(
        "Did you train with\nfull batches?",
        "yes",
        "second_moment_of_examples\nfirst: full batches have no noise",
        "no",
    ),
    Question(
        "Are the training\ndata at hand?",
        "no",
        "laplace, fit_prior_precision,\ntuning.cold_temperature",
        "yes",
    ),
    Question(
        "Did you train\nseveral networks?", "yes", "fit around each member:\nmost accurate", "no"
    ),
    Question("Have you\nvalidation data?", "yes", FIT, "no"),
)
LAST = "fit(...)\nall layers, a small\ntemperature"
THEN = (
    "Then: classify for classes, regress for numbers,\n"
    "decisions.novelty for inputs of an unknown kind"
)


def pictures() -> dict[str, Figure]:
    made = style.figure("Give fit what you have; it chooses", 5.8)
    ax = made.subplots()
    ax.set(xlim=(0, 1), ylim=(-len(QUESTIONS) - 1.35, 0.45))
    ax.axis("off")
    for number, question in enumerate(QUESTIONS):
        _ask(ax, -STEP * number, question)
    _box(ax, LEFT, -len(QUESTIONS), LAST, style.BLUE)
    _box(ax, 0.5, -len(QUESTIONS) - 1, THEN, style.GREY)
    return {"choosing": made}


def _ask(ax: Axes, y: float, question: Question) -> None:
    _box(ax, LEFT, y, question.text, style.INK)
    _box(ax, RIGHT, y, question.to, style.BLUE)
    _arrow(ax, (LEFT + 0.2, y), (RIGHT - 0.255, y), question.answer, (0, 6))
    _arrow(ax, (LEFT, y - 0.3), (LEFT, y - 0.68), question.otherwise, (14, -4))


def _box(ax: Axes, x: float, y: float, text: str, colour: str) -> None:
    edge = {
        "boxstyle": "round,pad=0.45",
        "facecolor": "white",
        "edgecolor": colour,
        "linewidth": 1.6,
    }
    ax.text(x, y, text, ha="center", va="center", fontsize=11, bbox=edge, linespacing=1.25)


def _arrow(ax: Axes, start, end, text: str, shift) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": style.INK})
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    ax.annotate(text, middle, shift, textcoords="offset points", ha="center", fontsize=11)
