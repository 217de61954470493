"""The rules of the house, as far as a machine can hold them."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("trainer", "data_pipelines")
ENGINES = ("accelerate", "deepspeed", "mlflow", "torch.distributed")


def kept_files() -> list[Path]:
    """What git keeps or would keep; without git, everything that no dot-folder holds."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or "trainer/main.py" not in listed.stdout:
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
        skipped = r"(^|/)(\..*|__pycache__|.*\.egg-info)/|^(outputs|data|build)/"
        names = [name for name in names if not re.search(skipped, name)]
    else:
        names = listed.stdout.split("\0")
    return sorted(ROOT / name for name in names if name and (ROOT / name).is_file())


FILES = kept_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
SOURCES = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in PACKAGES]
CODE = [
    path
    for path in FILES
    if path.suffix in (".py", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".txt") or path.name == "Dockerfile"
]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with what it takes from it: `a.b`, `a.b.c`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}: imports are absolute"
            found |= {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_files_are_found():
    assert {"trainer/main.py", "data_pipelines/plan.py", "tests/test_house.py"} <= {named(p) for p in PYTHON}
    assert "trainer.distributed.collectives" in imports(ROOT / "trainer/networks/batch_norm.py")


def test_data_pipelines_never_imports_trainer():
    for path in SOURCES:
        if path.is_relative_to(ROOT / "data_pipelines"):
            assert not [name for name in imports(path) if within(name, "trainer")], named(path)


@pytest.mark.parametrize("part", ["objectives", "networks", "diffusion.py"])
def test_objectives_and_networks_neither_import_nor_name_engines(part):
    for path in SOURCES:
        if path.is_relative_to(ROOT / "trainer" / part):
            found = imports(path)
            text = path.read_text(encoding="utf-8").lower()
            for engine in ENGINES:
                assert not [name for name in found if within(name, engine)], named(path)
                assert engine not in text, named(path)


def test_only_the_runtime_speaks_to_other_ranks():
    doors = {"trainer/runtime/collectives.py", "trainer/runtime/engines_fsdp.py"}
    users = {named(p) for p in SOURCES if any(within(name, "torch.distributed") for name in imports(p))}
    assert users <= doors


def test_no_module_that_comes_first_on_the_path_hides_another():
    """`accelerate launch trainer/main.py` puts trainer/ first on the path, as benchmarks/ for its scripts."""
    known = set(sys.stdlib_module_names)
    for module, distributions in importlib.metadata.packages_distributions().items():
        if set(distributions) != {"hybrid-infomax"}:
            known.add(module)
    assert {"queue", "torch", "yaml"} <= known
    for folder in ("trainer", "benchmarks"):
        inside = [path for path in PYTHON if path.is_relative_to(ROOT / folder)]
        names = {path.relative_to(ROOT / folder).parts[0].removesuffix(".py") for path in inside}
        assert not (names - {"__init__"}) & known, folder


def test_docker_and_slurm_are_no_packages():
    """A package `docker` or `slurm` would hide the libraries of these names."""
    for folder in ("docker", "slurm"):
        assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_files_stay_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 310, f"{named(path)} has {lines} lines; about 300 are the limit"


def test_every_module_says_what_it_is():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), named(path)


def test_nothing_is_left_for_later():
    words = ["TO" + "DO", "FIX" + "ME", "Not" + "ImplementedError", "X" * 3]
    for path in CODE:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in words if re.search(rf"\b{word}\b", text)], named(path)


def test_no_file_speaks_of_one_machine():
    places = ["/ro" + "ot/", "/wo" + "rk/", "../sha" + "red", "." + "library"]
    for path in [*CODE, *(path for path in FILES if path.suffix == ".md")]:
        text = path.read_text(encoding="utf-8")
        assert not [place for place in places if place in text], named(path)


def test_neither_torchvision_nor_timm():
    for path in PYTHON:
        assert not [n for n in imports(path) if within(n, "torchvision") or within(n, "timm")], named(path)


def calls(path: Path):
    """Every call in a file: its dotted name and its keywords, as source."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_loading_never_unpickles():
    for path in PYTHON:
        if path.relative_to(ROOT).parts[0] not in (*PACKAGES, "benchmarks"):
            continue
        for name, options in calls(path):
            assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), named(path)
            if name == "torch.load":
                assert options.get("weights_only") == "True", named(path)
            if name in ("np.load", "numpy.load"):
                assert options.get("allow_pickle") == "False", named(path)
            assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load") or (
                "Loader" in options and "afe" in options["Loader"].lower()
            ), named(path)


def test_no_large_file_is_kept():
    large = {named(path): path.stat().st_size for path in FILES if path.stat().st_size > 1_000_000}
    assert not large


def test_reading_a_recipe_takes_no_torch():
    """So a mistake on the command line is answered at once, and before an engine is chosen."""
    code = "import sys, trainer.recipe.loading; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
