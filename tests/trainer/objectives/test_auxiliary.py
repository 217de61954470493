"""Tasks beside the bounds: against loops, and that their randomness belongs to groups."""

import math

import pytest
import torch

from trainer.networks.batch_norm import update_running_stats
from trainer.objectives.auxiliary import Classifier, Coordinates, occluded
from trainer.recipe.objectives import Supervised


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def test_coordinates_equal_a_loop_over_places():
    torch.manual_seed(0)
    task = Coordinates(3, 4, 2).double()
    local, y = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    total = 0.0
    for i in range(5):
        for row in range(4):
            for column in range(4):
                x = torch.cat([local[i, :, row, column], y[i]])
                first = torch.relu(task.body[0].weight[:, :, 0, 0] @ x + task.body[0].bias)
                body = task.body[2].weight[:, :, 0, 0] @ first + task.body[2].bias
                logits = task.out.weight[:, :, 0, 0] @ torch.relu(x + body) + task.out.bias
                total -= logits[:4].log_softmax(0)[row].item() + logits[4:].log_softmax(0)[column].item()
    assert task(local, y).item() == pytest.approx(total / (5 * 16), rel=1e-12)


def test_coordinates_that_know_nothing_are_a_random_guess():
    task = Coordinates(3, 4, 2)
    torch.nn.init.zeros_(task.out.weight)
    torch.nn.init.zeros_(task.out.bias)
    assert task(torch.randn(2, 3, 4, 4), torch.randn(2, 2)).item() == pytest.approx(2 * math.log(4))


def test_a_square_is_hidden_in_every_image_at_places_of_its_group():
    images = torch.ones(6, 3, 8, 8)
    hidden = occluded(images, 0.5, generators(3))
    assert (hidden == occluded(images, 0.5, generators(3))).all()
    again = torch.cat([occluded(images[at : at + 2], 0.5, generators(1, at // 2)) for at in (0, 2, 4)])
    assert torch.equal(hidden, again)  # whatever the micro-batch
    places = set()
    for image in hidden:
        rows, columns = torch.nonzero(image[0] == 0, as_tuple=True)
        assert len(rows) == 16
        assert rows.max() - rows.min() == columns.max() - columns.min() == 3
        assert torch.equal(image[0], image[1])
        places.add((rows.min().item(), columns.min().item()))
    assert len(places) > 1
    corners = [occluded(images, 0.5, generators(3, seed))[:, 0, -1, -1] for seed in range(0, 120, 3)]
    assert any((corner == 0).any() for corner in corners)  # the last place is reached


def classifier(**options) -> Classifier:
    torch.manual_seed(0)
    return Classifier(6, Supervised(classes=3, units=8, **options), "batch", 4).double()


def test_only_labelled_images_count_and_parts_of_a_batch_add_up():
    net = classifier()
    x = torch.randn(8, 6, dtype=torch.float64)
    label = torch.tensor([0, -1, 2, -1, -1, -1, -1, 1])
    whole = net(x, label, generators(2))
    parts = [net(x[:4], label[:4], generators(1)), net(x[4:], label[4:], generators(1, 1))]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 2, rel=1e-12)
    none = net(x, torch.full((8,), -1), generators(2))
    assert none.item() == 0
    none.backward()  # a batch without a label is a plain zero
    update_running_stats(net)
    net.eval()
    logits = net.last(torch.relu(net.norm(net.first(x)))).log_softmax(1)
    wanted = -sum(logits[i, label[i]] for i in (0, 2, 7)) / 8
    assert net(x, label, generators(2)).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_dropout_hides_the_share_it_is_told():
    net = classifier(dropout=0.5)
    x, label = torch.randn(8, 6, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    different = {round(net(x, label, generators(2, seed)).item(), 12) for seed in range(5)}
    assert len(different) == 5
    assert net(x, label, generators(2)).item() == net(x, label, generators(2)).item()
    plain = classifier(dropout=0.0)
    assert plain(x, label, generators(2)).item() == plain(x, label, generators(2, 7)).item()
