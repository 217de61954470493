"""A mistake that is found when a run is built: a new run leaves no folder in the way of the mended recipe."""

import pytest

from data_pipelines.common.errors import UserError
from tests.helpers.command_lines import mistake, script, tiny
from trainer.tasks import pretrain


@pytest.fixture
def words(tmp_path, digits) -> list[str]:
    return tiny(tmp_path, digits.root, "images=128", "batch=64", "groups.norm=32", "save.every=64")


def break_build(patch: pytest.MonkeyPatch, error: Exception) -> None:
    def build(*_, **__):
        raise error

    patch.setattr(pretrain, "build_trainer", build)


def test_a_new_run_leaves_nothing_and_one_that_has_trained_all(capsys, monkeypatch, tmp_path, words):
    folder = tmp_path / "quickstart"
    with monkeypatch.context() as patch:
        break_build(patch, UserError("objective.omega=7: mend it"))
        assert mistake(script(capsys, *words)) == "objective.omega=7: mend it"
    assert not folder.exists()
    assert script(capsys, *words, "seed=1", "images=64").status == 0  # another recipe of this name
    before = {path for path in folder.rglob("*") if path.name != "done"}
    break_build(monkeypatch, UserError("a late mistake"))
    assert mistake(script(capsys, *words, "seed=1")) == "a late mistake"
    assert {path for path in folder.rglob("*") if path.name != "failed"} == before
    assert (folder / "failed").read_text() == "64\na late mistake\n"


def test_what_is_no_users_mistake_leaves_its_reason(capsys, monkeypatch, tmp_path, words):
    break_build(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        script(capsys, *words)
    assert "a bug" in (tmp_path / "quickstart/failed").read_text()
