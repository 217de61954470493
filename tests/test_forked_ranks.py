"""The parent of forked ranks: an end belongs to one rank, whatever number a later process bears."""

from pathlib import Path

from tests.helpers.forked_ranks import RankForker


class OneNumber(RankForker):
    """As on a kernel that gives every process the same number."""

    def __init__(self):
        self._running, self.answers = {}, []

    def _ask(self, command, request):
        return [7] if command == "start" else self.answers.pop(0)


def test_a_rank_that_bears_a_dead_ones_number_has_no_end_of_its(tmp_path):
    forker = OneNumber()
    forker.answers = [{"7": 3}, {}, {"7": 0}]
    first = forker.run(Path("script.py"), tmp_path / "first", 1)
    assert first.statuses() == [3]
    second = forker.run(Path("script.py"), tmp_path / "second", 1)
    assert second.statuses() == [None]
    assert second.statuses() == [0]
    assert first.ends == [3]
