"""Random numbers on the device: one generator for each group of the global batch."""

from dataclasses import dataclass

import torch

from data_pipelines.draws import stream


@dataclass(frozen=True)
class Noise:
    """The generators of a micro-batch: functions of the run's seed and of places in the run, not of ranks."""

    seed: int
    images_seen: int
    first: int  # place in the global batch of this micro-batch's first image
    images: int  # of this micro-batch

    def groups(self, purpose: str, group: int, device: torch.device) -> list[torch.Generator]:
        """A generator for each group of `group` consecutive images that this micro-batch holds."""
        generators = []
        for index in range(self.first // group, (self.first + self.images) // group):
            number = int(stream(self.seed, purpose, self.images_seen, index).random_raw())
            generators.append(torch.Generator(device).manual_seed(number >> 1))
        return generators
