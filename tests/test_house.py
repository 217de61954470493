"""The rules of the house, as far as a machine can hold them."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.kept_files import kept_files

PACKAGES = ("trainer", "data_pipelines")
ENGINES = ("accelerate", "deepspeed", "mlflow", "torch.distributed")


FILES = kept_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
SOURCES = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in PACKAGES]
CODE = [
    path
    for path in FILES
    if path.suffix in (".py", ".sh", ".yaml", ".yml", ".toml", ".cfg", ".txt")
    or path.name.endswith("Dockerfile")
]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, with what it takes from it: `a.b`, `a.b.c`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}: imports are absolute"
            names |= {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_files_are_found():
    assert {"trainer/main.py", "data_pipelines/plan.py", "tests/test_house.py"} <= {named(p) for p in PYTHON}
    assert "trainer.distributed.collectives" in imports(ROOT / "trainer/networks/batch_norm.py")
    assert "trainer/objectives" in {room(path) for path in SOURCES}


def test_data_pipelines_never_imports_trainer():
    for path in SOURCES:
        if path.is_relative_to(ROOT / "data_pipelines"):
            assert not [name for name in imports(path) if within(name, "trainer")], named(path)


@pytest.mark.parametrize("part", ["objectives", "networks"])
def test_objectives_and_networks_neither_import_nor_name_engines(part):
    for path in SOURCES:
        if path.is_relative_to(ROOT / "trainer" / part):
            modules = imports(path)
            text = path.read_text(encoding="utf-8").lower()
            for engine in ENGINES:
                assert not [name for name in modules if within(name, engine)], named(path)
                assert engine not in text, named(path)


def test_only_collectives_and_fsdp_speak_to_other_ranks():
    doors = {"trainer/distributed/collectives.py", "trainer/engines/fsdp.py"}
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
    assert lines <= 300, f"{named(path)} has {lines} lines; 300 are the limit"


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


# ---- the rooms, and who may import whom -------------------------------------------------------------

# From the ground floor up: a room imports rooms below it, or itself, never one above.
FLOORS = [
    ["data_pipelines/common", "data_pipelines/access", "data_pipelines/hsv", "data_pipelines/pinned"],
    ["data_pipelines/views", "data_pipelines/dataset"],
    [f"data_pipelines/{name}" for name in ("remote", "image_options", "draws", "dali_hsv")],
    [
        f"data_pipelines/{name}"
        for name in (
            "plan",
            "noise",
            "reader",
            "dali_graph",
            "dali_damage",
            "dataset_loading",
            "resident_views",
        )
    ],
    ["data_pipelines/loader", "data_pipelines/dali_pipeline", "data_pipelines/sources"],
    [f"data_pipelines/{name}" for name in ("rows", "shards", "pillow", "replacements")],
    ["data_pipelines/dali", "data_pipelines/resident"],
    ["trainer/recipe", "trainer/distributed"],
    ["trainer/networks", "trainer/generation", "trainer/checkpoints", "trainer/tracking"],
    ["trainer/objectives", "trainer/exports", "trainer/runs"],
    ["trainer/engines", "trainer/report"],
    ["trainer/training", "trainer/evaluation"],
    ["trainer/tasks"],
    ["trainer/main"],
    ["trainer/cli"],
]
# Doors of an older version: they answer with one line, hold no logic, and are no rooms.
SHIMS = {"trainer/assembly.py", "trainer/networks/foreign.py"}


def room(path: Path) -> str:
    """A folder of a package (figures are part of evaluation), or a file right under the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "/".join(parts[:2])


def target(name: str) -> Path | None:
    """The source file of a module of ours, or of the module that a dotted name lies in."""
    for parts in (name.split("."), name.split(".")[:-1]):
        path = ROOT.joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if parts and file.exists() and file.is_relative_to(ROOT) and file in SOURCES:
                return file
    return None


def edges(path: Path) -> set[Path]:
    """The files of ours that a file imports, anywhere in it."""
    files = {target(name) for name in imports(path) if name.split(".")[0] in PACKAGES}
    return {file for file in files if file and file != path and file.name != "__init__.py"}


def is_room(path: Path) -> bool:
    return named(path) not in SHIMS and not path.is_relative_to(ROOT / "trainer/runtime")


def test_every_file_is_in_a_room_of_the_house():
    rooms = {name for floor in FLOORS for name in floor}
    assert {room(path) for path in SOURCES if is_room(path) and path.name != "__init__.py"} == rooms


