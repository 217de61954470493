"""Latents of a frozen run: encoded once, whole or not there, and their statistics against numpy."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.common.errors import UserError
from data_pipelines.rows import Joined, Stacked
from trainer.generation import latents
from trainer.generation.gaussians import channel_gaussian, full_gaussian, spreads
from trainer.generation.latents import digest_of, map_moments, open_latents, position_moments, vector_moments
from trainer.generation.scaling import Scaling, principal_components

KEY = {"checkpoint": "c", "data": "d", "split": "train", "size": 8}
SHAPES = {"y": (3,), "w": (2, 2, 2)}
IMAGES = 5


class Encoder:
    """Writes known rows, and counts how often."""

    def __init__(self, fail: OSError | None = None):
        self.calls, self.fail = 0, fail

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        folder.mkdir(parents=True)
        for number, width in enumerate((3, 8, 3, 8)):
            rows = np.arange(IMAGES * width, dtype=np.float32) + 1000 * number
            (folder / str(number)).write_bytes(rows.tobytes())
            if self.fail:
                raise self.fail


def opened(run: Path, write, key=KEY, mirrored: bool = True):
    return open_latents(run, key, SHAPES, IMAGES, mirrored, write)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "latents").iterdir() if path.suffix != ".lock")


def test_rows_are_those_of_the_images_then_of_their_mirror_images(tmp_path):
    tables = opened(tmp_path, Encoder()).tables
    assert {name: len(table) for name, table in tables.items()} == {"y": 2 * IMAGES, "w": 2 * IMAGES}
    assert tables["y"][np.array([1, 6])].tolist() == [[3, 4, 5], [2003, 2004, 2005]]
    assert tables["w"][np.array([5])].tolist() == [
        [[[3000, 3001], [3002, 3003]], [[3004, 3005], [3006, 3007]]]
    ]


def test_without_mirror_images_the_same_files_have_half_the_rows(tmp_path):
    encoder = Encoder()
    both, images = (opened(tmp_path, encoder, mirrored=mirrored).tables for mirrored in (True, False))
    assert encoder.calls == 1
    for name in ("y", "w"):
        assert len(images[name]) == IMAGES
        assert np.array_equal(images[name][np.arange(IMAGES)], both[name][np.arange(IMAGES)])


def test_they_are_encoded_once(tmp_path):
    encoder = Encoder()
    first, again = opened(tmp_path, encoder), opened(tmp_path, encoder)
    assert encoder.calls == 1
    assert first.digest == again.digest == digest_of(KEY)
    assert names(tmp_path) == [digest_of(KEY)[:16]]


@pytest.mark.parametrize("change", [{"checkpoint": "e"}, {"data": "e"}, {"split": "test"}, {"size": 16}])
def test_others_have_another_digest_and_lie_beside(tmp_path, change):
    encoder = Encoder()
    digests = {opened(tmp_path, encoder, key).digest for key in (KEY, KEY | change)}
    assert encoder.calls == len(digests) == len(names(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "record", "no record"])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    encoder = Encoder()
    expected = {name: table[np.arange(10)] for name, table in opened(tmp_path, encoder).tables.items()}
    folder = tmp_path / "latents" / digest_of(KEY)[:16]
    path = folder / "1"
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "cut":
        path.write_bytes(content[:-4])
    elif damage == "gone":
        path.unlink()
    elif damage == "record":
        (folder / "latents.json").write_text("{")
    else:
        (folder / "latents.json").unlink()
    anew = opened(tmp_path, encoder).tables
    assert encoder.calls == 2
    assert all(np.array_equal(anew[name][np.arange(10)], rows) for name, rows in expected.items())
    assert names(tmp_path) == [folder.name]


def test_what_a_killed_run_has_left_is_removed(tmp_path):
    left = tmp_path / "latents" / f"{digest_of(KEY)[:16]}.writing"
    left.mkdir(parents=True)
    (left / "0").write_bytes(b"half")
    opened(tmp_path, Encoder())
    assert not left.exists()


def test_of_two_runs_that_begin_at_once_one_encodes_and_the_other_waits(tmp_path):
    """The other is a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        slow = Encoder()

        def write(folder: Path) -> None:
            slow(folder)
            os.write(writer, b"x")
            time.sleep(0.5)

        opened(tmp_path, write)
        os._exit(0)
    os.read(reader, 1)  # it writes
    encoder = Encoder()
    tables = opened(tmp_path, encoder).tables
    assert os.waitpid(child, 0)[1] == 0
    assert encoder.calls == 0
    assert tables["y"][np.array([0])].tolist() == [[0, 1, 2]]


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="No space left"):
        opened(tmp_path, Encoder(fail=OSError(28, "No space left on device", str(tmp_path / "0"))))
    assert names(tmp_path) == []
    monkeypatch.setattr(latents.shutil, "disk_usage", lambda path: Free())
    with pytest.raises(UserError, match=r"take 4.4e-07 GB, and .*latents has 1e-09 GB left; make room there"):
        opened(tmp_path, Encoder())
    assert names(tmp_path) == []


