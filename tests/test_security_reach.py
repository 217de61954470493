"""How far the program reaches: no path out of its folders, no recipe that is more than data, no open door."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.dataset_loading import load_dataset
from data_pipelines.shards import make
from data_pipelines.sources import cifar
from tests.test_security import ROOT, SOURCES, refused
from trainer.recipe.loading import RECIPES, load

# ---- paths that lead elsewhere ----------------------------------------------------------------------


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def hostile_tar(path: Path, folder: str, tmp_path: Path) -> None:
    """Members that would be written elsewhere, or are no files; the links lead to what is there."""
    (tmp_path / "secret.png").write_bytes(picture())
    with tarfile.open(path, "w") as tar:
        for name in ("../up.png", f"{folder}/../../../up2.png", f"{tmp_path}/absolute.png", "fine.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            tar.addfile(info, io.BytesIO(picture()))
        for kind, target in ((tarfile.SYMTYPE, tmp_path / "secret.png"), (tarfile.LNKTYPE, "../secret.png")):
            for name in ("link.png", f"{folder}/data_batch_1", f"{folder}/batches.meta"):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, str(target)
                tar.addfile(info)
        for kind, name in ((tarfile.CHRTYPE, "null.png"), (tarfile.FIFOTYPE, f"{folder}/test_batch")):
            info = tarfile.TarInfo(name)
            info.type, info.devmajor, info.devminor = kind, 1, 3
            tar.addfile(info)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def test_tars_write_nothing_outside_the_target(tmp_path):
    raw = tmp_path / "a" / "b" / "raw"
    raw.mkdir(parents=True)
    hostile_tar(raw / "000.tar", "cifar-10-batches-py", tmp_path)
    before = files(tmp_path)
    assert "has no member cifar-10-batches-py/" in refused(cifar.read, raw / "000.tar")
    assert files(tmp_path) == before
    target = raw.parent / "target"
    made = make.make("wds", target, raw, workers=1, progress=False)
    new = files(tmp_path) - before
    assert new
    assert all(path.is_relative_to(target) for path in new)
    left_out = {entry["member"].rpartition(": ")[2]: entry["why"] for entry in made.left_out}
    assert set(left_out) == {"link.png", "null.png"}  # no link is followed, no device is opened


@pytest.mark.parametrize(
    "name", ["../x/000000.tar", "/x/000000.tar", "train/../../000000.tar", "train/x.tar"]
)
def test_shard_names_cannot_lead_out_of_the_data_set(digits, tmp_path, name):
    description = json.loads((digits.root / "dataset.json").read_text())
    description["splits"]["train"]["shards"][0]["name"] = name
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    assert f"shard name '{name}'" in refused(load_dataset, tmp_path)


@pytest.mark.parametrize("name", ["../x", "/abs", "..", "a/b", ".hidden", "", "x\n", "a\0b"])
def test_a_run_stays_within_its_outputs(tmp_path, name):
    (tmp_path / "r.yaml").write_text(f"base: quickstart\nrun: {json.dumps(name)}\n")
    assert "run: expected a name" in refused(load, [f"recipe={tmp_path}/r.yaml"])
    for stem in ("..", "."):  # a recipe's name is the default
        (tmp_path / f"{stem}.yaml").write_text("base: quickstart\n")
        assert "needs a name" in refused(load, [f"recipe={tmp_path}/{stem}.yaml"])


# ---- recipes ----------------------------------------------------------------------------------------


LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
HOSTILE = {
    "!!python/object/apply:os.mkdir [MARK]": "the tag !!python/object/apply:os.mkdir is refused",
    "base: quickstart\nrun: !!python/object/new:os.mkdir [MARK]": "is refused",
    "base: quickstart\nrun: !<tag:yaml.org,2002:python/name:os.mkdir> x": "is refused",
    LAUGHS: "more than 10,000 values, its aliases",
    "base: quickstart\nbatch: " + "[" * 2000 + "]" * 2000: "nested hundreds deep",
    "base: quickstart\nbatch: " + "[" * 200 + "]" * 200: "batch: expected a whole number",
    "a: &a [*a]": "this anchor contains itself",
    "base: quickstart\nseed: " + "9" * 5000: "a number of 5,000 characters",
    "base: quickstart\nseed: 0x" + "f" * 100: "too large",
    "base: quickstart\nimages: 1e300": "images: expected a whole number",
    "base: quickstart\nimages: 1e999": "images: expected a whole number",
    "base: quickstart\ndata: {size: 1000000000}": "data.size: expected a whole number from 1 to",
    "base: x.yaml": "inherit from each other in a circle: x.yaml -> x.yaml",
    "base: [a]": "expected the name of a recipe",
    "base: ../../../../../../../../etc/passwd": "unknown recipe",
}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_recipe_is_data(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text.replace("MARK", str(tmp_path / "mark")))
    line = refused(load, [f"recipe={tmp_path}/x.yaml"])
    assert HOSTILE[text] in line
    assert len(line) < 1000
    assert not (tmp_path / "mark").exists()


def test_a_long_chain_of_bases_ends(tmp_path):
    for number in range(60):
        (tmp_path / f"r{number}.yaml").write_text(f"base: r{number + 1}.yaml\n")
    (tmp_path / "r60.yaml").write_text("base: quickstart\n")
    assert "more than 50 recipes" in refused(load, [f"recipe={tmp_path}/r0.yaml"])
    assert load([f"recipe={tmp_path}/r30.yaml"]).recipe.batch == 128


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a" * 5000, "no file"),
        ("x\0", "text in UTF-8 without zero bytes"),
        ("/proc/1/cwd/nothing", "no file"),
    ],
)
def test_names_that_no_file_can_bear(name, expected):
    assert expected in refused(load, [f"recipe={name}.yaml"])


# ---- who may listen ---------------------------------------------------------------------------------


def test_every_server_binds_to_this_machine():
    """In what a user would type, what Docker publishes, and what our own code opens."""
    spoken = re.compile(
        r"--host[= ]([^\s,]+)|\bbind\(\(([^,]*),|HTTPServer\(\(([^,]*),|\b(0\.0\.0\.0|\[::\])"
    )
    kept = [ROOT / "README.md", *(ROOT / "benchmarks").rglob("*.md"), *(ROOT / "recipes").rglob("*.yaml")]
    kept += [path for folder in ("docker", "slurm") for path in (ROOT / folder).iterdir() if path.is_file()]
    code = [path for folder in ("benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    addresses = {}
    for path in [*kept, *SOURCES, *code]:
        if path == Path(__file__):
            continue
        for match in spoken.finditer(path.read_text(encoding="utf-8")):
            host = next(group for group in match.groups() if group)
            if host.strip("\"'") not in ("127.0.0.1", "localhost"):
                addresses.setdefault(str(path.relative_to(ROOT)), []).append(match[0])
    compose, job = "docker/compose.yaml", "slurm/mlflow_server.sh"
    assert addresses.keys() <= {compose, job, "tests/helpers/compose.py"}, addresses
    # Within containers, whose ports are published.
    assert addresses[compose] == ["--host=0.0.0.0", "--host=0.0.0.0"]
    published = re.findall(r"^ +- (\S+:\d+:\d+)$", (ROOT / compose).read_text(), re.M)
    assert published == ["127.0.0.1:5000:5000", "${MLFLOW_LISTEN:-127.0.0.1}:5000:5000"]
    # To a node's network, and there nobody is let in without a password.
    assert addresses[job] == ["--host=0.0.0.0"]
    assert "mlflow server --app-name=basic-auth --host=0.0.0.0" in (ROOT / job).read_text()


@pytest.mark.slow
def test_mlflow_ui_listens_on_this_machine_by_default():
    from mlflow.cli import cli

    for name in ("ui", "server"):
        (host,) = [option for option in cli.get_command(None, name).params if option.name == "host"]
        assert host.default == "127.0.0.1"


LISTEN = """
import os, sys
sys.path.insert(0, {root!r})
import psutil
from trainer.distributed import collectives, launch
launch.set_environment()
launch.start("float32")
collectives.barrier()
addresses = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN"]
os.write(1, " ".join(["listens", os.environ["GLOO_SOCKET_IFNAME"], *addresses, "\\n"]).encode())
launch.leave(0)
"""


@pytest.mark.slow
def test_ranks_of_one_machine_speak_over_loopback(tmp_path):
    (tmp_path / "listen.py").write_text(LISTEN.format(root=str(ROOT)))
    command = ["accelerate", "launch", "--config_file", str(RECIPES / "launch" / "ddp.yaml")]
    command += ["--num_processes", "2", "--main_process_port", "0", str(tmp_path / "listen.py")]
    environment = {k: v for k, v in os.environ.items() if k != "GLOO_SOCKET_IFNAME"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("listens")]
    assert len(lines) == 2, done.stderr
    for _, interface, *addresses in lines:
        assert interface == "lo"
        assert set(addresses) == {"127.0.0.1"}
