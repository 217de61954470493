"""What each of several gloo ranks reads of checkpoints: worker_restore.py CHECKPOINT...

Beside a checkpoint it writes loaded-RANK.safetensors, and result-RANK.json: what was read, or the error.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from data_pipelines.common.errors import UserError
from trainer.checkpoints import format as checkpoint_format
from trainer.checkpoints import state
from trainer.checkpoints.load import Checkpoint
from trainer.distributed import collectives


def main(paths: list[Path]) -> None:
    torch.distributed.init_process_group("gloo")
    collectives.open_cpu_group()
    for path in paths:
        restore(path, collectives.rank())
    collectives.barrier()
    torch.distributed.destroy_process_group()


def restore(path: Path, rank: int) -> None:
    reads: list[tuple[int, int, int]] = []  # part, offset, bytes
    read_exactly = checkpoint_format.read_exactly

    def counted(file, target):
        if file.tell() > 8:  # there lies the header, of which every rank reads each
            reads.append((int(Path(file.name).name[5:10]), file.tell(), len(target)))
        return read_exactly(file, target)

    checkpoint_format.read_exactly = counted
    result: dict = {"reads": reads}
    try:
        manifest = checkpoint_format.read_manifest(path)
        loaded = state.load(Checkpoint(path, manifest["images"], manifest))
        save_file(loaded, path.parent / f"loaded-{rank}.safetensors")
    except UserError as error:
        result["error"] = str(error)
    finally:
        checkpoint_format.read_exactly = read_exactly
    (path.parent / f"result-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main([Path(argument) for argument in sys.argv[1:]])
