"""Checkpoints: a flat mapping of names to tensors, saved by all ranks, loaded on any number of them.

    folder/images-000012800000/part-00000-of-00002.safetensors  part-00001-of-00002.safetensors  manifest.json

Saving is `snapshot` (a copy in host memory, inside the step; of a GPU's tensors it is only begun there) then
`write` (files only, no collective: it may run beside the next steps). The ranks write into a hidden folder,
which gets its name by one rename when every byte of it is on the disk; only then is an older one hidden
by a rename and removed. So after a kill at any instant every visible checkpoint is whole, and `clean` removes
the hidden rest.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipelines.common.errors import UserError
from data_pipelines.common.files import cannot_write, flush, replacing
from trainer.checkpoints.format import (
    Damaged,
    folder_name,
    part_name,
    verify,
    write_manifest,
    write_part,
)
from trainer.checkpoints.retention import prune, remove
from trainer.distributed.rows import TensorShard, row_range


@dataclass(frozen=True)
class Snapshot:
    """One rank's rows of the state in host memory; a tensor of which it has no row may be absent.

    They may be read after `wait`.
    """

    rank: int
    world: int
    parts: Mapping[str, TensorShard]
    wait: Callable[[], object] = lambda: None


class PinnedMemory:
    """Host memory that a GPU copies tensors to by itself, kept from one save to the next.

    Copies to other memory are the process's, page by page, and it starts no step meanwhile. These are in the
    stream of the steps: the next step changes what they read, so it would wait for another stream too.
    """

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def copy(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Begins the copy of a GPU's tensor, in the order in which it lies there: no kernel reorders it."""
        memory = self._kept.get(name)
        if memory is None or (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
            memory = self._kept[name] = torch.empty_like(tensor, device="cpu").pin_memory()
        return memory.copy_(tensor, non_blocking=True)


def snapshot(
    state: Mapping[str, torch.Tensor | TensorShard], rank: int, world: int, memory: PinnedMemory | None = None
) -> Snapshot:
    """Copies this rank's rows of a state to the host.

    Of a tensor, which is equal on all ranks, a rank copies the rows that fall to it (of a 0-dim one rank 0
    does); of a `TensorShard` all.

    Args:
        memory: where a GPU's tensors are copied to; the snapshot before this one is lost then. None: the
            copies are complete, contiguous and share no memory with the state or each other.
    """
    parts = {}
    for name, value in state.items():
        shard = value if isinstance(value, TensorShard) else _shard_of(value, rank, world)
        if rank == 0 or (shard.shape and len(shard.rows)):  # rank 0 also names tensors without any row
            if memory is not None and shard.rows.is_cuda:
                rows = memory.copy(name, shard.rows)
            else:
                rows = _host_copy(shard.rows)
            parts[name] = TensorShard(shard.shape, shard.offset, rows)
    if not torch.cuda.is_initialized():
        return Snapshot(rank, world, parts)
    copied = torch.cuda.Event()
    copied.record()
    if memory is None:
        copied.synchronize()
    return Snapshot(rank, world, parts, copied.synchronize)


def _shard_of(tensor: torch.Tensor, rank: int, world: int) -> TensorShard:
    if not tensor.dim():
        return TensorShard((), 0, tensor.detach())
    start, stop = row_range(len(tensor), rank, world)
    return TensorShard(tuple(tensor.shape), start, tensor.detach()[start:stop])


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the host; a copy from a GPU is complete after a synchronisation."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor, non_blocking=True)


def write(
    snapshot: Snapshot,
    folder: Path,
    images: int,
    manifest: dict,
    attempt: str,
    keep: int,
    timeout: float = 600.0,
    keep_every: int = 0,
) -> Path | None:
    """Writes this rank's part; rank 0 then waits for the others' parts and publishes the checkpoint.

    An undamaged checkpoint of the same number of images stays as it is.

    Args:
        manifest: the caller's entries of manifest.json (fingerprints and the like), used on rank 0.
        attempt: a token, equal on all ranks and new in each start; a start saves a number of images once.
        keep: how many checkpoints remain, counted back from this one by images. Others are removed, with a
            warning on stderr where that fails.
        timeout: seconds that rank 0 waits for the other ranks' parts.
        keep_every: of each interval of so many images the first checkpoint remains too; 0: none.

    Returns:
        The checkpoint's folder on rank 0, None elsewhere.

    Raises:
        UserError: the folder cannot be written (what was written of this checkpoint is removed), or a part
            does not come in time.
    """
    folder = Path(folder)
    partial = folder / f".{folder_name(images)}.{attempt}.partial"
    part = partial / part_name(snapshot.rank, snapshot.world)
    sidecar = _sidecar(partial, snapshot.rank, snapshot.world)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        snapshot.wait()
        description = write_part(part, snapshot.parts)
        # Once the sidecar has its name, rank 0 may publish: this rank must not fail after that.
        with replacing(sidecar, flush_name=False) as temporary:
            temporary.write_text(json.dumps(description))
        if snapshot.rank:
            return None
        descriptions = _wait_for_sidecars(partial, snapshot.world, timeout)
        write_manifest(partial, images, descriptions, manifest)
        for rank in range(snapshot.world):
            _sidecar(partial, rank, snapshot.world).unlink()
        flush(partial)
        path = _publish(partial, folder / folder_name(images))
        prune(folder, images, keep, keep_every)  # only now that this one is whole
        return path
    except OSError as error:
        if snapshot.rank:
            _report_failure(part, sidecar, error)
        raise cannot_write(folder, error) from error
    finally:
        if snapshot.rank == 0:  # there only if the save has failed
            shutil.rmtree(partial, ignore_errors=True)


def _sidecar(partial: Path, rank: int, world: int) -> Path:
    """The file with a part's description, for rank 0; written once the part is on the disk."""
    return (partial / part_name(rank, world)).with_suffix(".json")


def _report_failure(part: Path, sidecar: Path, error: OSError) -> None:
    """Removes this part and writes the reason for rank 0, if the disk has room for a line."""
    with suppress(OSError):
        part.unlink(missing_ok=True)
        with replacing(sidecar, flush_name=False) as temporary:
            temporary.write_text(json.dumps({"error": error.strerror or str(error)}))


def _wait_for_sidecars(partial: Path, world: int, timeout: float) -> list[dict]:
    """Each part's description, in the order of ranks, once all parts are on the disk."""
    descriptions: dict[int, dict] = {}
    deadline = time.monotonic() + timeout
    while True:
        for rank in set(range(world)) - set(descriptions):
            with suppress(FileNotFoundError):
                descriptions[rank] = json.loads(_sidecar(partial, rank, world).read_bytes())
                if "error" in descriptions[rank]:
                    raise OSError(f"rank {rank}: {descriptions[rank]['error']}")
        missing = [part_name(rank, world) for rank in range(world) if rank not in descriptions]
        if not missing:
            return [descriptions[rank] for rank in range(world)]
        if time.monotonic() > deadline:
            raise UserError(
                f"checkpoint not saved: after {timeout:g} s {partial} still lacks {', '.join(missing)}; "
                "those ranks have died, hang, or see another file system"
            )
        time.sleep(0.02)


def _publish(partial: Path, path: Path) -> Path:
    """Renames the finished folder, unless there is an undamaged checkpoint of the same images."""
    if path.exists():
        try:
            verify(path)
            return path
        except Damaged:
            remove(path)
    os.rename(partial, path)
    flush(path.parent)
    return path