class Free:
    free = 1


def test_a_file_where_the_folder_belongs_is_one_line(tmp_path):
    (tmp_path / "latents").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*latents.*: File exists; .*`from=`"):
        opened(tmp_path, Encoder())


# ---- statistics ------------------------------------------------------------------------------------


@pytest.fixture
def maps(monkeypatch) -> np.ndarray:
    """More rows than are in memory at a time, far from zero."""
    monkeypatch.setattr(latents, "CHUNK", 16)
    rng = np.random.default_rng(0)
    return (100 + rng.standard_normal((50, 3, 2, 4)) * rng.uniform(0.1, 2, (3, 2, 4))).astype(np.float32)


@pytest.mark.parametrize(("by", "axes"), [("channel", (0, 2, 3)), ("position", 0)])
def test_moments_of_maps_are_numpys_in_float64(maps, by, axes):
    mean, variance = map_moments(maps, by)
    wide = maps.astype(np.float64)
    assert mean.shape == variance.shape == ((3, 1, 1) if by == "channel" else (3, 2, 4))
    assert mean.flatten().numpy() == pytest.approx(wide.mean(axes).ravel(), rel=1e-13)
    assert variance.flatten().numpy() == pytest.approx(wide.var(axes).ravel(), rel=1e-10)


def test_moments_of_vectors_are_numpys_in_float64(maps):
    vectors = maps.reshape(50, -1)[:, :7]
    mean, covariance = vector_moments(vectors)
    wide = vectors.astype(np.float64)
    assert mean.numpy() == pytest.approx(wide.mean(0), rel=1e-13)
    expected = np.cov(wide.T, bias=True)
    assert np.abs(covariance.numpy() - expected).max() < 1e-10
    assert position_moments(vectors)[1].numpy() == pytest.approx(expected.diagonal(), rel=1e-10)


def test_stacked_and_joined_tables_are_numpys(maps):
    stacked, joined = Stacked([maps[:20], maps[20:]]), Joined([maps, 2 * maps])
    rows = np.array([49, 0, 19, 20, 20, 3])
    assert np.array_equal(stacked[rows], maps[rows])
    assert np.array_equal(joined[rows], np.concatenate([maps, 2 * maps], 1)[rows])
    assert (len(stacked), len(joined)) == (50, 50)
    for by in ("channel", "position"):
        assert all(
            torch.equal(*pair) for pair in zip(map_moments(stacked, by), map_moments(maps, by), strict=True)
        )


# ---- principal components --------------------------------------------------------------------------


def of_rank(rank: int, numbers: int = 6) -> np.ndarray:
    rng = np.random.default_rng(1)
    return 5 + rng.standard_normal((200, rank)) @ rng.standard_normal((rank, numbers))


