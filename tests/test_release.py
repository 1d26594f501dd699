"""What a release says of itself agrees, and its page on the package index is whole."""

import re
import tomllib
from datetime import date

import pytest
import yaml
from test_readme import MAKE_TARGET, ROOT, read

import l2m_optax as l2m

RELEASE = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (.*)$", re.MULTILINE)
CITATION = yaml.safe_load(read("CITATION.cff"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LINK = re.compile(r'(?:\]\(|src=")([^)"]+)')
HOME = "github.com/l2m-optax/l2m-optax"


def test_version_citation_and_changelog_name_one_release():
    version, day = RELEASE.search(read("CHANGELOG.md")).groups()
    assert version == l2m.__version__ == CITATION["version"]
    assert date.fromisoformat(day) == CITATION["date-released"]


def on_the_index() -> str:
    """README.md as the build hook changes it (hatch-fancy-pypi-readme)."""
    settings = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["metadata"]["hooks"]
    text = read("README.md")
    for change in settings["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    return text.replace("$HFPR_VERSION", l2m.__version__)


def test_pictures_and_links_of_the_readme_are_files():
    paths = [link for link in LINK.findall(read("README.md")) if not link.startswith("http")]
    assert {"docs/quickstart.png", "docs/limits.md"} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_pictures_and_links_have_an_address_on_the_index():
    links = LINK.findall(on_the_index())
    tag = f"v{l2m.__version__}"
    raw = f"https://raw.githubusercontent.com/l2m-optax/l2m-optax/{tag}"
    assert {f"{raw}/docs/quickstart.png", f"https://{HOME}/blob/{tag}/docs/limits.md"} <= set(links)
    assert [link for link in links if not link.startswith("https://")] == []


def test_nothing_but_links_is_changed_for_the_index():
    address = rf"https://[^/]*/l2m-optax/l2m-optax/(blob/)?v{l2m.__version__}/"
    assert re.sub(address, "", on_the_index()) == read("README.md")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=[workflow.stem for workflow in WORKFLOWS])
def test_the_commands_of_a_workflow_are_targets(workflow):
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    steps = [step.get("run", "") for job in jobs for step in job["steps"]]
    made = [word for run in steps for word in run.split()[1:] if run.startswith("make ")]
    targets = {word for word in made if re.fullmatch("[a-z][a-z-]*", word)}
    assert targets
    assert targets <= set(MAKE_TARGET.findall(read("Makefile")))
