"""MoCo-v2 (He et al., arXiv 1911.05722; Chen et al., arXiv 2003.04297), the queue sharded over ranks."""

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipelines.loader import Batch
from data_pipelines.pinned import on_device
from trainer.distributed import collectives
from trainer.distributed.ema import ema_update_
from trainer.networks.encoder import Encoder, Features
from trainer.networks.heads import projection
from trainer.objectives.bounds import softplus
from trainer.objectives.momentum_queue import MomentumQueue
from trainer.objectives.objective import ContrastiveObjective, Values
from trainer.recipe.objectives import MocoObjective


class Moco(ContrastiveObjective):
    """InfoNCE between two views of an image, over a queue of older keys of a momentum encoder.

    The loss is the mean over images of -log(e^(q·k/t) / (e^(q·k/t) + sum over the queue of e^(q·n/t))), with
    q and k at unit length and t the temperature; symmetric, the sum of that in both directions.

    Args:
        encoder: its `y` is projected.
        options: the recipe's objective.
        batch: global batch in images.
        dtype: of the parameters; scores are computed in it, whatever autocast says.
        seed: of the queue's first keys.
        images: of the whole run, over which a momentum with an end of its own rises.

    Raises:
        ValueError: the queue does not hold whole steps.
    """

    views = 2

    def __init__(
        self,
        encoder: Encoder,
        options: MocoObjective,
        batch: int,
        dtype: torch.dtype,
        seed: int,
        images: int = 1,
    ):
        super().__init__()
        self.options, self.batch, self.dtype, self.images = options, batch, dtype, images
        self.directions = options.directions
        self.encoder = encoder
        self.head = projection(encoder.widths["y"], options.head.units, options.head.width)
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        storage = "bf16" if options.queue.bf16 else str(dtype).removeprefix("torch.")
        keys = batch * self.directions
        self.queue = MomentumQueue(
            options.queue.keys, options.head.width, keys, options.queue.start, storage, seed
        )
        self.pending: list[Tensor] = []  # keys of the micro-batches since the last step
        self.step = 0

    def forward(self, batch: Batch, features: Features | None = None) -> Values:
        """Takes a `Batch` of two views [n, 3, H, W]. The second view is the key view; it may be shuffled.

        Args:
            features: the encoder's of the first view, where the caller has them.

        Returns:
            `loss`, to be minimised; `contrast`, the same, with `contrast/random_guess`. While training
            `mi_estimate/queue`, once the queue's random first keys are gone: no bound, for keys are old.
            In evaluation, where the other images of the batch are the negatives, `mi/contrast`, a lower bound
            in nats, with its `ceiling`. `momentum` where that changes.
        """
        first_view, key_view = batch.views[:2]
        first = int(batch.positions[0][0] - batch.images_seen)  # this rank's first place in the global batch
        queries = [self._query(self.encoder(first_view) if features is None else features)]
        keys = [collectives.unshuffle(self._key(key_view), batch.order, first)]
        if self.options.symmetric:  # whole blocks are this rank's: nothing travels
            second_view = collectives.unshuffle(key_view, batch.order, first)
            queries.append(self._query(self.encoder(second_view)))
            if batch.order is not None:
                places = batch.order[first : first + len(first_view)] - first
                first_view = first_view[on_device(places, first_view.device)]
            keys.append(collectives.unshuffle(self._key(first_view), batch.order, first))
        if not self.training:
            return self._of_the_batch(queries[0], keys[0])
        self.step = batch.images_seen // self.batch
        self.pending.append(torch.stack(keys[::-1], dim=1).flatten(0, 1))  # in the order (sample, view)
        values = self._over_the_queue(torch.cat(queries), torch.cat(keys))
        return values if self.options.final_momentum is None else values | {"momentum": self._momentum()}

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from super().networks()
        yield "key encoder", self.key_encoder

    def features(self, images: Tensor) -> Features:
        """The encoder's, and `head`, the projection [n, width] that the contrast compares."""
        features = super().features(images)
        return features | {"head": self.head(features["y"])}

    def _query(self, features: Features) -> Tensor:
        return F.normalize(self.head(features["y"]).to(self.dtype), dim=1)

    @torch.no_grad()
    def _key(self, view: Tensor) -> Tensor:
        return F.normalize(self.key_head(self.key_encoder(view)["y"]).to(self.dtype), dim=1)

    def _momentum(self) -> float:
        return self.options.momentum_at(self.step * self.batch, self.images)

    def _over_the_queue(self, queries: Tensor, keys: Tensor) -> Values:
        temperature, directions = self.options.temperature, self.directions
        rest = self.queue.log_sum_exp(queries, temperature, self.step)
        entropy = softplus(rest - (queries * keys).sum(1) / temperature).mean()
        m = self.queue.keys_at(self.step) + 1
        values: Values = {
            "loss": directions * entropy,
            "contrast": directions * entropy.detach(),
            "contrast/random_guess": directions * math.log(m),
        }
        if self.queue.random_keys_left(self.step):  # a critic separates those from anything: no estimate
            return values
        return values | {"mi_estimate/queue": math.log(m) - entropy.detach()}

    def _of_the_batch(self, queries: Tensor, keys: Tensor) -> Values:
        with torch.autocast(queries.device.type, enabled=False):
            scores = queries @ keys.T / self.options.temperature
        entropy = F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))
        m = len(scores)
        return {
            "loss": entropy,
            "mi/contrast": math.log(m) - entropy.detach(),
            "mi/contrast/ceiling": math.log(m),
        }

    def after_step(self) -> None:
        """Moves the momentum encoder and the queue too."""
        super().after_step()
        keys = [*self.key_encoder.parameters(), *self.key_head.parameters()]
        queries = [*self.encoder.parameters(), *self.head.parameters()]
        ema_update_(keys, queries, self._momentum())
        self.queue.enqueue(torch.cat(self.pending), self.step)
        self.pending = []