def test_components_have_no_correlation_and_unit_variance_and_lead_back():
    vectors = torch.from_numpy(of_rank(6))
    mean, covariance = vector_moments(vectors.numpy())
    whole = principal_components(mean, covariance, 6)
    assert torch.allclose(whole.inverse(whole(vectors)), vectors, atol=1e-9)
    some = principal_components(mean, covariance, 2)
    x = some(vectors)
    assert torch.allclose(x.T @ x / 200, torch.eye(2).double(), atol=1e-9)
    assert torch.allclose(some(some.inverse(x)), x, atol=1e-9)
    lost = (some.inverse(x) - vectors).square().sum(1).mean()
    values = np.linalg.eigvalsh(covariance.numpy())
    assert lost.item() == pytest.approx(values[:4].sum(), rel=1e-9)
    assert (some.basis.gather(0, some.basis.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("of", ["numbers", "components"])
def test_scalings_are_not_rounded_by_autocast(of):
    """In bf16 the last component, far smaller than the mean, would be noise."""
    y = (10 + of_rank(6, 6) * 0.1 ** np.arange(6)).astype(np.float32)
    mean, covariance = vector_moments(y)
    scaling = principal_components(mean, covariance, 6).float()
    if of == "numbers":
        scaling = Scaling(mean.float(), covariance.diagonal().sqrt().float())
    samples = torch.from_numpy(y)
    x = scaling(samples)
    back = scaling.inverse(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scaling(samples), x)
        assert torch.equal(scaling.inverse(x), back)
        assert (samples @ samples.T).dtype == torch.bfloat16  # else this test says nothing


def test_more_components_than_directions_are_refused():
    mean, covariance = vector_moments(of_rank(3))
    assert principal_components(mean, covariance, 3).basis.shape == (6, 3)
    with pytest.raises(ValueError, match="components=4: y varies in 3 directions only; give at most 3"):
        principal_components(mean, covariance, 4)


# ---- Gaussians -------------------------------------------------------------------------------------


def test_the_full_gaussian_has_mean_and_covariance_of_all_numbers_together(maps):
    y = of_rank(2, 3)[:50].astype(np.float32)  # of less rank than numbers
    gaussian = full_gaussian({"y": y, "w": maps})
    wide = np.concatenate([y, maps.reshape(50, -1)], 1).astype(np.float64)
    assert gaussian.mean.numpy() == pytest.approx(wide.mean(0), rel=1e-12)
    assert np.abs((gaussian.root @ gaussian.root.T).numpy() - np.cov(wide.T, bias=True)).max() < 1e-9
    noise = torch.randn(4, 27, dtype=torch.float64)
    drawn = gaussian.of_noise(noise)
    for row, eps in zip(drawn, noise, strict=True):
        assert torch.allclose(row, gaussian.mean + gaussian.root @ eps, atol=1e-10)


def test_the_gaussian_of_channels_has_independent_numbers(maps):
    y = of_rank(3, 3)[:50].astype(np.float32)
    gaussian = channel_gaussian({"y": y, "w": maps})
    means = [*y.astype(float).mean(0), *maps.astype(float).mean((0, 2, 3)).repeat(8)]
    stds = [*y.astype(float).std(0), *maps.astype(float).std((0, 2, 3)).repeat(8)]
    assert gaussian.mean.numpy() == pytest.approx(np.array(means), rel=1e-10)
    assert gaussian.root.numpy() == pytest.approx(np.array(stds), rel=1e-8)
    noise = torch.randn(2, 27)
    assert torch.allclose(gaussian.of_noise(noise), gaussian.mean.float() + noise * gaussian.root.float())
    assert spreads(maps)[1].shape == (24,)


def test_a_record_says_what_the_latents_are_of(tmp_path):
    opened(tmp_path, Encoder())
    record = json.loads((tmp_path / "latents" / digest_of(KEY)[:16] / "latents.json").read_text())
    assert record["of"] == KEY
