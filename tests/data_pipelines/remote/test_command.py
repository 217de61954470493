"""Data sets that a command gives: with permission, without a shell, and as patient as any other."""

import errno
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.access import Access
from data_pipelines.common.errors import UserError
from data_pipelines.common.retry import Interrupted, TransientError
from data_pipelines.dataset import Dataset
from data_pipelines.dataset_loading import load_dataset
from data_pipelines.reader import Reader
from data_pipelines.remote import command as command_module
from tests.helpers.tiny_dataset import pictures, write_dataset, write_samples


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    """30 pictures in 5 shards, in a folder whose name wants quotes."""
    return write_dataset(tmp_path_factory.mktemp("it's $(touch here); the data"), pictures(30, 8, 8), 6)


def opened(root: str, cache: Path, **access) -> Dataset:
    return load_dataset(
        root, access=Access(**({"retry_seconds": 20.0, "cache": str(cache), "commands": True} | access))
    )


def contents(dataset: Dataset) -> list[bytes]:
    reader = Reader(dataset, "train")
    try:
        return [image.tobytes() for image in reader.read(np.arange(reader.images))]
    finally:
        reader.close()


def script(folder: Path, body: str) -> str:
    """A command that runs these lines of Python; `name` is the file asked for."""
    path = folder / "give.py"
    path.write_text(f"import os, sys, time\nname = sys.argv[1]\n{body}\n")
    return f"pipe:{shlex.quote(sys.executable)} {shlex.quote(str(path))} {{}}"


