"""What evaluators of pixel diffusion read: pixels, the noise of an image, what is computed of images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipelines.dali import in_order
from data_pipelines.reader import Reader
from tests.helpers.labelled_dataset import write_labelled
from tests.helpers.tiny_diffusion import context_of, pixel_diffusion, tiny_unet
from trainer.evaluation.pixel_diffusion import chosen


@pytest.fixture
def context(digits, tmp_path):
    with Reader(digits, "train") as train, Reader(digits, "test") as test:
        yield context_of(pixel_diffusion(tiny_unet()), tmp_path, train, test)


def test_noise_depends_on_split_and_image_but_not_on_the_batch(context):
    like = torch.empty(3, 8, 8)
    whole = context.noise(context.train, np.arange(200), "features", like)
    assert torch.equal(context.noise(context.train, np.array([150, 7]), "features", like), whole[[150, 7]])
    assert abs(whole.mean().item()) < 0.02
    assert whole.std().item() == pytest.approx(1, abs=0.02)
    off = torch.corrcoef(whole.flatten(1)) - torch.eye(200)
    assert off.abs().max() < 0.45  # of 192 numbers each: six standard errors
    others = [
        context.noise(context.test, np.arange(200), "features", like),
        context.noise(context.train, np.arange(200), "inversion", like),
        replace(context, seed=4).noise(context.train, np.arange(200), "features", like),
    ]
    assert not any((other == whole).any() for other in others)


def test_images_are_computed_in_batches_and_stand_in_their_order(context):
    ids, sizes = np.arange(0, 500, 2), []

    def compute(views, part):
        sizes.append(len(part))
        return {"id": torch.from_numpy(part), "sum": context.pixels(views).sum((1, 2, 3))}

    values = context.on_main(context.train, ids, compute)
    assert sizes == [100, 100, 50]
    assert values["id"].tolist() == ids.tolist()
    ((views, labels),) = in_order(context.train, context.images, ids, 250)
    assert torch.equal(values["label"], labels)
    assert torch.allclose(values["sum"], ((views + 1) / 2).sum((1, 2, 3)), atol=1e-4)


def test_bf16_computes_in_it(context):
    layer = torch.nn.Linear(8, 1)

    def compute(views, part):
        return {"out": layer(views)}

    assert context.on_main(context.train, np.arange(3), compute)["out"].dtype == torch.float32
    in_bf16 = replace(context, bf16=True)
    assert in_bf16.on_main(context.train, np.arange(3), compute)["out"].dtype == torch.bfloat16


def test_a_choice_is_fixed_and_all_where_there_are_few():
    ids = np.arange(50, 150)
    few = chosen(ids, 20, 0, "a")
    assert len(few) == len(set(few.tolist())) == 20
    assert set(few.tolist()) < set(ids.tolist())
    assert few.tolist() == chosen(ids, 20, 0, "a").tolist() == sorted(few.tolist())
    assert few.tolist() != chosen(ids, 20, 0, "b").tolist()
    assert chosen(ids, 1000, 0, "a").tolist() == ids.tolist()


def test_it_is_supervised_where_both_splits_have_labels(context, tmp_path):
    assert context.supervised
    assert not replace(context, classes=0).supervised
    bare = write_labelled(tmp_path / "data", train=[0, 0, 0, 0, 5])
    with Reader(bare, "train") as reader:
        assert not replace(context, train=reader).supervised
        assert not replace(context, test=reader).supervised


def test_a_probe_leaves_images_without_a_label_out(context):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=generator), torch.arange(60) % 10
    plain = context.probe("a", (x[:40], y[:40]), (x[40:], y[40:]))
    more = torch.cat([x, 100 * torch.randn(5, 4, generator=generator)])
    labels = torch.cat([y, torch.full((5,), -1)])
    assert context.probe("a", (more[20:], labels[20:]), (x[:20], y[:20])) == context.probe(
        "a", (x[20:], y[20:]), (more[[*range(20), 61]], labels[[*range(20), 61]])
    )
    assert set(plain) == {f"probe/linear/a{part}" for part in ("", "/converged", "/iterations", "/objective")}
