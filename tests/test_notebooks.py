"""Each notebook is in step with its script, opens in Colab, is small, and runs anywhere."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
NAMES = [script.stem for script in SCRIPTS]
COLAB = "https://colab.research.google.com/github/l2m-optax/l2m-optax/blob/main/notebooks"
each = pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)

# A test runs the whole notebook, but takes fewer steps: each line is replaced by the one beside it.
SHORTER = {
    "02_regression_with_a_gap": {
        "STEPS = 16, 0.2, 16, 6_000": "STEPS = 16, 0.2, 16, 500",
        "DRAWS = 500": "DRAWS = 10",
    },
    "03_two_moons": {"TRAIN, BATCH, STEPS = 500, 32, 3_000": "TRAIN, BATCH, STEPS = 500, 32, 300"},
    "04_images": {"EPOCHS, BATCH = 20, 50": "EPOCHS, BATCH = 2, 50"},
    "05_any_optimizer": {"BATCH, STEPS = 16, 6_000": "BATCH, STEPS = 16, 1_200"},
    "06_checkpoints_and_fine_tuning": {"= 20, 3_000, 2_000": "= 20, 300, 200"},
    "07_many_devices": {"BATCH, STEPS = 40, 2_100": "BATCH, STEPS = 40, 70"},
    "08_comparison": {
        "NETWORKS = 3": "NETWORKS = 2",
        "epochs=30": "epochs=3",
        "epochs=150": "epochs=20",
    },
    "09_weight_decay_that_finds_itself": {"= 32, 200, 3": "= 32, 10, 3"},
}

DISTRIBUTIONS = importlib.metadata.packages_distributions()

QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"  # most programs run a few times

# The first notebook is `make demo`. The others share two processes, which import jax and flax once
# each. That of many devices is the first of its process: it makes them before jax starts.
OTHERS = [script for script in SCRIPTS[1:] if "many_devices" not in script.stem]
GROUPS = [*SCRIPTS[6:7], *OTHERS[::2]], OTHERS[1::2]


def cells(path: Path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def code(path: Path) -> list[str]:
    return [source for kind, source in cells(path) if kind == "code"]


def needs(path: Path) -> tuple[tuple[str, ...], str]:
    """The modules that a first cell asks for, and the extra of the package that holds them."""
    return ast.literal_eval(re.search("^needs, extra = (.*)$", code(path)[0], re.MULTILINE)[1])


def test_there_are_scripts():
    assert SCRIPTS


@each
def test_the_notebook_is_in_step(script):
    notebook = script.with_suffix(".ipynb")
    assert notebook.exists(), f"{notebook.name} is missing: run make notebooks"
    assert cells(notebook) == cells(script), f"{notebook.name} is out of step: run make notebooks"


@each
def test_the_badge_opens_this_notebook(script):
    assert f"({COLAB}/{script.stem}.ipynb)" in cells(script)[0][1]


@each
def test_outputs_are_kept_small(script):
    assert script.with_suffix(".ipynb").stat().st_size < 500_000


@each
def test_the_gallery_shows_its_first_picture(script):
    outputs = [
        o
        for cell in jupytext.read(script.with_suffix(".ipynb")).cells
        for o in cell.get("outputs", ())
    ]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert f"{{figure}} notebooks/{script.stem}.png" in page
    assert f"](notebooks/{script.stem}.ipynb)" in page


def test_the_first_cells_differ_in_what_they_need_alone():
    first = {re.sub("(?m)^needs, extra = .*$", "", code(script)[0]) for script in SCRIPTS}
    assert len(first) == 1


def test_the_quickstart_has_a_picture_by_line_forty():
    """Lines of code, without blank ones and comments, below the cell that installs."""
    before, drawn, _ = "\n".join(code(SCRIPTS[0])[1:]).partition("plt.subplots(")
    lines = [line.strip() for line in before.splitlines()]
    assert drawn
    assert len([line for line in lines if line and not line.startswith("#")]) <= 40


@each
def test_what_is_imported_is_asked_for(script):
    tree = ast.parse("\n".join(code(script)))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        name.split(".")[0]
        for node in found
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    come_with_jax = {"jax", "numpy", "scipy", "optax"}  # optax comes with l2m_optax
    assert names - sys.stdlib_module_names - come_with_jax == set(needs(script)[0])


@each
def test_the_extra_holds_what_is_asked_for(script):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules, extra = needs(script)
    assert {DISTRIBUTIONS[module][0] for module in modules[1:]} <= requirements(
        extras["optional-dependencies"], extra
    )


def requirements(extras: dict[str, list[str]], extra: str) -> set[str]:
    """Names of the packages in an extra, and in the extras of the package itself that it names."""
    names = set()
    for line in extras[extra]:
        if inner := re.fullmatch(r"l2m-optax\[(.*)\]", line):
            names |= set().union(*(requirements(extras, name) for name in inner[1].split(",")))
        else:
            names.add(re.match("[a-z-]+", line)[0])
    return names


PIP = """
import pathlib, sys
pathlib.Path(__file__).with_name("asked").write_text(sys.argv[-1])
print("a line before", "ERROR: the last line", sep="\\n", file=sys.stderr)
sys.exit({status})
"""


def first_cell(script, folder, *options, status=1, within="."):
    """A first cell, run in a folder with a pip that ends with `status`, and what that was asked."""
    (folder / "fake").mkdir()
    (folder / "fake" / "pip.py").write_text(PIP.format(status=status))
    (folder / within).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, *options, "-c", code(script)[0]],
        cwd=folder / within,
        env=os.environ | {"PYTHONPATH": str(folder / "fake")},
        capture_output=True,
        text=True,
    )
    asked = folder / "fake" / "asked"
    return done, asked.read_text() if asked.exists() else None


NO_PACKAGES = "-S"  # python starts without site-packages


@each
def test_without_an_index_the_first_cell_says_what_to_do_in_one_line(script, tmp_path):
    done, asked = first_cell(script, tmp_path, NO_PACKAGES)
    extra = needs(script)[1]
    assert asked == f"l2m-optax[{extra}]"
    assert done.stderr == (
        f"ERROR: the last line: run pip install '.[{extra}]' in a clone of the repository\n"
    )
    assert done.returncode == 1


def test_the_first_cell_installs_from_the_clone_that_holds_it(tmp_path):
    (tmp_path / "l2m_optax").mkdir()
    done, asked = first_cell(SCRIPTS[0], tmp_path, NO_PACKAGES, status=0, within="notebooks")
    assert (asked, done.returncode, done.stderr) == ("..[demo]", 0, "")


def test_the_first_cell_installs_nothing_where_all_is_there(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in needs(SCRIPTS[0])[0]:
        (tmp_path / "elsewhere" / f"{name}.py").touch()
    done, asked = first_cell(SCRIPTS[0], tmp_path, NO_PACKAGES, within="elsewhere")
    assert (asked, done.returncode) == (None, 0)


def namespace_until(script: Path, last: str) -> dict:
    """What the cells leave behind, from the second to the one that defines `last`."""
    names = {"__file__": str(script), "Path": Path}
    for source in code(script)[1:]:
        exec(compile(source, script.name, "exec"), names)
        if last in names:
            return names
    raise AssertionError(f"{script.name} never defines {last}")


def that_define(function: str) -> pytest.MarkDecorator:
    """Each notebook with its own function of this name."""
    found = [script for script in SCRIPTS if f"def {function}():" in script.read_text()]
    return pytest.mark.parametrize("script", found, ids=[script.stem for script in found])


@that_define("clothes")
def test_the_images_are_those_of_the_folder(script):
    """Its numbers are about these; `test_the_notebook_runs` takes what stands in for them."""
    names = namespace_until(script, "clothes")
    images, labels = names["clothes"]()
    assert (images.shape, labels.shape, images.dtype) == ((9_000, 28, 28), (9_000,), np.uint8)
    arrays = np.load(ROOT / "notebooks" / "data" / "fashion_mnist_subset.npz")
    parts = names["split"](images) if "split" in names else np.split(images, names["cuts"])
    for name, part in zip(("train", "val", "test"), parts, strict=True):
        np.testing.assert_array_equal(part, arrays[f"x_{name}"])


@that_define("concrete")
def test_the_mixtures_are_those_of_the_folder(script):
    inputs, strength = namespace_until(script, "concrete")["concrete"]()
    assert (inputs.shape, strength.shape) == ((1_030, 8), (1_030,))


RUN = """
import runpy, sys, traceback
from urllib.error import URLError
import matplotlib, matplotlib.pyplot as plt, sklearn.datasets

