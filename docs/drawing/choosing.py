"""Which posterior, as a flowchart: questions on the left, answers on the right."""

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

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
    asked = [_ask(ax, -STEP * number, question) for number, question in enumerate(QUESTIONS)]
    below = [*asked[1:], _box(ax, LEFT, -len(QUESTIONS), LAST, style.BLUE)]
    for question, start, end in zip(QUESTIONS, asked, below, strict=True):
        _arrow(ax, start, end, question.otherwise, (14, -4))
    _box(ax, 0.5, -len(QUESTIONS) - 1, THEN, style.GREY)
    return {"choosing": made}


def _ask(ax: Axes, y: float, question: Question) -> Text:
    asked = _box(ax, LEFT, y, question.text, style.INK)
    _arrow(ax, asked, _box(ax, RIGHT, y, question.to, style.BLUE), question.answer, (-16, 6))
    return asked


def _box(ax: Axes, x: float, y: float, text: str, colour: str) -> Text:
    edge = {"boxstyle": "round,pad=0.45", "fc": "white", "ec": colour, "linewidth": 1.6}
    return ax.text(x, y, text, ha="center", va="center", fontsize=11, bbox=edge, linespacing=1.25)


def _arrow(ax: Axes, start: Text, end: Text, text: str, shift) -> None:
    """From box to box."""
    places = start.get_position(), end.get_position()
    ends = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
    head = {"arrowstyle": "-|>", "color": style.INK, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", places[1], places[0], arrowprops=head | ends)
    middle = [(one + other) / 2 for one, other in zip(*places, strict=True)]
    ax.annotate(text, middle, shift, textcoords="offset points", ha="center", fontsize=11)
