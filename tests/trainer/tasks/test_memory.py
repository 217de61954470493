"""A step that lacks memory: one line, nothing of it is saved, and the same run goes on in smaller parts."""

import pytest
import torch

from tests.helpers.command_lines import mistake, script, tiny
from trainer.checkpoints.load import kept
from trainer.runs.folder import RunFolder
from trainer.training.trainer import Trainer

CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 12.75 "
    "MiB is free. Including non-PyTorch memory, this process has 79.08 GiB memory in use.\n(and more lines)"
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(CUDA), "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total"),
        (
            torch.distributed.DistBackendError("NCCL error\nCuda failure 2 'out of memory'"),
            "Cuda failure 2 'out of memory'",
        ),
    ],
    ids=["torch", "NCCL"],
)
def test_a_step_that_does_not_fit_is_one_line(capsys, tmp_path, digits, monkeypatch, error, said):
    words, step = tiny(tmp_path, digits.root), Trainer.step

    def second_fails(trainer):
        if trainer.images == 128:
            raise error
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", second_fails)
        line = mistake(script(capsys, *words))
    assert line.startswith(f"training fails: not enough memory ({said}")
    assert line.endswith(
        "; the same command goes on with a larger `accumulate` (now 1), which takes the batch in more parts; "
        "or start a run with a smaller `batch`, or end what else uses memory"
    )
    folder = RunFolder(tmp_path / "quickstart")
    assert line in (folder.path / "failed").read_text()
    assert len(kept(folder.checkpoints)) == 1
    done = script(capsys, *words, "accumulate=2")
    assert done.status == 0
    assert (folder.path / "done").exists()


def test_any_other_error_of_the_device_keeps_its_traceback(capsys, tmp_path, digits, monkeypatch):
    error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def fails(trainer):
        raise error

    monkeypatch.setattr(Trainer, "step", fails)
    with pytest.raises(RuntimeError) as raised:
        script(capsys, *tiny(tmp_path, digits.root))
    assert raised.value is error
