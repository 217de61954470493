"""`~` in a path of the command line or a recipe is the home folder, wherever a path is read."""

import pytest

from data_pipelines.access import local_folder
from data_pipelines.common.errors import UserError
from data_pipelines.common.home import expand_home
from data_pipelines.shards.__main__ import main
from trainer.recipe.loading import load
from trainer.recipe.schema import expand_root


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_paths(home):
    assert expand_home("~") == str(home)
    assert expand_home("~/a b/~c") == f"{home}/a b/~c"
    for path in ("", "data/~x", "./~", "/a/~/b", "a~"):
        assert expand_home(path) == path
    with pytest.raises(ValueError, match=r"^~nobody-here is no user's home; .* \./~nobody-here/x"):
        expand_home("~nobody-here/x")


def test_roots(home):
    assert local_folder(expand_root("~/data")) == home / "data"
    assert local_folder(expand_root("file:~/data")) == home / "data"
    for root in ("https://host/~user/data", "s3://bucket/~x", "pipe:cat ~/{}", "file:///~/x", "data/~"):
        assert expand_root(root) == root


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.root=~/x", lambda recipe: recipe.data.root),
        ("data.cache=~/x", lambda recipe: recipe.data.cache),
        ("outputs=~/x", lambda recipe: recipe.outputs),
    ],
)
def test_keys_of_a_recipe(home, word, value):
    assert value(load(["recipe=quickstart", word]).recipe) == f"{home}/x"
    key = word.partition("=")[0]
    with pytest.raises(UserError, match=rf"{key}: ~nobody-here is no user's home"):
        load(["recipe=quickstart", f"{key}=~nobody-here/x"])


def test_runs_files_and_databases(home):
    assert load(["recipe=evaluate", "from=~/runs/a"]).recipe.from_ == f"{home}/runs/a"
    tracked = load(["recipe=quickstart", "tracking.uri=sqlite:///~/m.db"]).recipe.tracking
    assert tracked.uri == f"sqlite:///{home}/m.db"
    (home / "mine.yaml").write_text("base: quickstart\nseed: 7\n")
    (home / "heir.yaml").write_text("base: ~/mine.yaml\n")
    assert load(["recipe=~/heir.yaml"]).recipe.seed == 7


def test_data_sets_are_made_in_the_home(home, capsys):
    assert main(["source=digits", "to=~/digits"]) == 0
    assert (home / "digits" / "dataset.json").exists()
    assert main(["source=digits", "to=~nobody-here/x"]) == 2
    assert "to=~nobody-here/x: ~nobody-here is no user's home" in capsys.readouterr().err
