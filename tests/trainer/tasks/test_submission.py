"""`hybrid-infomax check`: what a job says of itself before it queues, and what speaks against one."""

import http.server
import shlex
import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest

from data_pipelines.common.errors import UserError
from tests.helpers import ROOT
from tests.helpers.run_folders import WORDS, write_run
from trainer import cli
from trainer.tasks.submission import checks, look
from trainer.tasks.submission.job import read, seconds
from trainer.tracking.journal import Journal

HYBRID, DIM = "slurm/hybrid_imagenet.sh", "slurm/dim_local.sh"
SMALL = ["recipe=quickstart", "tracking.uri=none"]
VARIABLES = ("ENGINE", "PROCS_PER_NODE", "SIGNAL_SECONDS", "SITE", "MLFLOW_TRACKING_USERNAME")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """The checkout, in the package's environment, without a cluster."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setattr(checks, "which", lambda name: None)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def checked(capsys, tmp_path, digits):
    """The status of a check of a small job, its lines by name, and its errors by name."""

    def checked(script: str, *words: str) -> tuple[int, dict[str, str], dict[str, str]]:
        words = (*SMALL, f"outputs={tmp_path}/outputs", f"data.root={digits.root}", *words)
        status = cli.run(["check", script, *words])
        out, err = capsys.readouterr()
        assert Path.cwd() == ROOT
        errors = dict(line.removeprefix("error: ").split(": ", 1) for line in err.splitlines())
        return status, dict(line.split(None, 1) for line in out.splitlines()), errors

    return checked


def test_a_job_that_nothing_speaks_against(checked, tmp_path, digits):
    status, lines, errors = checked(HYBRID, "--nodes", "2", "--gpus", "2", "card=80", "batch=512")
    assert (status, errors) == (0, {})
    order = ["script", "time", "engine", "log", "site", "recipe", "batch", "run", "data", "memory"]
    assert list(lines) == [*order, "tracking", "slurm", "sound"]
    assert lines["script"] == f"{HYBRID}: 2 nodes with 2 GPUs, 4 ranks; works in {ROOT}"
    assert lines["batch"] == "512 images a step, 128 a rank"
    assert lines["run"] == f"{tmp_path}/outputs/quickstart: new"
    assert lines["memory"].endswith("GB a rank under ddp, as counted, of 80 GB")
    assert lines["slurm"] == "not asked: no sbatch here"
    words = [*SMALL, f"outputs={tmp_path}/outputs", f"data.root={digits.root}", "batch=512"]
    assert shlex.split(lines["sound"]) == ["sbatch", "--nodes=2", "--gpus-per-node=2", HYBRID, *words]
    assert not list(tmp_path.iterdir())


# ---- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "--nodes 16 --gpus 4",
        "nodes=16 gpus=4",
        "--nodes=16 --gpus-per-node=a100:4",
    ],
)
def test_the_shape_is_said_in_the_words_of_sbatch_or_of_a_plan(words):
    said = read([HYBRID, *words.split(), "run=a"])
    assert (said.nodes, said.gpus, said.ranks, said.words) == (16, 4, 64, ["run=a"])


def test_the_options_of_the_script_stand_below_those_of_the_command():
    said = read(["--time=5:00:00", "--hold", HYBRID, "--allow-commands", "batch=512"])
    assert (said.nodes, said.gpus, said.options["time"]) == (2, 8, "5:00:00")
    assert said.options["signal"] == "B:USR1@300"
    words = ["sbatch", "--time=5:00:00", "--hold", HYBRID, "--allow-commands", "batch=512"]
    assert said.command() == words


def test_the_environment_of_the_job_is_that_of_export(monkeypatch):
    monkeypatch.setenv("PROCS_PER_NODE", "3")
    assert read([HYBRID, "--export=ALL,ENGINE=zero2"]).engine == "zero2"
    assert read([HYBRID]).ranks == 6
    assert read([HYBRID, "--export=PROCS_PER_NODE=2"]).ranks == 4
    assert read([HYBRID, "--export=NONE"]).ranks == 16
    assert read([DIM, "--export=ALL,ENGINE=zero2"]).engine == "ddp"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=a"], "no script; expected one job such as slurm/hybrid_imagenet.sh"),
        ([HYBRID, DIM], f"{DIM}: not understood; expected one job"),
        ([HYBRID, "-N2"], "-N2: expected options of sbatch in full, such as --nodes=16"),
        (["slurm/nothing.sh"], "slurm/nothing.sh: No such file or directory; expected a job such as"),
        (
            ["slurm/shard_imagenet.sh"],
            "slurm/shard_imagenet.sh: runs no recipe; what Slurm says of it: sbatch",
        ),
        (["slurm/common.sh"], "slurm/common.sh: no job of this project; expected one of slurm/"),
        (
            ["slurm/sweep.sh"],
            "slurm/sweep.sh: many jobs; check one of its runs as a job of slurm/dim_local.sh",
        ),
        ([HYBRID, "card=x"], "card=x: expected a number above 0"),
    ],
)
def test_words_that_are_not_understood_are_one_line(words, message):
    with pytest.raises(UserError) as mistake:
        read(words)
    assert str(mistake.value).startswith(message)


def test_a_script_of_others_is_refused(tmp_path):
    script = tmp_path / "train.sh"
    script.write_text("#!/bin/bash\nsrun python train.py\n")
    with pytest.raises(UserError, match=r"train.sh: no job of this project"):
        read([str(script)])


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("2:30:15", 9015),
        ("1-2", 26 * 3600),
        ("1-2:30", 26 * 3600 + 1800),
        ("1-02:30:15", 26 * 3600 + 1815),
        ("UNLIMITED", None),
    ],
)
def test_times_of_slurm(text, length):
    assert seconds(text) == length


def test_a_time_that_is_none():
    with pytest.raises(UserError, match="--time=soon: expected DAYS-HOURS:MINUTES:SECONDS"):
        seconds("soon")


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words", "name", "message"),
    [
        (DIM, "--nodes=2", "script", f"--nodes=2: {DIM} is for one node; slurm/hybrid_imagenet.sh runs any"),
        (DIM, "--nodes=1-4", "script", "--nodes=1-4: expected a whole number from 1"),
        (DIM, "--ntasks-per-node=2", "script", "--ntasks-per-node=2: expected 1; a launcher starts"),
        (HYBRID, "--ntasks=16", "script", "--ntasks=16: expected 2; a launcher starts"),
        (DIM, "--array=0-3", "script", "--array=0-3: an array would train one run several times"),
        (HYBRID, "--nodes=1 --gpus=1", "script", "one process in all: ask for more --nodes or --gpus"),
        (DIM, "--export=ALL,PROCS_PER_NODE=x", "script", "PROCS_PER_NODE=x: expected a whole number from 1"),
        (DIM, "--export=ALL,PROCS_PER_NODE=2", "script", "PROCS_PER_NODE=2: more than the 1 GPU of a node"),
        (
            DIM,
            "--time=6",
            "time",
            "--time=6: the signal to stop comes up to 360 s before the limit, so at once",
        ),
        (DIM, "--signal=B:USR1@600", "time", "--signal=B:USR1@600 and SIGNAL_SECONDS=300: expected"),
        (DIM, "--signal=USR1@300", "time", "--signal=USR1@300 and SIGNAL_SECONDS=300: expected --signal=B:U"),
        (
            HYBRID,
            "--export=ALL,ENGINE=zero9",
            "engine",
            "ENGINE=zero9: no recipes/launch/zero9.yaml; there are",
        ),
        (
            DIM,
            "--output=nowhere/%j.out",
            "log",
            f"--output=nowhere/%j.out: {ROOT}/nowhere: there is no such fo",
        ),
        (
            DIM,
            "--error=README.md/a/%x/b.out",
            "log",
            f"--error=README.md/a/%x/b.out: {ROOT}/README.md/a: there",
        ),
        (DIM, "--export=ALL,SITE=no.sh", "site", "SITE=no.sh: no such file; slurm/site.example.sh shows"),
        (
            DIM,
            "--export=PATH=/usr/bin:/bin",
            "site",
            "no python or no accelerate in PATH: submit in the environment",
        ),
        (DIM, "btch=1", "recipe", "command line: btch: unknown key; did you mean 'batch'?"),
        (HYBRID, "batch=64", "batch", "batch=64 does not divide over 16 processes in whole units of"),
        (DIM, "data.source=folder data.root=no", "data", "data set no does not exist; make it with"),
        (DIM, "data.test=validation", "data", "data.test=validation: "),
        (DIM, "card=0.001", "memory", "card=0.001: 0.0"),
        (DIM, "tracking.uri=ftp://x", "tracking", "tracking.uri: 'ftp://x' is no address of MLflow"),
    ],
)
def test_what_would_end_a_job_is_one_line(checked, script, words, name, message):
    status, lines, errors = checked(script, *words.split(), *(["groups.norm=32"] * (name == "batch")))
    assert status == 2
    assert errors.pop(name).startswith(message)
    assert not errors
    assert not {name, "sound"} & set(lines)


def test_zero_without_deepspeed_and_an_optimizer_that_it_cannot_run(checked, monkeypatch):
    zero = "--export=ALL,ENGINE=zero1"
    status, _, errors = checked(HYBRID, "gpus=2", zero, "batch=512", "optimizer={kind: lars, lr: 1.0}")
    assert status == 2
    assert errors["batch"].startswith("optimizer.kind=lars takes the norm of every layer, and zero1 cuts")
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    _, _, errors = checked(HYBRID, "gpus=2", zero, "batch=512")
    assert (
        errors["engine"] == "ENGINE=zero1: DeepSpeed is not installed: pip install deepspeed, or ENGINE=ddp"
    )


# ---- the site --------------------------------------------------------------------------------------


def test_a_site_that_bash_cannot_read(checked, tmp_path):
    site = tmp_path / "site.sh"
    site.write_text("inside() { apptainer exec\n")
    status, lines, errors = checked(DIM, f"--export=ALL,SITE={site}")
    assert status == 2
    assert errors["site"].startswith(f"{site}: line 2: syntax error")
    assert "recipe" not in lines


def test_the_words_of_a_site_stand_before_those_of_the_command(checked, tmp_path):
    site = tmp_path / "site.sh"
    site.write_text("echo modules are loaded\nSITE_WORDS=(batch=256 run=of_the_site)\n")
    _, lines, _ = checked(DIM, f"--export=ALL,SITE={site}", "batch=512")
    assert lines["recipe"] == f"quickstart, pretrain, run {tmp_path}/outputs/of_the_site"
    assert lines["batch"] == "512 images a step, 512 a rank"


def test_a_program_that_does_not_end(monkeypatch):
    monkeypatch.setattr(look, "PATIENCE", 0.1)
    with pytest.raises(UserError, match=r"sleep has not ended within 0.1 s"):
        look.ended(["sleep", "60"], {})
    with pytest.raises(UserError, match="nothing-such cannot be started: No such file"):
        look.ended(["nothing-such"], {})


# ---- the run, and what tracks it -------------------------------------------------------------------


def test_a_run_that_another_process_writes(checked, tmp_path):
    run = tmp_path / "outputs" / "quickstart"
    run.mkdir(parents=True)
    journal = Journal(run / "journal.jsonl")
    (run / "world.json").write_text('{"job": "77"}')
    status, _, errors = checked(DIM)
    journal.close()
    assert status == 2
    assert errors == {
        "run": f"{run}: another process is writing this run, job 77; let it end, or start "
        "another with run=NAME"
    }


def test_a_run_that_was_begun_is_finished_or_is_of_another_recipe(checked, tmp_path):
    run = tmp_path / "outputs" / "quickstart"
    run.mkdir(parents=True)
    (run / "journal.jsonl").touch()
    assert checked(DIM)[1]["run"] == f"{run}: goes on from 0 images"
    (run / "done").write_text("1000000000\n")
    assert checked(DIM)[1]["run"] == f"{run}: finished already, nothing is left to train"
    shutil.rmtree(run)
    write_run(run, WORDS["moco"])
    status, _, errors = checked(DIM)
    assert status == 2
    assert errors["run"].startswith(f"{run} is a run of another recipe")


def test_a_run_to_evaluate(capsys, tmp_path):
    run = tmp_path / "run"
    words = ["check", "slurm/evaluate.sh", f"from={run}"]
    assert cli.run(words) == 2
    assert f"error: run: from={run}: no run there" in capsys.readouterr().err
    assert cli.run([*words, "--dependency=afterok:5"]) == 0
    assert f"run        {run}: not there yet; the job waits for another\n" in capsys.readouterr().out
    write_run(run, WORDS["dim"])
    assert cli.run(words) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["script", "time", "log", "site", "recipe", "run", "slurm", "sound"]


@pytest.fixture
def answering():
    """A web server whose every answer has this status; its address."""
    servers = []

    def answering(status: int) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status if self.path == "/health" else 500)
                self.end_headers()

            def log_message(self, *_):
                pass

        servers.append(http.server.HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield answering
    for server in servers:
        server.shutdown()
        server.server_close()


def test_mlflow_answers_or_not(checked, answering, monkeypatch):
    uri = answering(200)
    assert checked(DIM, f"tracking.uri={uri}")[1]["tracking"] == f"{uri} answers"
    uri = answering(401)
    _, _, errors = checked(DIM, f"tracking.uri={uri}")
    assert errors["tracking"].startswith(
        f"tracking.uri={uri} answers with status 401: export MLFLOW_TRACKING_U"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    assert "wants the password" in checked(DIM, f"tracking.uri={uri}")[1]["tracking"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    _, _, errors = checked(DIM, f"tracking.uri={uri}")
    assert errors["tracking"].startswith(f"tracking.uri={uri} does not answer from here: ")


# ---- Slurm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "says"), [(0, "sbatch: Job 5 to start"), (1, "sbatch: error: no such account")]
)
def test_what_slurm_says_of_the_command(checked, monkeypatch, tmp_path, status, says):
    program, words = tmp_path / "bin" / "sbatch", tmp_path / "words"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {words}\necho "{says}" >&2\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{checks.os.environ['PATH']}")
    monkeypatch.setattr(checks, "which", lambda name: str(program))
    ended, lines, errors = checked(DIM, "--account=a")
    assert ended == 2 * status
    said = errors["slurm"] if status else lines["slurm"]
    assert said == (f"sbatch --test-only: {says}" if status else "Job 5 to start")
    assert words.read_text().splitlines()[:3] == ["--test-only", "--account=a", DIM]
