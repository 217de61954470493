"""What fails for lack of memory, threads or files, or by our own mistake: no image is blamed for it."""

import errno
import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipelines import dali_pipeline
from data_pipelines.common.errors import UserError
from data_pipelines.common.shortage import shortage
from data_pipelines.dali import ImageViews
from data_pipelines.dali_damage import damaged, size_of_pixels
from data_pipelines.dali_graph import decode_graph
from data_pipelines.dali_pipeline import ImagePipeline
from data_pipelines.image_options import ImageOptions
from data_pipelines.loader import Prefetch
from data_pipelines.reader import Reader
from data_pipelines.shards.verify import verify
from data_pipelines.sources import images as decoding
from data_pipelines.views import View
from tests.data_pipelines.test_dali import CPU, SIDE, SIZES, VALUES, encoded, fixed
from tests.helpers.tiny_dataset import pictures, png, write_dataset

N = 8
OPTIONS = ImageOptions(SIDE, VALUES, 2, CPU)
IMAGES, SIZES = encoded(pictures(N)), SIZES[:N]
CUDA = "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory"
DALI = "Critical error in pipeline:\nencountered:\n\nFailed to decode sample #0 :\nno longer valid."


class Failing:
    """A pipeline whose runs fail as `fails`, called with the number of the run, says."""

    def __init__(self, error: Exception, fails=lambda run: True):
        self.error, self.fails, self.runs, self.fed = error, fails, 0, []

    def __call__(self, **_) -> "Failing":
        return self

    def build(self) -> None:
        pass

    def feed_input(self, name: str, data) -> None:
        self.fed = data

    def run(self):
        self.runs += 1
        if self.fails(self.runs):
            raise self.error
        pipeline = decode_graph(batch_size=1, num_threads=1, device_id=None)
        pipeline.build()
        pipeline.feed_input("encoded", self.fed)
        return pipeline.run()


# ---- what a failure says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), "memory"),
        (MemoryError("std::bad_alloc"), "memory"),
        (np._core._exceptions._ArrayMemoryError((3,), np.dtype("f4")), "memory"),
        (RuntimeError(CUDA), "memory"),
        (RuntimeError("Can't allocate 123 bytes"), "memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "memory",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "memory",
        ),
        (RuntimeError("OpenCV: (-4:Insufficient memory) Failed to allocate 48000000 bytes"), "memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
        (RuntimeError("can't start new thread"), "threads"),
        (RuntimeError("Resource temporarily unavailable"), "threads"),
        (RuntimeError(DALI), None),
        (OSError(errno.EIO, "Input/output error"), None),
        (OSError("image file is truncated"), None),
        (KeyError("window0"), None),
        (UserError("a worker process was killed (out of memory?); try again with workers=1"), None),
    ],
)
def test_shortages_are_told_from_other_failures(error, lacking):
    assert shortage(error) == lacking


# ---- a batch that fails ------------------------------------------------------------------------------


@pytest.fixture
def maker(tmp_path):
    reader = Reader(write_dataset(tmp_path, pictures(N), N), "train")
    yield ImageViews(reader, OPTIONS, [View()], [0], 0, N, warn=pytest.fail)
    reader.close()


def make(maker):
    return maker([np.arange(N)], [np.arange(N)])


@pytest.mark.parametrize("part", ["pipeline", "headers"])
@pytest.mark.parametrize("error", [RuntimeError(CUDA), MemoryError("std::bad_alloc"), RuntimeError(DALI)])
def test_lacking_memory_is_one_line_and_replaces_nothing(maker, part, error):
    expected = make(maker).views[0]
    setattr(maker.pipeline, part, Failing(error))
    with pytest.raises(UserError) as raised:
        make(maker)
    line = str(raised.value)
    assert line.startswith(f"making batches of {N} images of {SIDE} px on cpu fails: not enough memory (")
    assert "make `batch` smaller" in line
    assert "\n" not in line
    assert maker.undecodable == set()
    assert torch.equal(make(maker).views[0], expected)  # the next call works again


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("axis 3 is out of range"),
        RuntimeError("CUDA runtime API error cudaErrorIllegalAddress (700): an illegal memory access"),
        ValueError("layout"),
        KeyError("x"),
    ],
)
def test_any_other_failure_is_raised_as_it_is(maker, error):
    expected = make(maker).views[0]
    for part in ("pipeline", "headers"):
        setattr(maker.pipeline, part, Failing(error))
        with pytest.raises(type(error)) as raised:
            make(maker)
        assert raised.value is error
        assert maker.undecodable == set()
        assert torch.equal(make(maker).views[0], expected)


def test_a_crop_outside_of_its_image_is_no_damage():
    pipeline = ImagePipeline([View()], [0], SIDE, VALUES, N, 2, CPU)
    expected = pipeline([IMAGES], [SIZES], [fixed(N)])[0]
    with pytest.raises(RuntimeError, match="must be within input sample"):
        pipeline([IMAGES], [SIZES], [fixed(N, anchor=np.full((N, 2), 20))])
    assert torch.equal(pipeline([IMAGES], [SIZES], [fixed(N)])[0], expected)


def test_an_input_that_the_graph_lacks_leaves_nothing_behind(monkeypatch):
    """What was fed before it would be read by the next call."""
    pipeline = ImagePipeline([View()], [0], SIDE, VALUES, N, 2, CPU)
    with monkeypatch.context() as context:
        real = dali_pipeline.inputs
        context.setattr(dali_pipeline, "inputs", lambda *args: real(*args) | {"unknown": np.zeros(N)})
        with pytest.raises(KeyError):
            pipeline([IMAGES[::-1]], [SIZES], [fixed(N)])
    (actual,) = pipeline([IMAGES], [SIZES], [fixed(N)])
    assert np.array_equal(actual.permute(0, 2, 3, 1), pictures(N))


