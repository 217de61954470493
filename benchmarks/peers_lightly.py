"""lightly's MoCo example on CIFAR-10, in lightly's environment: what `peers.py` measures ours beside.

It imports torch, torchvision and lightly alone, and follows lightly's examples/pytorch/moco.py: transforms of
PIL images, DataLoader with workers, memory bank, momentum update, SGD. The network, the head, the batch, the
augmentation's parameters and the threads are those of our recipe, which `peers.py` passes as JSON.

A line on stdin names what to do, `loader`, `model` or `end`, and for how many steps; the answer is a line of
JSON: seconds, of them those in which the steps waited for data, and how many batches or steps were made.
"""

import copy
import json
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch import Tensor, library, nn

register = library.register_fake


def known(name: str, *rest, **options):
    """A torchvision for CUDA has no operators beside a torch for CPU; none is needed here."""
    return (lambda f: f) if name.startswith("torchvision::") else register(name, *rest, **options)


library.register_fake = known
from lightly.loss import NTXentLoss
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform


class Block(nn.Module):
    """ResNet's basic block, as torchvision has it."""

    def __init__(self, before: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential()
        if stride != 1 or before != planes:
            shortcut = nn.Conv2d(before, planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.downsample(x))


def resnet18(width: int) -> nn.Sequential:
    """With the stem for CIFAR, and any width: torchvision's has none but 64."""
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    before = width
    for stage in range(4):
        planes = width * 2**stage
        layers += [Block(before, planes, 2 if stage else 1), Block(planes, planes, 1)]
        before = planes
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Pictures(torch.utils.data.Dataset):
    """uint8 [n, 32, 32, 3] in memory, as PIL images: what torchvision's CIFAR10 does."""

    def __init__(self, path: str, transform):
        self.pixels, self.transform = np.load(path, allow_pickle=False), transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.pixels[index]))


class Example:
    """The example's model, loader and step."""

    def __init__(self, setting: dict):
        self.precision = setting["precision"]
        self.backbone = resnet18(setting["width"])
        self.head = nn.Linear(8 * setting["width"], setting["head"])
        self.momentum_backbone, self.momentum_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.momentum_backbone)
        deactivate_requires_grad(self.momentum_head)
        self.criterion = NTXentLoss(
            setting["temperature"], memory_bank_size=(setting["keys"], setting["head"])
        )
        learning = [*self.backbone.parameters(), *self.head.parameters()]
        options = {"momentum": setting["sgd_momentum"], "weight_decay": setting["weight_decay"]}
        self.optimizer = torch.optim.SGD(learning, lr=setting["lr"], **options)
        self.momentum = setting["momentum"]
        normalize = {"mean": setting["mean"], "std": setting["std"]}
        transform = MoCoV2Transform(32, min_scale=setting["scale"], gaussian_blur=0.0, normalize=normalize)
        self.loader = torch.utils.data.DataLoader(
            Pictures(setting["pixels"], transform),
            batch_size=setting["batch"],
            shuffle=True,
            drop_last=True,
            num_workers=setting["workers"],
            persistent_workers=True,
        )
        self.batches = self.endless()
        self.same = next(self.batches)
        self.waited = 0.0

    def endless(self):
        while True:
            yield from self.loader

    def load(self) -> list[Tensor]:
        began = time.perf_counter()
        views = next(self.batches)
        self.waited += time.perf_counter() - began
        return views

    def step(self, views: list[Tensor]) -> None:
        first, second = views
        update_momentum(self.backbone, self.momentum_backbone, m=self.momentum)
        update_momentum(self.head, self.momentum_head, m=self.momentum)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            query = self.head(self.backbone(first))
            with torch.no_grad():
                key = self.momentum_head(self.momentum_backbone(second))
            loss = self.criterion(query.float(), key.float())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def turn(self, what: str, steps: int) -> list[float]:
        """Seconds of so many steps, without the batches made ahead, and of waiting; batches or steps made."""
        ahead = 0 if what == "model" else 2 * self.loader.num_workers
        for _ in range(ahead):
            self.load()
        self.waited, began = 0.0, time.perf_counter()
        for _ in range(steps):
            if what == "loader":
                self.load()
            else:
                self.step(self.same if what == "model" else self.load())
        taken = time.perf_counter() - began
        time.sleep(ahead * taken / steps)  # until they are there again
        return [taken, self.waited, steps + ahead]


def main() -> None:
    setting = json.loads(sys.argv[1])
    torch.set_num_threads(setting["threads"])
    example = Example(setting)
    for line in sys.stdin:
        what, steps = line.split()
        print(json.dumps(example.turn(what, int(steps))), flush=True)


if __name__ == "__main__":
    main()
