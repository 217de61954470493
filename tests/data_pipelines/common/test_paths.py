"""What the system refuses about a path is one line; a mistake of the program's stays what it is."""

import errno
import os

import pytest

from data_pipelines.common.errors import UserError
from data_pipelines.common.home import expand_home
from data_pipelines.common.paths import ADVICE, refusal, refused_paths


@pytest.mark.parametrize("number", ADVICE)
def test_an_error_that_names_a_path_is_one_line_with_advice(number):
    error = OSError(number, os.strerror(number), "outputs/run")
    assert str(refusal(error)) == f"outputs/run: {os.strerror(number)}; {ADVICE[number]}"


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        FileExistsError(errno.EEXIST, "File exists", "a"),
        OSError(errno.EBADF, "Bad file descriptor"),
        PermissionError(errno.EPERM, "Operation not permitted"),  # of no path: a signal, a socket
        OSError("only text"),
        ValueError("no error of the system's"),
    ],
)
def test_what_may_be_a_mistake_of_the_programs_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised, refused_paths():
        raise error
    assert raised.value is error


def test_real_refusals_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for path, words in (
        (tmp_path / ("n" * 256), "File name too long; a name has at most 255 bytes"),
        (tmp_path / ("é" * 128), "File name too long; a name has at most 255 bytes"),
        (tmp_path / "file" / "below", "Not a directory; a part of it is a file"),
        (tmp_path / "loop" / "below", "its symbolic links lead in a circle"),
        (tmp_path, "Is a directory; it is a folder where a file is expected"),
    ):
        with pytest.raises(UserError, match=words), refused_paths():
            path.read_bytes()


def test_a_full_disk_names_no_path_and_is_one_line():
    line = "a file: No space left on device; make room"
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(UserError, match=line),
        refused_paths(),
    ):
        file.write(b"x")


def test_a_working_folder_that_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="the working directory has been removed"), refused_paths():
        os.getcwd()


def test_a_long_path_is_shortened_in_the_line():
    line = str(refusal(OSError(errno.ENAMETOOLONG, "File name too long", "/a" + "n" * 5000 + "/end")))
    assert len(line) < 420
    assert line.startswith("/an")
    assert "n/end: File name too long" in line


@pytest.mark.parametrize("path", ["a\0b", "a\udcffb"])
def test_a_text_that_can_be_no_path_is_refused(path):
    with pytest.raises(ValueError, match="text in UTF-8 without zero bytes"):
        expand_home(path)