# ---- an image that fails alone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fails",
    [lambda run: True, lambda run: run % 2, lambda run: run in (1, 2), lambda run: run == 1],
    ids=["always", "every other", "two runs", "once"],
)
@pytest.mark.parametrize("error", [RuntimeError(CUDA), MemoryError(), RuntimeError("can't start new thread")])
def test_a_shortage_that_single_images_meet_too_blames_none(maker, monkeypatch, error, fails):
    expected = make(maker).views[0]
    maker.pipeline.pipeline = Failing(error)
    with monkeypatch.context() as context:
        context.setattr(dali_pipeline, "decode_graph", Failing(error, fails))
        with pytest.raises(UserError, match=r"not enough (memory|threads)"):
            make(maker)
    assert maker.undecodable == set()
    assert torch.equal(make(maker).views[0], expected)


@pytest.mark.parametrize("fails", [lambda run: True, lambda run: run in (1, 2), lambda run: run == 1])
def test_a_decoder_that_fails_on_a_sound_image_of_the_size_blames_none(maker, monkeypatch, fails):
    """What OpenCV says where memory is lacking is what it says of damage."""
    maker.pipeline.pipeline = Failing(RuntimeError(DALI))
    monkeypatch.setattr(dali_pipeline, "decode_graph", Failing(RuntimeError(DALI), fails))
    with pytest.raises((RuntimeError, UserError)):
        make(maker)
    assert maker.undecodable == set()


def test_an_image_that_is_read_at_last_is_sound():
    """What is free changes between calls, so that an image can fail beside a sound one that does not."""
    fake = Failing(RuntimeError(DALI), lambda run: run in (1, 3))
    assert damaged(fake, IMAGES[:1], SIZES[:1], size_of_pixels) == []
    assert fake.runs == 5  # the image, then a sound one and the image, twice


def test_damage_that_asks_for_much_memory_is_damage(maker):
    """A length that is wrong can be any number; pillow sees that the image is damaged."""
    cut, whole = IMAGES[0][: len(IMAGES[0]) // 2], IMAGES[1]
    fake = Failing(MemoryError("std::bad_alloc"), lambda run: fake.fed[0] is cut)
    assert damaged(fake, [cut, whole], SIZES[:2], size_of_pixels) == [0]


def jpeg(pixels: np.ndarray, kind: str, **options) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "BMP"])
def test_damage_is_found_in_every_codec(kind):
    pixels = pictures(1, 40, 60)[0]
    whole = jpeg(pixels, kind)
    broken = np.concatenate([whole[: len(whole) // 3], np.zeros(len(whole) // 2, np.uint8)])
    empty = np.zeros(0, np.uint8)
    sizes = np.array([[40, 60]] * 3)
    assert damaged(decode_graph, [whole, whole, empty], sizes, size_of_pixels) == [2]
    assert damaged(
        decode_graph, [whole, whole, whole], sizes + np.array([[0], [1], [0]]), size_of_pixels
    ) == [1]
    if kind not in ("JPEG", "BMP"):  # of these, the decoder shows what there is
        assert damaged(decode_graph, [whole, broken[: len(whole) // 3], whole], sizes, size_of_pixels) == [1]


LIMITED = """
import io, resource, sys
import numpy as np
from PIL import Image
from data_pipelines.common.shortage import shortage
from data_pipelines.dali_damage import Alone, damaged, output_or_none
from data_pipelines.dali_graph import decode_graph
side = 2000
file = io.BytesIO()
pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
Image.fromarray(pixels).save(file, "PNG", compress_level=0)
image, alone = np.frombuffer(file.getvalue(), np.uint8), Alone(decode_graph)
alone(image)
del file, pixels
size = int(open("/proc/self/statm").read().split()[0]) * 4096
for megabytes in (4, 8, 20, 30, 40, 60, 80, 2000):
    resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20, resource.RLIM_INFINITY))
    try:
        print("decoded" if output_or_none(alone, image, np.array([side, side])) else "BLAMED")
    except Exception as error:
        print("raised", shortage(error), type(error).__name__)
"""


@pytest.mark.slow
def test_no_image_is_blamed_where_memory_is_really_lacking():
    """The address space of a process is limited to less and less than a sound image takes."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    print(lines, done.stderr)
    assert len(lines) == 8
    assert lines[-1] == "decoded"
    assert "BLAMED" not in lines
    assert any(line.startswith("raised") for line in lines)


# ---- elsewhere ---------------------------------------------------------------------------------------


def test_a_thread_that_cannot_start_is_one_line(monkeypatch):
    def start(thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(
        UserError, match=r"making batches ahead fails: not enough threads .*lower data.threads"
    ):
        Prefetch(iter([]), 2)


def test_verify_blames_no_image_for_lacking_memory(tmp_path, monkeypatch):
    data = write_dataset(tmp_path, pictures(4), 4)

    def decode(encoded: bytes) -> np.ndarray:
        raise MemoryError

    assert not [line for line in verify(data.root) if "decoded" in line]
    monkeypatch.setattr("data_pipelines.shards.verify.decode", decode)
    with pytest.raises(UserError, match=r"checking .* fails: not enough memory"):
        verify(data.root)


def test_shards_leave_no_image_out_for_lacking_memory(monkeypatch):
    image = png(pictures(1)[0])
    assert decoding.picture(image).encoded == image
    decoding._loader.cache_clear()
    monkeypatch.setattr("data_pipelines.dali_graph.decode_and_header_graph", Failing(RuntimeError(CUDA)))
    with pytest.raises(RuntimeError, match="out of memory"):  # not: rewritten, or refused
        decoding.picture(image)
    decoding._loader.cache_clear()
