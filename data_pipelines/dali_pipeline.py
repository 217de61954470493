"""Encoded bytes and draws -> tensors, by the graphs of `dali_graph`, on CPU or GPU."""

import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import torch
from nvidia.dali import Pipeline
from nvidia.dali.tensors import TensorCPU, TensorListCPU, TensorListGPU

from data_pipelines.common.errors import Undecodable
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
        self.pipeline, self.headers = self._build(), self._build_headers()

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
            Undecodable: naming the slots, also of images of another size; the next call works again.
        """
        lists = [TensorListCPU([TensorCPU(image) for image in images]) for images in encoded]
        agree = [self._headers_agree(*pair) for pair in zip(lists, sizes, strict=True)]
        if not all(agree):
            raise Undecodable([self._headers_apart(*pair) for pair in zip(encoded, sizes, strict=True)])
        for number, images in enumerate(lists):
            self.pipeline.feed_input(f"encoded{number}", images)
        corners = self._feed_regions(draws) if self.fast else [0] * len(lists)
        for number, (view, source) in enumerate(zip(self.views, self.sources, strict=True)):
            values = inputs(view, draws[number], corners[source], self.graph_device)
            for name, value in values.items():
                self.pipeline.feed_input(f"{name}{number}", np.ascontiguousarray(value))
        try:
            outputs = self.pipeline.run()
        except RuntimeError:
            # A failure leaves DALI's pipeline unusable, and does not always name the image.
            self.pipeline = self._build()
            slots = [
                [slot for slot, made in enumerate(self._alone(decode_graph, images)) if made is None]
                for images in encoded
            ]
            if not any(slots):
                raise
            raise Undecodable(slots) from None
        return [self._tensor(output) for output in outputs]

    def _feed_regions(self, draws: list[Draws]) -> list[np.ndarray]:
        """Feeds what to decode for each source, the box around its views' crops; returns its corners."""
        corners = []
        for source in range(max(self.sources) + 1):
            crops = [d for d, s in zip(draws, self.sources, strict=True) if s == source]
            corner = np.min([d.anchor for d in crops], axis=0)
            extent = np.max([d.anchor + d.shape for d in crops], axis=0) - corner
            self.pipeline.feed_input(f"corner{source}", corner)
            self.pipeline.feed_input(f"extent{source}", extent)
            corners.append(corner)
        return corners

    def _headers_agree(self, images: TensorListCPU, sizes: np.ndarray) -> bool:
        """Whether all headers can be read and have the sizes expected.

        This is checked before anything is decoded: among several images, one whose header cannot be read
        makes DALI 2.4's decoder write over its own memory, and the process dies some time later. And no
        memory is allocated for a damaged header that claims 50,000 x 50,000 pixels. The check takes 4 us an
        image.
        """
        self.headers.feed_input("encoded", images)
        try:
            (shapes,) = self.headers.run()
        except RuntimeError:
            self.headers = self._build_headers()
            return False
        return np.array_equal(np.asarray(shapes.as_tensor())[:, :2], sizes)

    def _headers_apart(self, images: list[np.ndarray], sizes: np.ndarray) -> list[int]:
        """The slots of images whose header cannot be read or has another size."""
        shapes = [(0, 0) if made is None else made.at(0)[:2] for made in self._alone(header_graph, images)]
        return np.flatnonzero((np.array(shapes) != sizes).any(axis=1)).tolist()

    def _alone(
        self, graph: Callable[..., Pipeline], images: list[np.ndarray]
    ) -> Iterator[TensorListCPU | TensorListGPU | None]:
        """Yields the output of a graph for each image alone, in a batch of one; None where it fails."""
        pipeline = None
        for image in images:
            if pipeline is None:
                pipeline = graph(**{**self.options, "batch_size": 1, "num_threads": 1})
                pipeline.build()
            pipeline.feed_input("encoded", [image])
            try:
                (made,) = pipeline.run()
            except RuntimeError:
                made = pipeline = None
            yield made

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
