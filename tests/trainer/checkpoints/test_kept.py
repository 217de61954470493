"""Which checkpoints `save.keep` and `save.keep_every` retain, in training and by the command."""

import pytest

from tests.helpers.command_lines import script, tiny
from trainer.checkpoints.__main__ import main
from trainer.checkpoints.load import kept
from trainer.checkpoints.retention import retained


def test_the_rule():
    every_ten = range(10, 210, 10)
    assert retained(every_ten, keep=2) == {190, 200}
    assert retained(every_ten, keep=2, keep_every=50) == {50, 100, 150, 190, 200}
    none_at_multiples = [30, 60, 130, 140, 190, 330]
    assert retained(none_at_multiples, keep=1, keep_every=100) == {130, 330}
    assert retained([10, 20], keep=1, keep_every=5) == {10, 20}  # an interval each
    assert retained([], keep=1, keep_every=5) == set()


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
