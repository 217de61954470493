"""What GitHub and pre-commit read: forms as GitHub demands them, workflow, hooks, the page of the package."""

import fnmatch
import re
import subprocess
import sys
from email.parser import Parser

import pytest
import yaml

from tests.helpers import ROOT
from tests.helpers.kept_files import kept_files

GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
# Of each kind of element: what GitHub requires below `attributes`.
ELEMENTS = {
    "markdown": {"value"},
    "textarea": {"label"},
    "input": {"label"},
    "dropdown": {"label", "options"},
    "checkboxes": {"label", "options"},
}
ATTRIBUTES = {"value", "label", "options", "description", "placeholder", "render", "multiple", "default"}
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")
FILES = [str(path.relative_to(ROOT)) for path in kept_files()]


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_github_demands(path):
    form = read(str(path))
    assert set(form) <= {"name", "description", "title", "labels", "assignees", "body", "projects", "type"}
    assert all(isinstance(form[key], str) and form[key] for key in ("name", "description"))
    assert all(isinstance(label, str) for label in form.get("labels", []))
    elements = form["body"]
    assert any(element["type"] != "markdown" for element in elements)
    names = [element["id"] for element in elements if element["type"] != "markdown"]
    assert len(set(names)) == len(names)
    labels = [element["attributes"]["label"] for element in elements if element["type"] != "markdown"]
    assert len(set(labels)) == len(labels)
    for element in elements:
        assert set(element) <= {"type", "id", "attributes", "validations"}
        attributes = element["attributes"]
        assert ELEMENTS[element["type"]] <= set(attributes) <= ATTRIBUTES
        assert set(element.get("validations", {})) <= {"required"}
        assert re.fullmatch(r"[\w-]+", element.get("id", "markdown"))
        if element["type"] == "dropdown":
            assert all(isinstance(option, str) for option in attributes["options"])
        if element["type"] == "checkboxes":
            assert all(set(option) <= {"label", "required"} for option in attributes["options"])


def test_a_bug_asks_for_the_command_and_the_environment():
    bug = {element.get("id"): element for element in read(".github/ISSUE_TEMPLATE/bug.yml")["body"]}
    for name in ("command", "environment", "output"):
        assert bug[name]["validations"] == {"required": True}
    assert "`hybrid-infomax env`" in bug["environment"]["attributes"]["label"]
    assert "render" not in bug["environment"]["attributes"], "its output is Markdown"
    assert {path.stem for path in FORMS} == {"bug", "question", "feature"}
    assert read(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": False}


def test_the_workflow_runs_the_same_as_everybody():
    workflow = read(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] == 90
    assert job["container"]["image"].startswith("debian:")
    steps = job["steps"]
    assert steps[-1]["run"] == ".ci/run"
    assert [step["uses"].partition("@")[0] for step in steps if "uses" in step] == ["actions/checkout"]
    assert not any("continue-on-error" in step or "if" in step for step in steps)
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_hooks_are_the_lints_of_ci():
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    assert [hooks[name]["entry"] for name in ("ruff-format", "ruff-check", "mypy")] == [
        "ruff format",
        "ruff check",
        "mypy",
    ]
    (patterns,) = re.findall("^ *shellcheck (.*)$", CI, re.MULTILINE)
    checked = {name for name in FILES if any(fnmatch.fnmatch(name, one) for one in patterns.split())}
    assert ".ci/run" in checked
    assert {name for name in FILES if re.search(hooks["shellcheck"]["files"], name)} == checked


def test_the_page_of_the_package():
    """Metadata as an index shows it; links of its README lead to the repository."""
    code = (
        "from setuptools.dist import Distribution; import distutils.core, io; "
        "d = distutils.core.run_setup('setup.py', stop_after='init'); d.metadata.write_pkg_file(sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    page = Parser().parsestr(done.stdout)
    assert page["Author"] == "The hybrid-infomax authors"
    assert page["Description-Content-Type"] == "text/markdown"
    assert page["License"] is None
    assert not [line for line in page.get_all("Classifier") if line.startswith("License")]
    (source,) = [url for url in page.get_all("Project-URL") if url.startswith("Source, ")]
    address = source.removeprefix("Source, ")
    text = page.get_payload() or page["Description"]
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    for link in (one or other for one, other in links):
        assert re.match("https?://|#", link), link
    for path in re.findall(rf"{re.escape(address)}/(?:blob|raw)/HEAD/([^)#\s\"]+)", text):
        assert (ROOT / path).exists(), path
