"""The import rule: arrows between the modules of the package run downwards only."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import l2m_optax

# From the bottom up. A place imports from strictly lower ones only; the modules of one folder may
# import each other as long as there is no cycle.
PLACES = [
    {"_version"},
    {"_support"},
    {"likelihoods", "metrics"},
    {"jacobians"},
    {"moments"},
    {"transforms"},
    {"posterior"},
    {"predict"},
    {"tuning"},
    {"checkpoint", "decisions", "plot"},
    {"fitting"},
]
THIRD_PARTY = {"jax", "jaxlib", "numpy", "optax"}
OPTIONAL = {
    "plot": {"matplotlib"},
    "_support": {"tqdm"},
    "checkpoint": {"orbax", "safetensors"},
}  # imported by its functions, not with the package

PACKAGE = Path(l2m_optax.__file__).parent
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = [name for name in SOURCES if name != "__init__"]
FOLDERS = [name for name, path in SOURCES.items() if path.name == "__init__.py"]


def parse(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def place(module: str) -> int:
    """The index of the layer that holds the module, or its folder."""
    top = module.split(".")[0]
    for index, names in enumerate(PLACES):
        if top in names:
            return index
    raise AssertionError(
        f"{top}: expected in PLACES of tests/test_imports.py, got a module that is in none; "
        "put it in the lowest place that is above all it imports"
    )


def imports(module: str) -> set[str]:
    """The absolute dotted names of all that a module imports, inside functions too."""
    here = ["l2m_optax", *SOURCES[module].relative_to(PACKAGE).parent.parts]
    names = set()
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join(base + ([node.module] if node.module else []))
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def module_of(name: str) -> str:
    """The module of the package that an imported dotted name is, or lies in."""
    inner = name.removeprefix("l2m_optax").removeprefix(".")
    while inner and inner not in SOURCES:
        inner = inner.rpartition(".")[0]
    return inner or "__init__"


def inner_imports(module: str) -> set[str]:
    return {module_of(name) for name in imports(module) if name.split(".")[0] == "l2m_optax"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    own = place(module)
    for imported in inner_imports(module):
        assert imported != "__init__", f"{module} imports from l2m_optax itself; name the module"
        same_folder = module.split(".")[0] == imported.split(".")[0]
        assert same_folder or place(imported) < own, (
            f"{module} (place {own}) imports {imported} (place {place(imported)}); "
            "only lower layers may be imported: move what is shared down"
        )


def test_there_is_no_cycle():
    graph = {module: inner_imports(module) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these modules import each other in a circle: {' -> '.join(error.args[1])}")


def test_every_module_of_the_table_exists():
    tops = {module.split(".")[0] for module in MODULES}
    assert set().union(*PLACES) - tops == set()


@pytest.mark.parametrize("module", SOURCES)
def test_third_party_imports_are_the_dependencies(module):
    tops = {name.split(".")[0] for name in imports(module)}
    allowed = THIRD_PARTY | OPTIONAL.get(module.split(".")[0], set())
    assert tops - {"l2m_optax"} - sys.stdlib_module_names <= allowed


@pytest.mark.parametrize("module", FOLDERS)
def test_init_holds_names_only(module):
    docstring, *statements = parse(module).body
    assert isinstance(docstring, ast.Expr), f"{module}: expected a docstring first"
    for statement in statements:
        match statement:
            case ast.Import() | ast.ImportFrom() | ast.Assign(targets=[ast.Name(id="__all__")]):
                continue
        pytest.fail(f"{module}, line {statement.lineno}: expected names only; move the code out")


def test_every_public_name_exists():
    assert [name for name in l2m_optax.__all__ if not hasattr(l2m_optax, name)] == []


LOADED = """
import sys
# jax.scipy loads parts of scipy, which jax requires.
import jax, jax.scipy.special, jax.scipy.stats, jaxlib, numpy, optax
before = {name.split(".")[0] for name in sys.modules}
import l2m_optax, l2m_optax.plot
print(*{name.split(".")[0] for name in sys.modules} - before)
"""


def test_importing_the_package_imports_nothing_optional():
    """No matplotlib either, which `plot` imports when it draws."""
    run = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) - sys.stdlib_module_names == {"l2m_optax"}
