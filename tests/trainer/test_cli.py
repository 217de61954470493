"""The console command: all doors on one screen, each with its own words, and one line for every mistake."""

import sys

import pytest

from data_pipelines.common.errors import UserError
from tests.helpers.command_lines import mistake, process, script, tiny
from trainer import cli
from trainer import main as trainer_main
from trainer.recipe.loading import RECIPES, load


def test_help_shows_all_doors_on_one_screen():
    done = process(sys.executable, "-m", "trainer.cli", "--help")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) <= 30
    shown = [line.split()[0] for line in lines if line.startswith("  ") and "  " in line.strip()]
    assert [name for name in shown if name in cli.DOORS] == list(cli.DOORS)


def test_the_command_is_there_before_torch():
    """The environment is set first, and a mistake is answered at once."""
    code = "import sys, trainer.cli; trainer.cli.run(['list']); print({'torch', 'numpy'} & set(sys.modules))"
    assert process(sys.executable, "-c", code).out.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["list"], ["--list"]),
        (
            ["print", "recipe=quickstart", "optimizer.lr=3e-4"],
            ["recipe=quickstart", "optimizer.lr=3e-4", "--print"],
        ),
        (
            ["plan", "recipe=dim_local", "data.root=nothing"],
            ["recipe=dim_local", "data.root=nothing", "--plan"],
        ),
        (["train", "recipe=dim_local", "--folder"], ["recipe=dim_local", "--folder"]),
        (["train", "--help"], ["--help"]),
    ],
    ids=lambda words: words[0],
)
def test_the_doors_of_main(capsys, words, same):
    expected = script(capsys, *same)
    assert (expected.status, expected.err) == (0, "")
    assert cli.run(words) == 0
    assert capsys.readouterr() == (expected.out, "")


def test_print_says_where_the_file_of_an_engine_lies(capsys):
    for path in (RECIPES / "launch").glob("*.yaml"):
        assert cli.run(["print", f"launch/{path.stem}"]) == 0
        assert capsys.readouterr() == (f"{path}\n", "")
    with pytest.raises(UserError, match="launch/zero3 alone; did you mean 'launch/zero"):
        cli.run(["print", "launch/zero4"])
    with pytest.raises(UserError, match="print launch/ddp run=a: expected launch/cpu"):
        cli.run(["print", "launch/ddp", "run=a"])


@pytest.mark.parametrize(
    ("door", "module"),
    [
        ("shards", "data_pipelines.shards"),
        ("checkpoints", "trainer.checkpoints"),
        ("tracking", "trainer.tracking"),
        ("import", "trainer.exports.torchvision_resnet"),
    ],
)
def test_the_other_doors_say_what_they_are(capsys, door, module):
    try:
        status = cli.run([door, "--help"])
    except SystemExit as left:  # argparse's
        status = left.code
    assert status == 0
    out, err = capsys.readouterr()
    assert f"python -m {module} " in out
    assert err == ""


def test_the_other_doors_do_their_work(capsys, digits, tmp_path):
    assert cli.run(["shards", "verify", str(digits.root)]) == 0
    assert "images in" in capsys.readouterr().out
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "journal.jsonl").touch()
    assert cli.run(["checkpoints", "list", str(tmp_path)]) == 0
    assert capsys.readouterr() == (f"{tmp_path}/run/checkpoints: none yet\n", "")
    assert cli.run(["tracking", "sync", str(tmp_path)]) == 0
    assert capsys.readouterr() == (f"{tmp_path}/run: nothing new\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND; see hybrid-infomax --help"),
        (["trian"], "trian: no command; expected train, list, print, plan, check, shards, checkpoints"),
        (["trian"], ", import or env; did you mean 'train'?"),
        (["--list"], "the following arguments are required: COMMAND; see hybrid-infomax --help"),
        (["train"], "no recipe given; expected recipe=NAME"),
        (["train", "recipe=quickstart", "btch=1"], "btch: unknown key; did you mean 'batch'?"),
        (["print", "recipe=quickstar"], "did you mean 'quickstart'?"),
        (["plan", "recipe=evaluate", "from=x"], "only "),
        (["shards", "verify", "nowhere"], "nowhere does not exist"),
        (["checkpoints", "list", "nowhere"], "nowhere: no checkpoints there"),
        (["checkpoints", "list"], "are required: DIR; see python -m trainer.checkpoints list --help"),
        (["tracking", "synk", "x"], "invalid choice: 'synk'"),
        (["tracking", "sync", "nowhere"], "nowhere: holds no run"),
        (["import", "from=nowhere", "to=x"], "nowhere: cannot be read"),
        (["import"], "expected from=CHECKPOINT to=ENCODER.safetensors"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_mistake_is_one_line(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hybrid-infomax", *words])
    monkeypatch.setattr(cli.launch, "leave", sys.exit)
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    assert (left.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert not list(tmp_path.iterdir())


def test_the_process_exits_2(tmp_path):
    assert "btch: unknown key" in mistake(
        process(sys.executable, "-m", "trainer.cli", "train", "recipe=quickstart", "btch=1")
    )


@pytest.mark.slow
def test_a_run_by_the_console_command(digits, tmp_path):
    done = process(sys.executable, "-m", "trainer.cli", "train", *tiny(tmp_path, digits.root, "images=128"))
    assert done.status == 0, done.err
    assert done.out.splitlines()[0] == "recipe quickstart: 1 rank x 1 thread, single process, cpu, float32"
    assert load([f"recipe={tmp_path}/quickstart/recipe.yaml"]).recipe.images == 128
    assert (tmp_path / "quickstart" / "done").exists()


def test_an_old_name_of_a_key_works_and_one_line_says_its_name_now(capsys, monkeypatch):
    words = ["recipe=dim_local", "data.patience=3", "--print"]
    assert trainer_main.main(words) == 0
    done = capsys.readouterr()
    assert done.err == "note: command line: data.patience is data.retry_seconds now\n"
    assert "  retry_seconds: 3.0 " in done.out
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():  # the first rank says it for all
        monkeypatch.setenv(name, value)
    assert trainer_main.main(words) == 0
    assert capsys.readouterr().err == ""
