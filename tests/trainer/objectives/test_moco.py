"""MoCo-v2 against a plain replica of the published algorithm, shuffled batch-norm, what it must not leak."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_pipelines.plan import shuffled
from tests.helpers.tiny_moco import BATCH, GROUP, GROUPS, WIDTH, batch_of, encoder, moco, moco_options, views
from trainer.networks.batch_norm import GroupBatchNorm
from trainer.objectives.moco import Moco

STEPS = 8  # the queue of three batches goes round twice


class Published:
    """The algorithm as facebookresearch/moco writes it: a whole queue, full logits, cross-entropy at label 0.

    Only the shuffle is ours: key views are handed over as the loader does, and put back in order by hand.
    """

    def __init__(self, objective):
        self.query = nn.ModuleList([copy.deepcopy(objective.encoder), copy.deepcopy(objective.head)])
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.options = objective.options
        shard = objective.queue._shard_on(torch.device("cpu"))
        self.queue = shard.flatten(0, 1).clone()  # [K, D]
        self.place = 0

    @staticmethod
    def embed(network, view):
        encoder, head = network
        return F.normalize(head(encoder(view)["y"]), dim=1)

    def loss(self, view, other, order):
        """Of queries of one view and keys of the other, whose images go through the encoder in `order`."""
        q = self.embed(self.query, view)
        with torch.no_grad():
            k = torch.empty_like(q)
            k[order] = self.embed(self.key, other[order])
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone().T], 1)
        logits = logits / self.options.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long)), k

    def after_step(self, keys):
        for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
            key.data = key.data * self.options.momentum + query.data * (1 - self.options.momentum)
        for k in keys:
            self.queue[self.place] = k
            self.place = (self.place + 1) % len(self.queue)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("symmetric", [False, True])
def test_it_is_the_published_algorithm(symmetric, shuffle):
    objective = moco(symmetric=symmetric, queue={"keys": 6 * BATCH})
    other = Published(objective)
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.3)
    published = torch.optim.SGD(other.query.parameters(), lr=0.3)
    seen = []
    for step in range(STEPS):
        first, second = views(step)
        batch = batch_of([first, second], step, shuffle)
        order = torch.from_numpy(batch.order) if shuffle else torch.arange(BATCH)
        loss = objective(batch)["loss"]
        wanted, k_second = other.loss(first, second, order)
        keys = k_second
        if symmetric:
            more, k_first = other.loss(second, first, order)
            wanted, keys = wanted + more, torch.stack([k_first, k_second], 1).flatten(0, 1)
        assert abs(loss.item() - wanted.item()) < 1e-12
        for one, it in ((optimizer, loss), (published, wanted)):
            one.zero_grad()
            it.backward()
        trained = [*objective.encoder.parameters(), *objective.head.parameters()]
        for ours, theirs in zip(trained, other.query.parameters(), strict=True):
            if theirs.grad is not None:  # w has no part in it
                assert (ours.grad - theirs.grad).abs().max() < 1e-12
        optimizer.step()
        published.step()
        objective.after_step()
        other.after_step(keys)
        seen.append(loss.item())
    momentum = [*objective.key_encoder.parameters(), *objective.key_head.parameters()]
    for ours, theirs in zip(momentum, other.key.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 1e-12
    assert (objective.queue.shard.flatten(0, 1) - other.queue).abs().max() < 1e-12  # also the order of keys
    assert len(set(seen)) == STEPS


def test_the_order_of_keys_only_matters_to_batch_statistics():
    first, second = views(0)
    for norm, equal in (("group", True), ("batch", False)):
        objective = moco(norm=norm)
        plain, mixed = (objective(batch_of([first, second], 0, s))["loss"].item() for s in (False, True))
        assert (abs(plain - mixed) < 1e-12) == equal


def test_micro_batches_see_the_same_queue_and_enqueue_in_order():
    whole, parts = moco(norm="group"), moco(norm="group")
    for step in range(4):
        batch = batch_of(views(step), step, shuffle=False)
        loss = whole(batch)["loss"].item()
        losses = []
        for start in range(0, BATCH, GROUP):
            part = batch_of(views(step), step, shuffle=False)
            part.views[:] = [view[start : start + GROUP] for view in part.views]
            losses.append(parts(part)["loss"].item())
        assert abs(np.mean(losses) - loss) < 1e-12
        whole.after_step()
        parts.after_step()
        assert torch.allclose(whole.queue.shard, parts.queue.shard, atol=1e-14, rtol=0)


def test_keys_carry_no_gradient_and_are_no_parameters_to_train():
    objective = moco()
    objective(batch_of(views(0), 0))["loss"].backward()
    frozen = [name for name, p in objective.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(name.startswith("key_") for name in frozen)
    assert all(p.grad is None for p in objective.parameters() if not p.requires_grad)
    (group,) = objective.clip_groups()
    assert {id(p) for p in group} == {id(p) for p in objective.parameters() if p.requires_grad}


def test_the_momentum_encoder_keeps_statistics_of_its_own():
    objective = moco()
    first, second = views(0)
    objective(batch_of([first, second + 3.0], 0))
    objective.after_step()
    queries, keys = (
        next(layer for layer in network.modules() if isinstance(layer, GroupBatchNorm))
        for network in (objective.encoder, objective.key_encoder)
    )
    assert (queries.running_mean - keys.running_mean).abs().max() > 0.01


def test_an_empty_queue_costs_nothing_and_fills():
    objective = moco(queue={"start": "empty"})
    values = objective(batch_of(views(0), 0))
    assert values["loss"].item() == 0
    values["loss"].backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in objective.parameters())
    objective.after_step()
    values = objective(batch_of(views(1), 1))
    assert values["contrast/random_guess"] == math.log(BATCH + 1)
    assert values["loss"].item() > 0


@pytest.mark.parametrize("start", ["random", "empty"])
def test_nothing_is_estimated_over_keys_that_no_image_has_made(start):
    objective, estimated = moco(queue={"keys": 3 * BATCH, "start": start}), []
    for step in range(5):
        estimated.append("mi_estimate/queue" in objective(batch_of(views(step), step)))
        objective.after_step()
    assert estimated == [start == "empty" or step >= 3 for step in range(5)]


def test_evaluation_reads_a_bound_of_the_batch_alone():
    objective = moco().eval()
    first, second = views(0)
    batch = batch_of([first, first], 0, shuffle=False)
    values = objective(batch)
    assert 0 < values["mi/contrast"].item() <= values["mi/contrast/ceiling"] == math.log(BATCH)
    q, k = (
        F.normalize(head(net(first)["y"]), dim=1)
        for net, head in ((objective.encoder, objective.head), (objective.key_encoder, objective.key_head))
    )
    scores = (q @ k.T / objective.options.temperature).softmax(1).diagonal().log().mean()
    assert abs(values["mi/contrast"].item() - (math.log(BATCH) + scores.item())) < 1e-12
    with torch.autocast("cpu", torch.bfloat16):  # as in a recipe in bf16, whose encoder alone is to be
        assert objective._of_the_batch(q, k)["mi/contrast"].item() == values["mi/contrast"].item()
    assert objective.queue.shard is None  # nothing was made for it
    assert first.shape == second.shape


# ---- what group statistics give away ---------------------------------------------------------------


def guess(shuffle: bool, steps: int = 1500, group: int = 16, groups: int = 8) -> tuple[float, float]:
    """Loss of telling a batch-norm group-mate's key from keys of an independent batch, and log m.

    Images of heavy-tailed pixels have nothing in common with their group-mates, but what they are divided by.
    """
    batch = group * groups
    torch.manual_seed(0)
    layers = []
    for before in (16, 64, 64):
        layers += [nn.Linear(before, 64, bias=False), GroupBatchNorm(64, group), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(64, 2 * GROUPS * WIDTH))
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(1)
    mate = torch.arange(batch).view(-1, group).roll(1, 1).flatten()

    def view(images):
        return images + 0.1 * torch.randn(images.shape, generator=generator)

    def keys(images, order):
        ordered = torch.empty(batch, 2 * GROUPS * WIDTH)
        ordered[order] = F.normalize(network(view(images)[order]), dim=1)
        return ordered

    tail = []
    for step in range(steps):
        order = shuffled(0, step * batch, batch, group, groups) if shuffle else np.arange(batch)
        order = torch.from_numpy(order)
        images, others = torch.randn(2, batch, 16, generator=generator) ** 3
        q = F.normalize(network(view(images)), dim=1)
        with torch.no_grad():
            own, negatives = keys(images, order)[mate], keys(others, order)
        scores = torch.cat([(q * own).sum(1, keepdim=True), q @ negatives.T], 1) / 0.1
        loss = F.cross_entropy(scores, torch.zeros(batch, dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tail.append(loss.item())
    return float(np.mean(tail[-200:])), math.log(1 + batch)


@pytest.mark.slow
def test_a_group_mate_is_known_by_its_statistics_unless_keys_are_shuffled():
    loss, chance = guess(shuffle=False)
    assert loss < chance - 0.5
    loss, chance = guess(shuffle=True)
    assert abs(loss - chance) < 0.02


def test_evaluation_reads_the_projection_too():
    objective = moco()
    features = objective.features(views(0)[0])
    assert list(features)[-1] == "head"
    assert torch.equal(features["head"], objective.head(features["y"]))


# ---- a momentum that rises --------------------------------------------------------------------------

RISING = {"momentum": 0.9, "final_momentum": 0.99}


@pytest.mark.parametrize(
    ("images_seen", "momentum"),
    [
        (0, 0.99),
        (250, 0.999 - 0.009 * (1 + math.sqrt(0.5)) / 2),
        (500, 0.9945),
        (1000, 0.999),
        (1100, 0.999),  # whole batches may be more images than the run has
    ],
)
def test_the_momentum_follows_a_half_cosine(images_seen, momentum):
    rising = moco_options(momentum=0.99, final_momentum=0.999)
    assert rising.momentum_at(images_seen, 1000) == pytest.approx(momentum, abs=1e-15)
    to_one = moco_options(momentum=0.996, final_momentum=1.0)  # BYOL's own
    byol = 1 - (1 - 0.996) * (math.cos(math.pi * min(1, images_seen / 1000)) + 1) / 2
    assert to_one.momentum_at(images_seen, 1000) == pytest.approx(byol, abs=1e-15)
    assert moco_options(momentum=0.99).momentum_at(images_seen, 1000) == 0.99


def test_a_momentum_that_falls_is_refused():
    with pytest.raises(ValueError, match=r"final_momentum=0\.9 is below momentum=0\.99, from which it rises"):
        moco_options(momentum=0.99, final_momentum=0.9)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_key_encoder_moves_by_the_momentum_of_the_images_seen(symmetric):
    images = 6 * BATCH
    torch.manual_seed(0)
    options = moco_options(symmetric=symmetric, queue={"keys": 6 * BATCH}, **RISING)
    objective = Moco(encoder(), options, BATCH, torch.float64, 0, images).double()
    for step in (0, 2, 5):  # as a run that is resumed: nothing but the images seen counts
        values = objective(batch_of(views(step), step))
        wave = (1 + math.cos(math.pi * step / 6)) / 2
        m = 0.99 - 0.09 * wave
        assert values["momentum"] == pytest.approx(m, abs=1e-15)
        with torch.no_grad():
            for parameter in objective.encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        pairs = list(zip(objective.key_encoder.parameters(), objective.encoder.parameters(), strict=True))
        wanted = [m * key.detach() + (1 - m) * query.detach() for key, query in pairs]
        objective.after_step()
        for (key, _), expected in zip(pairs, wanted, strict=True):
            assert torch.allclose(key, expected, rtol=0, atol=1e-15)


def test_a_momentum_that_stays_is_not_reported():
    assert "momentum" not in moco()(batch_of(views(0), 0))