def test_a_command_gives_the_same_bytes(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = f"pipe:cat {shlex.quote(str(data.root))}/{{}}"
    assert contents(opened(root, tmp_path / "cache")) == contents(data)
    assert not (tmp_path / "here").exists()
    assert capsys.readouterr().err == ""


def test_nothing_is_run_without_permission(data, tmp_path):
    for root, program in ((f"pipe:touch {tmp_path}/ran {{}}", "touch"), ("s3://bucket/data", "aws")):
        with pytest.raises(UserError) as error:
            opened(root, tmp_path / "cache", commands=False)
        assert str(error.value).startswith(f"data.root={root} starts a program ({program})")
        assert str(error.value).endswith("add --allow-commands to the command line")
    assert not list(tmp_path.iterdir())


def test_no_shell_takes_part(data, tmp_path, monkeypatch):
    """Words of the command that a shell would understand are handed on as they stand."""
    monkeypatch.chdir(tmp_path)
    body = f"sys.stdout.buffer.write(open({str(data.root)!r} + '/' + name, 'rb').read())"
    root = script(tmp_path, body) + " ; $(touch a) `touch b` | tee c > d && touch e"
    assert contents(opened(root, tmp_path / "cache")) == contents(data)
    assert {path.name for path in tmp_path.iterdir()} == {"give.py", "cache"}


@pytest.mark.parametrize("split", ["-rf", "--help"])
def test_a_name_is_never_an_option(tmp_path, split):
    write_samples(tmp_path / "data", {split: [(b"not looked at", 1, 1, 0)]}, 1)
    with pytest.raises(
        UserError, match=f"{split}/000000.tar has a name that a program would take for an option"
    ):
        opened(f"pipe:cat {tmp_path}/data/{{}}", tmp_path / "cache")


@pytest.mark.parametrize("split", ["a;touch here", "$(touch here)", "a b", "a`b`"])
def test_a_name_with_signs_of_a_shell_is_refused_before_anything_is_run(data, tmp_path, split):
    text = (data.root / "dataset.json").read_text().replace("train", split)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json \(by `cat`\) is broken \(shard name"):
        opened(f"pipe:cat {tmp_path}/{{}}", tmp_path / "cache")
    assert {path.name for path in tmp_path.iterdir()} == {"dataset.json"}


@pytest.mark.parametrize("path", ["x;touch here;.tar", "a b.tar", "$(touch here).tar", "~/x.tar", "a\\b.tar"])
def test_a_tar_with_signs_of_a_shell_in_its_path_is_refused(data, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    description = json.loads((data.root / "dataset.json").read_text())
    description["splits"]["train"]["shards"][1]["path"] = path
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="rename the tar and index it again"):
        opened(f"pipe:sh -c 'cat {tmp_path}/{{}}'", tmp_path / "cache")
    assert {path.name for path in tmp_path.iterdir()} == {"dataset.json"}


@pytest.mark.parametrize(
    "failing",
    [
        "print('no route', 'https://me:hush@host/x?token=hush', file=sys.stderr); sys.exit(7)",
        "sys.stdout.write('half'); sys.exit(1)",
        "sys.stdout.write('wrong')",
        "sys.stdout.buffer.write(bytes(10**6))",
        "os.close(1); os.close(2); time.sleep(60)",
        "time.sleep(60)",
    ],
    ids=["fails", "half", "wrong", "too much", "closed", "silent"],
)
def test_a_command_that_fails_twice_delays_and_changes_nothing(data, tmp_path, monkeypatch, capsys, failing):
    monkeypatch.setattr(command_module, "TIMEOUT", 1.0)
    body = f"""
count = {str(tmp_path)!r} + "/" + name.replace("/", "-")
with open(count, "a+") as file:
    file.write("x")
if "000002.tar" in name and os.path.getsize(count) < 3:
    {failing}
else:
    sys.stdout.buffer.write(open({str(data.root)!r} + "/" + name, "rb").read())
"""
    assert contents(opened(script(tmp_path, body), tmp_path / "cache")) == contents(data)
    assert (tmp_path / "train-000002.tar").read_text() == "xxx"
    assert (tmp_path / "train-000001.tar").read_text() == "x"
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 2
    assert "hush" not in errors
    if "no route" in failing:
        python = f"(by `{sys.executable}`)"
        assert f"train/000002.tar {python} failed with status 7: no route https://host/x?..." in errors
    if "sleep" in failing:
        assert "wrote nothing for 1 s" in errors


def test_a_command_that_always_fails_is_named_with_its_last_words(data, tmp_path):
    root = script(
        tmp_path, "print('one', file=sys.stderr); print('access denied', file=sys.stderr); sys.exit(3)"
    )
    with pytest.raises(UserError) as error:
        opened(root, tmp_path / "cache", retry_seconds=0.3)
    assert "failed with status 3: access denied, tried again for 0.3 s; run the command by hand" in str(
        error.value
    )


def test_messages_name_the_program_and_the_file_alone(data, tmp_path, capsys):
    """Whatever else stands in a command may be nobody's business."""
    body = f"""
if name != "dataset.json":
    sys.exit(3)
sys.stdout.buffer.write(open({str(data.root)!r} + "/" + name, "rb").read())
"""
    with pytest.raises(UserError) as error:
        contents(opened(script(tmp_path, body) + " --private words", tmp_path / "cache", retry_seconds=0.3))
    assert f"train/000000.npy (by `{sys.executable}`) failed with status 3" in str(error.value)
    with pytest.raises(UserError) as absent:
        opened("pipe:no-such-program {} --private words", tmp_path)
    for line in (str(error.value), str(absent.value), capsys.readouterr().err):
        assert "private" not in line
        assert "give.py" not in line


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no-such-program cannot be started \(no such program.* install it"):
        opened("pipe:no-such-program {}", tmp_path)


@pytest.mark.parametrize(("number", "error"), [(errno.E2BIG, UserError), (errno.EAGAIN, TransientError)])
def test_a_program_that_the_system_does_not_start(monkeypatch, number, error):
    def refuse(*_, **__) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    command = command_module.Command("pipe:cat {}", ["cat", "{}"])
    with pytest.raises(error, match=f"cannot be started \\({os.strerror(number)}"):
        command.open("dataset.json", 0, threading.Event()).__enter__()


def test_a_file_that_is_no_program(tmp_path):
    (tmp_path / "no program").write_bytes(b"\x7fELF")
    (tmp_path / "no program").chmod(0o755)
    with pytest.raises(UserError, match=r"status 1: cannot be started \(Exec format error\)"):
        opened(f"pipe:'{tmp_path}/no program' {{}}", tmp_path, retry_seconds=0.0)


def test_a_command_is_over_when_it_ends_whoever_keeps_its_standard_error(data, tmp_path, monkeypatch):
    """As ssh with ControlPersist does."""
    monkeypatch.setattr(command_module, "TIMEOUT", 2.0)
    left = "subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)"
    body = f"""
import subprocess
{left}
sys.stdout.buffer.write(open({str(data.root)!r} + '/' + name, 'rb').read())
"""
    assert contents(opened(script(tmp_path, body), tmp_path / "cache", retry_seconds=0.0)) == contents(data)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux ends a program with the thread that started it"
)
def test_no_command_outlives_a_trainer_that_is_killed(tmp_path):
    root = script(
        tmp_path, f"open({str(tmp_path / 'started')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    code = f"""
from data_pipelines.access import Access
from data_pipelines.dataset_loading import load_dataset
load_dataset({root!r}, access=Access(commands=True))
"""
    trainer = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[3])
    while not (tmp_path / "started").exists() or not (number := (tmp_path / "started").read_text()):
        assert trainer.poll() is None
        time.sleep(0.01)
    trainer.kill()
    trainer.wait()
    end = time.monotonic() + 5
    while running(number):
        assert time.monotonic() < end
        time.sleep(0.01)


def running(number: str) -> bool:
    """Whether there is a process of this number that has not ended (nobody may be there to bury it)."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", number], capture_output=True, text=True).stdout
    return state.strip()[:1] not in ("", "Z")


def test_s3_is_short_for_the_aws_command(data, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    aws = tmp_path / "bin/aws"
    aws.write_text(
        f'#!/bin/sh\n[ "$1 $2 $4" = "s3 cp -" ] && exec cat "{data.root}/${{3#s3://bucket/set/}}"\n'
    )
    aws.write_text(aws.read_text().replace("$(", "\\$("))
    aws.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert contents(opened("s3://bucket/set", tmp_path / "cache")) == contents(data)


def test_whoever_stops_waiting_leaves_no_program_behind(data, tmp_path):
    body = f"""
if name == "dataset.json":
    sys.stdout.buffer.write(open({str(data.root)!r} + "/" + name, "rb").read())
else:
    open({str(tmp_path / "started")!r}, "w").write(str(os.getpid()))
    time.sleep(60)
"""
    reader, ended = Reader(opened(script(tmp_path, body), tmp_path / "cache"), "train"), []

    def read() -> None:
        try:
            reader.read(np.arange(3))
        except Interrupted as error:
            ended.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        time.sleep(0.01)
    began = time.monotonic()
    reader.close()
    reading.join()
    assert time.monotonic() - began < 20
    assert len(ended) == 1
    number = (tmp_path / "started").read_text()
    assert subprocess.run(["ps", "-p", number], capture_output=True).returncode == 1
