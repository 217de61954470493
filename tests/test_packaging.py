"""What is installed: a wheel in an empty folder, used from elsewhere, and an editable install."""

import os
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.command_lines import ROOT, Done, mistake, process, tiny
from trainer.recipe.loading import RECIPES, load

SHIPPED = ("trainer", "data_pipelines")
RECIPE_FILES = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is packaged: building leaves files behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in (*SHIPPED, "recipes", "tests", "setup.py", "pyproject.toml", "README.md"):
        take = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        take(ROOT / name, copy / name)
    return copy


def build(source: Path, hook: str) -> Path:
    """A wheel, as pip asks setuptools for one, without a network."""
    code = f"from setuptools import build_meta; print(build_meta.{hook}('wheels'))"
    (source / "wheels").mkdir(exist_ok=True)
    done = process(sys.executable, "-c", code, cwd=source)
    assert done.status == 0, done.err
    return source / "wheels" / done.out.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source) -> Path:
    return build(source, "build_wheel")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("installed") / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = process(*pip, "--target", target, wheel, PIP_DISABLE_PIP_VERSION_CHECK="1")
    assert done.status == 0, done.err
    return target


@pytest.fixture
def run(installed, tmp_path):
    """Runs a command in an empty working directory, with the installed packages before all others."""
    working = tmp_path / "empty"
    working.mkdir()

    def run(*words: str | Path) -> Done:
        path = f"{installed / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return process(*words, cwd=working, PYTHONPATH=str(installed), PATH=path)

    return run


def test_the_wheel_holds_both_packages_and_the_recipes_and_nothing_else(source, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = [path for name in SHIPPED for path in (source / name).rglob("*.py")]
    packages = {str(path.relative_to(source)) for path in modules}
    recipes = {f"trainer/_recipes/{name}" for name in RECIPE_FILES}
    assert len(recipes) > 40
    assert {name for name in names if ".dist-info/" not in name} == packages | recipes


@pytest.mark.parametrize("entry", [["-m", "trainer.main", "--list"], ["-m", "trainer.cli", "list"]], ids=str)
def test_an_installed_copy_lists_its_recipes(run, installed, entry):
    done = run(sys.executable, *entry)
    assert (done.status, done.err) == (0, "")
    names = [line.split()[0] for line in done.out.splitlines()]
    assert names == [name.removesuffix(".yaml") for name in RECIPE_FILES if "/" not in name]


def test_an_installed_copy_prints_the_same_recipe(run):
    done = run(sys.executable, "-m", "trainer.main", "recipe=quickstart", "--print")
    assert (done.status, done.err) == (0, "")
    assert done.out == load(["recipe=quickstart"]).text()


def test_the_console_command_of_an_installed_copy(run, installed):
    done = run("hybrid-infomax", "--help")
    assert (done.status, done.err) == (0, "")
    assert "checkpoints  " in done.out
    done = run("hybrid-infomax", "print", "launch/zero2")
    assert done == (0, f"{installed}/trainer/_recipes/launch/zero2.yaml\n", "")
    assert "unknown recipe 'quickstar'" in mistake(run("hybrid-infomax", "print", "recipe=quickstar"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "door", ["trainer.runtime.checkpoint", "trainer.runtime.tracking", "trainer.networks.foreign"]
)
def test_the_old_doors_of_an_installed_copy(run, door):
    done = run(sys.executable, "-m", door, "--help")
    assert f"{door} is trainer." in done.err.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["cpu", "ddp"])
def test_an_installed_copy_trains_under_the_launcher(run, installed, digits, tmp_path, engine):
    """Outside a checkout there is no path of main.py to give: the module is launched by its name."""
    file = run("hybrid-infomax", "print", f"launch/{engine}").out.strip()
    ranks = {"cpu": 1, "ddp": 2}[engine]
    command = ["accelerate", "launch", "--config_file", file, "--num_processes", str(ranks)]
    command += ["--main_process_port", "0", "-m", "trainer.main"]
    done = run(*command, *tiny(tmp_path / "outputs", digits.root))
    assert done.status == 0, done.err
    assert done.out.startswith(f"recipe quickstart: {ranks} rank")
    assert (tmp_path / "outputs/quickstart/done").exists()
    code = "from trainer.assembly import load_encoder; print(load_encoder.__code__.co_filename)"
    assert run(sys.executable, "-c", code).out.startswith(str(installed))


@pytest.mark.slow
def test_an_editable_install_reads_the_recipes_of_its_checkout(source, tmp_path):
    """In an environment of its own, which sees the libraries of this one but not how it found us."""
    wheel = build(source, "build_editable")
    venv.create(tmp_path / "venv", with_pip=False)
    site = tmp_path / f"venv/lib/python{sysconfig.get_python_version()}/site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = tmp_path / "venv/bin/python"
    for words in (["--list"], ["recipe=quickstart", "--print"]):
        done = process(python, "-m", "trainer.main", *words, cwd=tmp_path)
        assert done == process(sys.executable, "trainer/main.py", *words), done.err
    done = process(python, "-m", "trainer.cli", "print", "launch/ddp", cwd=tmp_path)
    assert done == (0, f"{source}/recipes/launch/ddp.yaml\n", "")
    entry_points = next(site.glob("hybrid_infomax-*.dist-info")) / "entry_points.txt"
    assert "hybrid-infomax = trainer.cli:main" in entry_points.read_text()
