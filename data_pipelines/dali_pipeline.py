"""Encoded bytes and draws -> tensors, by the graphs of `dali_graph`, on CPU or GPU."""

import os
import sys
import weakref
from contextlib import suppress

import numpy as np
import torch
from nvidia.dali import Pipeline
from nvidia.dali.tensors import TensorCPU, TensorListCPU, TensorListGPU

from data_pipelines.common.errors import Undecodable
from data_pipelines.dali_damage import damaged, size_in_header, size_of_pixels
from data_pipelines.dali_graph import decode_graph, header_graph, inputs, view_graph
from data_pipelines.draws import Draws
from data_pipelines.views import Normalize, View


class ImagePipeline:
    """Decodes images and makes their views.

    Args:
        views: the augmentations, one output each.
        sources: for each view, which of the lists of encoded images it is made from.
        size: height and width of the output, pixels.
        normalize: mean and standard deviation, a number a channel, of pixels in [0, 1].
        batch: most images in a call.
        threads: of the CPU.
        device: "cpu" or "cuda:N".
        fast: decode no more of an image than its views show. The pixels are equal, but damage outside of the
            crops is not noticed, so which damaged images are replaced depends on the crops.
    """

    def __init__(
        self,
        views: list[View],
        sources: list[int],
        size: int,
        normalize: Normalize,
        batch: int,
        threads: int,
        device: torch.device,
        fast: bool = False,
    ):
        self.views, self.sources, self.fast = views, sources, fast
        self.options = {
            "batch_size": batch,
            "num_threads": threads,
            "device_id": device.index or 0 if device.type == "cuda" else None,
            "prefetch_queue_depth": 1,
            "exec_async": False,
            "exec_pipelined": False,
        }
        self.size, self.normalize, self.device = size, normalize, device
        self.graph_device = "gpu" if device.type == "cuda" else "cpu"
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
        self.memory = Memory()
        self.pipeline: Pipeline | None = self._build()
        self.headers: Pipeline | None = self._build_headers()

    def _build(self) -> Pipeline:
        pipeline = view_graph(
            self.views,
            self.sources,
            self.size,
            self.normalize,
            self.graph_device,
            self.fast,
            **self.options,
        )
        pipeline.build()
        remove_generated()
        return pipeline

    def _build_headers(self) -> Pipeline:
        pipeline = header_graph(**{**self.options, "device_id": None})
        pipeline.build()
        return pipeline

    def __call__(
        self, encoded: list[list[np.ndarray]], sizes: list[np.ndarray], draws: list[Draws]
    ) -> list[torch.Tensor]:
        """Makes the views of one batch.

        Args:
            encoded: for each source a list of n encoded images, uint8 arrays.
            sizes: for each source the heights and widths that they should have, int [n, 2].
            draws: for each view its n draws.

        Returns:
            For each view a float32 tensor [n, 3, size, size] in channels_last memory.

        Raises:
            Undecodable: naming the slots, also of images of another size.
            Exception: what DALI raised, where no image is to blame for it.

        The next call works again.
        """
        lists = [TensorListCPU([TensorCPU(image) for image in images]) for images in encoded]
        failed, size_of = header_graph, size_in_header
        try:
            slots = [self._other_sizes(*pair) for pair in zip(lists, sizes, strict=True)]
            if not any(slots):
                failed, size_of = decode_graph, size_of_pixels
                return [self._tensor(output) for output in self._run(lists, draws)]
        except Exception as error:
            # A failure leaves DALI's pipelines unusable, or fed in part, and does not always name the image.
            self.pipeline = self.headers = None
            slots = [damaged(failed, *pair, size_of) for pair in zip(encoded, sizes, strict=True)]
            if not any(slots):
                if "Failed to decode" in str(error):  # all that OpenCV's decoders say of lacking memory
                    raise MemoryError("DALI decodes each of the images, but not all together") from error
                raise
        raise Undecodable(slots)

    def _run(
        self, lists: list[TensorListCPU], draws: list[Draws]
    ) -> tuple[TensorListCPU | TensorListGPU, ...]:
        self.pipeline = pipeline = self.pipeline or self._build()
        for number, images in enumerate(lists):
            pipeline.feed_input(f"encoded{number}", images)
        corners = self._feed_regions(pipeline, draws) if self.fast else [0] * len(lists)
        for number, (view, source) in enumerate(zip(self.views, self.sources, strict=True)):
            values = inputs(view, draws[number], corners[source], self.graph_device)
            for name, value in values.items():
                pipeline.feed_input(f"{name}{number}", np.ascontiguousarray(value))
        return pipeline.run()

    def _feed_regions(self, pipeline: Pipeline, draws: list[Draws]) -> list[np.ndarray]:
        """Feeds what to decode for each source, the box around its views' crops; returns its corners."""
        corners = []
        for source in range(max(self.sources) + 1):
            crops = [d for d, s in zip(draws, self.sources, strict=True) if s == source]
            corner = np.min([d.anchor for d in crops], axis=0)
            extent = np.max([d.anchor + d.shape for d in crops], axis=0) - corner
            pipeline.feed_input(f"corner{source}", corner)
            pipeline.feed_input(f"extent{source}", extent)
            corners.append(corner)
        return corners

    def _other_sizes(self, images: TensorListCPU, sizes: np.ndarray) -> list[int]:
        """The slots of images that have another size, by their headers. Raises where one cannot be read.

        This is checked before anything is decoded: among several images, one whose header cannot be read
        makes DALI 2.4's decoder write over its own memory, and the process dies some time later. And no
        memory is allocated for a damaged header that claims 50,000 x 50,000 pixels. The check takes 4 us an
        image.
        """
        self.headers = headers = self.headers or self._build_headers()
        headers.feed_input("encoded", images)
        (shapes,) = headers.run()
        return np.flatnonzero((np.asarray(shapes.as_tensor())[:, :2] != sizes).any(axis=1)).tolist()

    def _tensor(self, output: TensorListCPU | TensorListGPU) -> torch.Tensor:
        # A copy: DALI writes its next batch into the same memory. On the CPU numpy copies, in this thread:
        # torch would wake its thread pool, whose waiting takes ten times the CPU time of the copy.
        if self.device.type == "cpu":
            tensor = torch.from_numpy(self.memory.copy(np.asarray(output.as_tensor())))
        else:
            # On a separate stream, and waited for, since DALI may then write again: the default stream is
            # busy with the steps of training, and would run the copy after them.
            with torch.cuda.stream(self.stream):
                tensor = torch.utils.dlpack.from_dlpack(output.as_tensor()).clone()
            self.stream.synchronize()
            tensor.record_stream(torch.cuda.default_stream(self.device))  # which will read it
        return tensor.permute(0, 3, 1, 2)  # NHWC memory is channels_last: nothing moves


class Memory:
    """Copies arrays into the memory of earlier copies that nothing refers to any more.

    Fresh memory costs six times the copy itself: the system provides it page by page.
    """

    def __init__(self) -> None:
        self.free: dict[tuple[int, ...], list[np.ndarray]] = {}

    def copy(self, array: np.ndarray) -> np.ndarray:
        free = self.free.setdefault(array.shape, [])
        memory = free.pop() if free else np.empty_like(array)
        copied = memory.view()  # a tensor made of it keeps this object alive, and no other
        weakref.finalize(copied, free.append, memory).atexit = False
        np.copyto(copied, array)
        return copied


def remove_generated() -> None:
    """Removes the source files that DALI generates for graphs with conditions, after they were loaded.

    DALI removes them at an orderly exit, which a killed process never reaches.
    """
    for name, module in sys.modules.copy().items():  # at once: other threads import meanwhile
        if name.startswith("__autograph_generated_file"):
            for file in filter(None, (module.__file__, module.__cached__)):
                with suppress(OSError):
                    os.unlink(file)