def test_no_import_runs_up():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for path in SOURCES:
        if not is_room(path) or path.name == "__init__.py":
            continue
        for other in edges(path):
            same = room(path) == room(other)
            assert same or floor[room(other)] < floor[room(path)], f"{named(path)} imports {named(other)}"


def test_no_file_imports_itself_in_a_circle():
    graph, state = {path: edges(path) for path in SOURCES}, {}

    def visit(path: Path, way: list[Path]) -> None:
        state[path] = "open"
        for other in graph[path]:
            assert state.get(other) != "open", " -> ".join(map(named, [*way, path, other]))
            if other not in state:
                visit(other, [*way, path])
        state[path] = "closed"

    for path in SOURCES:
        if path not in state:
            visit(path, [])


def test_shims_hold_no_logic():
    for path in SOURCES:
        if not is_room(path):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 25, named(path)


DALI = ("dali_hsv", "dali_damage", "dali_graph", "dali_pipeline")


def test_dali_is_imported_by_its_maker_alone():
    users = {named(path) for path in SOURCES if any(within(name, "nvidia") for name in imports(path))}
    assert users <= {f"data_pipelines/{name}.py" for name in DALI}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:  # at the module's level
            names = {node.module} if isinstance(node, ast.ImportFrom) else set()
            graph = {f"data_pipelines.{name}" for name in DALI}
            assert not names & graph or path.stem in DALI, named(path)


def test_the_recipe_imports_neither_torch_nor_numpy():
    """So a mistake on the command line is answered at once, and before an engine is chosen."""
    modules = [named(path)[:-3].replace("/", ".") for path in SOURCES if room(path) == "trainer/recipe"]
    code = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- contracts instead of questions -----------------------------------------------------------------

# Probes of objects that are not ours: PyYAML's events, functions that a version of torch lacks.
PROBES_OF_OTHERS = {
    ("trainer/recipe/yaml12.py", "tag"),
    ("trainer/distributed/collectives.py", "reduce_scatter_single"),
    ("trainer/runs/machine.py", "get_capabilities"),
}
BUILDERS = {"trainer/training/build.py", "trainer/networks/build.py", "trainer/training/optimizers.py"}
OPTIONS = ("objective", "objectives", "encoders", "optimizers", "evaluation", "schema")


def nodes(kind: type) -> Iterator[tuple[Path, ast.AST]]:
    """Every node of a kind in the sources of `trainer`, with its file."""
    for path in SOURCES:
        if path.is_relative_to(ROOT / "trainer"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, kind):
                    yield path, node


def test_no_object_of_ours_is_probed_for_an_attribute():
    for path, call in nodes(ast.Call):
        if room(path) == "trainer/engines" or not isinstance(call.func, ast.Name):
            continue
        if call.func.id in ("getattr", "hasattr") and isinstance(call.args[1], ast.Constant):
            assert (named(path), call.args[1].value) in PROBES_OF_OTHERS, f"{named(path)}:{call.lineno}"


def test_only_builders_ask_for_the_class_or_kind_of_options():
    options = set()
    for name in OPTIONS:
        tree = ast.parse((ROOT / f"trainer/recipe/{name}.py").read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        options |= {node.name for node in classes if ast.unparse(node.bases[0]) != "ValueError"}
    assert {"DimObjective", "MocoObjective", "LarsOptions", "Pretrain", "MlpProbe"} <= options
    for path, call in nodes(ast.Call):
        if isinstance(call.func, ast.Name) and call.func.id == "isinstance" and named(path) not in BUILDERS:
            classes = {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)}
            assert not classes & options, f"{named(path)}:{call.lineno}"
    for path, comparison in nodes(ast.Compare):
        left = comparison.left
        asks = isinstance(left, ast.Attribute) and left.attr == "kind"
        assert not asks or named(path) in BUILDERS, f"{named(path)}:{comparison.lineno}"


def test_no_function_is_longer_than_a_page():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{named(path)}: {node.name} has {lines} lines; 60 are the limit"


def test_the_main_readme_stays_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").count("\n")
    assert lines <= 140, f"README.md has {lines} lines; 140 are the limit: the rest goes to a folder's"


PRIVATE_WORDS = {"found", "told", "held", "own", "given", "tell", "heed"}


def test_names_are_not_private_words():
    """A name says what the thing is; these say only that somebody has it."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = None
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name, line = node.name, node.lineno
            elif isinstance(node, ast.arg):
                name, line = node.arg, node.lineno
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name, line = node.id, node.lineno
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                name, line = node.attr, node.lineno
            assert name is None or name.strip("_").lower() not in PRIVATE_WORDS, (
                f"{named(path)}:{line}: {name}"
            )