def no_answer(*_, **__):
    raise URLError("no network")

sklearn.datasets.fetch_openml = no_answer
failed = False
for script in sys.argv[1:]:
    try:
        with matplotlib.rc_context():
            runpy.run_path(script, run_name="__main__")
    except Exception:
        failed = True
        traceback.print_exc()
    plt.close("all")
sys.exit(failed)
"""


def shorter(script: Path) -> str:
    text = script.read_text(encoding="utf-8")
    for line, instead in SHORTER.get(script.stem, {}).items():
        assert text.count(line) == 1, f"{script.name} has no line {line!r}"
        text = text.replace(line, instead)
    return text


@pytest.mark.parametrize("scripts", GROUPS, ids=[group[0].stem for group in GROUPS])
def test_the_notebooks_run(scripts, tmp_path):
    """In an empty folder, without a network: data are those that the notebooks make."""
    for script in scripts:
        (tmp_path / script.name).write_text(shorter(script), encoding="utf-8")
    environment = os.environ | {"MPLBACKEND": "agg", "XLA_FLAGS": QUICK_TO_COMPILE}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *(script.name for script in scripts)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_each_notebook_but_the_first_runs():
    assert sorted(script for group in GROUPS for script in group) == SCRIPTS[1:]
    assert "07_many_devices" in [group[0].stem for group in GROUPS]
