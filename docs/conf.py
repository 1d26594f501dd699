"""How Sphinx makes the documentation: `make docs`, in which a warning is an error."""

import base64
import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the package of this clone
sys.path.insert(0, str(HERE))

import make_pictures  # noqa: E402
from inventories import mapping  # noqa: E402

import l2m_optax  # noqa: E402

# The notebooks live beside their data, for Colab and for `make demo`; Sphinx wants them below.
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)
make_pictures.main()


def _pictures(notebook):
    """The pictures of a notebook, in their order, as base64."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    shown = (output.get("data", {}) for cell in cells for output in cell.get("outputs", ()))
    return [data["image/png"] for data in shown if "image/png" in data]


for notebook in sorted((HERE / "notebooks").glob("*.ipynb")):  # for gallery.md
    notebook.with_suffix(".png").write_bytes(base64.b64decode(_pictures(notebook)[0]))

project = "l2m_optax"
author = "The l2m-optax contributors"
copyright = "2026, the l2m-optax contributors, Apache-2.0"
release = version = l2m_optax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "links",
]
intersphinx_mapping = mapping(
    {"jax": "https://docs.jax.dev/en/latest/", "optax": "https://optax.readthedocs.io/en/latest/"}
)
exclude_patterns = [
    "_build",
    "_templates",
    "made/*.md",
    "notebooks/*.py",
    "notebooks/*.md",
    "notebooks/data",
]
templates_path = ["_templates"]

html_theme = "sphinx_book_theme"
html_title = "l2m_optax"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {"home_page_in_toc": True, "navbar_persistent": [], "show_toc_level": 2}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # `make notebooks` has run them

default_role = "py:obj"  # `laplace` in a docstring links to it
add_module_names = False
autosummary_generate = True
autodoc_typehints = "signature"
python_maximum_signature_line_length = 120  # a longer one has a line for each argument
autodoc_preserve_defaults = True
autodoc_type_aliases = {  # signatures show the names; api.md explains them
    "ApplyFn": "ApplyFn",
    "Array": "~jax.Array",
    "ArrayLike": "~jax.typing.ArrayLike",
    "Likelihood": "Likelihood",
    "PyTree": "PyTree",
}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Reference"]


def _math(app, what, name, obj, options, lines):
    """Docstrings write mathematics as Markdown does, between dollars; reST has its own ways."""
    text = "\n".join(lines)
    text = re.sub(r"\$\$(.+?)\$\$", _display, text, flags=re.DOTALL)
    text = re.sub(r"\$([^$]+)\$", lambda found: f":math:`{found[1]}`", text)
    lines[:] = text.split("\n")


def _display(found):
    return f".. math:: {' '.join(found[1].split())}"


def _alias(app, what, name, obj, options, signature, returned):
    """Inside of a union, Sphinx shows its own object in place of an alias."""
    return tuple(
        text and re.sub(r"TypeAliasForwardRef\('([^']*)'\)", r"\1", text)
        for text in (signature, returned)
    )


def setup(app):
    app.connect("autodoc-process-docstring", _math)
    app.connect("autodoc-process-signature", _alias)
