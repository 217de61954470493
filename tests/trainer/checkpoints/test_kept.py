"""What `save.keep` and `save.keep_every` leave of a training; the command prunes by the same rule."""

import pytest

from tests.helpers.command_lines import script, tiny
from trainer.checkpoints.__main__ import main
from trainer.checkpoints.load import kept


@pytest.mark.slow
def test_training_keeps_what_its_recipe_says(capsys, digits, tmp_path):
    every = ["save.keep=1", "save.keep_every=384"]  # saved every 128 images
    ended = {}
    for run, lengths in {"straight": [1024], "restarted": [512, 640, 1024]}.items():
        for images in lengths:
            done = script(capsys, *tiny(tmp_path, digits.root, f"run={run}", f"images={images}", *every))
            assert done.status == 0, done.err
        ended[run] = kept(tmp_path / run / "checkpoints")
    assert ended["straight"] == ended["restarted"] == [384, 768, 1024]

    done = script(capsys, *tiny(tmp_path, digits.root, "run=all", "images=1024", "save.keep=99"))
    assert done.status == 0, done.err
    folder = tmp_path / "all"
    assert kept(folder / "checkpoints") == list(range(128, 1025, 128))
    assert main(["prune", str(folder), "--keep=1", "--keep-every=384"]) == 0
    assert kept(folder / "checkpoints") == [384, 768, 1024]
    capsys.readouterr()
    assert main(["list", str(folder)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "1 rank  single process  complete, not read; the next start continues from it" in last
