"""What evaluators of pixel diffusion read: standardised pixels, noise of an image, rows of ranks."""

import numpy as np
import pytest
import torch

from tests.helpers.tiny_diffusion import context_of, digit_images, pixel_diffusion, tiny_unet
from trainer.evaluation.pixel_diffusion import Images, chosen


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    train, test = digit_images()
    return context_of(pixel_diffusion(tiny_unet(), train), tmp_path_factory.mktemp("run"), train, test)


def test_pixels_are_standardised_and_come_back(context):
    rows = np.arange(len(context.train))
    x = context.standardised(context.train, rows)
    assert (x.mean().item(), x.std().item()) == pytest.approx((0, 1), abs=1e-5)
    assert torch.allclose(context.pixels(x), torch.from_numpy(context.train.pixels) / 255, atol=1e-6)
    white = Images("white", np.full((1, 3, 8, 8), 255, np.uint8), np.zeros(1, np.int64))
    assert torch.allclose(
        context.standardised(white, np.array([0])), (1 - context.objective.mean) / context.objective.std
    )


def test_noise_depends_on_split_and_row_but_not_on_the_batch(context):
    whole = context.noise(context.train, np.arange(200), "features")
    assert torch.equal(context.noise(context.train, np.array([150, 7]), "features"), whole[[150, 7]])
    assert abs(whole.mean().item()) < 0.02
    assert whole.std().item() == pytest.approx(1, abs=0.02)
    flat = whole.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(200)).abs().max() < 0.45  # 192 numbers: six standard errors
    others = [
        context.noise(context.test, np.arange(200), "features"),
        context.noise(context.train, np.arange(200), "inversion"),
    ]
    assert not any((other == whole).any() for other in others)


def test_rows_are_computed_in_batches_and_stand_in_their_order(context):
    rows, sizes = np.arange(0, 500, 2), []

    def compute(part):
        sizes.append(len(part))
        return {"row": torch.from_numpy(part), "twice": torch.from_numpy(2 * part)}

    values = context.on_main(rows, compute)
    assert sizes == [100, 100, 50]
    assert values["row"].tolist() == rows.tolist()
    assert values["twice"].tolist() == (2 * rows).tolist()


def test_a_choice_is_fixed_and_all_where_there_are_few():
    rows = np.arange(50, 150)
    few = chosen(rows, 20, 0, "a")
    assert len(few) == len(set(few.tolist())) == 20
    assert set(few.tolist()) < set(rows.tolist())
    assert few.tolist() == chosen(rows, 20, 0, "a").tolist() == sorted(few.tolist())
    assert few.tolist() != chosen(rows, 20, 0, "b").tolist()
    assert chosen(rows, 1000, 0, "a").tolist() == rows.tolist()


def test_it_is_supervised_where_both_splits_have_labels(context):
    assert context.supervised
    nameless = Images("test", context.test.pixels, np.full(len(context.test), -1))
    assert not context_of(context.objective, context.folder, context.train, nameless).supervised
    assert not context_of(context.objective, context.folder, nameless, context.test).supervised
    assert not context_of(
        context.objective, context.folder, context.train, context.test, classes=0
    ).supervised
