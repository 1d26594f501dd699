"""The pictures of the documentation say what was recorded, and README has the recorded figures."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))

from drawing import choosing, cost, curvature, quality, records, regression, summary, tasks  # noqa: E402

LARGEST = 500_000  # bytes of the moving picture


@pytest.mark.parametrize(
    "subject", [quality, regression, cost, curvature, tasks, choosing], ids=lambda s: s.__name__
)
def test_a_picture_has_a_title_and_text_that_a_phone_can_show(subject):
    for picture in subject.pictures().values():
        texts = [text for ax in picture.axes for text in (*ax.texts, ax.xaxis.label)]
        assert picture.get_suptitle()
        assert min(text.get_fontsize() for text in texts) * 360 / (5.5 * 72) >= 10


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_a_page_has_the_recorded_results(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == summary.replaced(text), "run python docs/make_readme.py"


def test_four_rows_of_results_have_a_best():
    _, _, *rows = summary.table().splitlines()
    assert len(rows) == 4
    assert all("**" in row for row in rows)


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="where the table goes"):
        summary.replaced("no marks")


def test_a_title_that_the_record_does_not_bear_out_is_refused():
    assert records.claim("so it is", True) == "so it is"
    with pytest.raises(ValueError, match="no longer says 'so it was'"):
        records.claim("so it was", False)


@pytest.mark.parametrize(
    ("method", "need"),
    [
        ("mode", "the network alone"),
        ("mode, temperature scaling (v)", "validation data"),
        ("L2M, last layer", "the optimizer's state"),
        ("laplace-torch, Kronecker", "passes over the data"),
        ("IVON (v)", "a training of its own"),
        ("L2M around each of 5", "five trainings"),
    ],
)
def test_what_is_hardest_to_get_is_the_colour(method, need):
    assert records.needs(method) == need


def test_the_moving_picture_is_small():
    assert (ROOT / "docs" / "band.gif").stat().st_size < LARGEST
