"""The U-Net of DDPM (arXiv 2006.11239) for maps; parameters have the names of ermongroup/ddim.

Its levels halve the side. A level has residual blocks that hear the time, and attention where its side is
listed; the way up reads what every block on the way down wrote.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.denoising import TimeEmbedding
from trainer.networks.dropout import GroupDropout
from trainer.networks.group_norm import group_norm


class ResidualBlock(nn.Module):
    """Norm, Swish, convolution, twice, beside a shortcut; the embedded time is added in the middle."""

    def __init__(self, before: int, after: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.temb_proj = nn.Linear(embedding, after)
        self.norm2 = group_norm(after)
        self.dropout = GroupDropout(dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map [n, before, H, W] and embedded times [n, embedding] -> [n, after, H, W]."""
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(time))[:, :, None, None]
        return self.nin_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """Every place of a map [n, C, H, W] reads all others, with one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(read)


class Downsample(nn.Module):
    """[n, C, H, W] -> [n, C, H / 2, W / 2] by a convolution of stride 2, padded right and below."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """[n, C, H, W] -> [n, C, 2 H, 2 W]: each value four times, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks of one side, attention behind each where it is wanted."""

    def __init__(self, blocks: list[ResidualBlock], channels: int, attends: bool):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(Attention(channels) for _ in blocks if attends)

    def ends(self) -> list[nn.Module]:
        """The module that ends each block: its attention where there is one."""
        return list(self.attn if len(self.attn) else self.block)

    def step(self, number: int, x: Tensor, time: Tensor) -> Tensor:
        """Block `number`, and its attention."""
        x = self.block[number](x, time)
        return self.attn[number](x) if len(self.attn) else x


class DownLevel(Level):
    """A level of the way down."""

    def __init__(self, blocks: list[ResidualBlock], channels: int, attends: bool, last: bool):
        super().__init__(blocks, channels, attends)
        self.downsample = None if last else Downsample(channels)

    def forward(self, x: Tensor, time: Tensor) -> list[Tensor]:
        """Map and embedded times -> all that the way up reads of this level; the last is the next's map."""
        written = []
        for number in range(len(self.block)):
            written.append(x := self.step(number, x, time))
        if self.downsample is not None:
            written.append(self.downsample(x))
        return written


class UpLevel(Level):
    """A level of the way up."""

    def __init__(self, blocks: list[ResidualBlock], channels: int, attends: bool, last: bool):
        super().__init__(blocks, channels, attends)
        self.upsample = None if last else Upsample(channels)

    def forward(self, x: Tensor, time: Tensor, written: list[Tensor]) -> Tensor:
        """Map, embedded times and a map of the way down for each block -> the next level's map.

        A block reads the last map that none before it has read.
        """
        for number, earlier in enumerate(reversed(written)):
            x = self.step(number, torch.cat([x, earlier], 1), time)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Block, attention, block at the smallest side."""

    def __init__(self, channels: int, embedding: int, dropout: float):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, embedding, dropout)
        self.attn_1 = Attention(channels)
        self.block_2 = ResidualBlock(channels, channels, embedding, dropout)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, time)), time)


class UNet(nn.Module):
    """Predicts a map like its input, of noisy samples at times.

    Args:
        channels: of a sample.
        side: of a sample, in places; each level but the last halves it.
        width: channels of the first level.
        multipliers: of `width`, a level each.
        blocks: residual blocks of a level on the way down; one more on the way up.
        attention: the sides at which blocks are followed by attention.
        dropout: within blocks.
        condition: numbers of a condition that is added to the embedded time; 0: none.

    Raises:
        ValueError: the side cannot be halved so often, or a level is too narrow.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        width: int = 128,
        multipliers: Sequence[int | float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        condition: int = 0,
    ):
        super().__init__()
        halvings = len(multipliers) - 1
        if side % 2**halvings:
            raise ValueError(
                f"multipliers: {halvings + 1} levels halve a side {halvings} times; {side} cannot be"
            )
        widths = [round(width * multiplier) for multiplier in multipliers]
        embedding = 4 * width
        self.temb = TimeEmbedding(width, embedding, condition)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.reads = blocks + 1  # maps of the way down that a level of the way up reads
        written = [before := widths[0]]  # channels of what the way up reads
        for number, after in enumerate(widths):
            inputs = [before, *[after] * (blocks - 1)]
            parts = [ResidualBlock(into, after, embedding, dropout) for into in inputs]
            last = number == halvings
            self.down.append(DownLevel(parts, after, side // 2**number in attention, last))
            written += [after] * (blocks + (not last))
            before = after
        self.mid = Middle(before, embedding, dropout)
        self.reads = blocks + 1  # of what was written, each level of the way up
        for number, after in reversed(list(enumerate(widths))):
            parts = []
            for _ in range(blocks + 1):
                parts.append(ResidualBlock(before + written.pop(), after, embedding, dropout))
                before = after
            self.up.insert(0, UpLevel(parts, after, side // 2**number in attention, last=not number))
        self.norm_out = group_norm(before)
        self.conv_out = nn.Conv2d(before, channels, 3, padding=1)

    def forward(
        self, noisy: Tensor, time: Tensor, condition: Tensor | None = None, conditioned: Tensor | None = None
    ) -> Tensor:
        """Samples [n, C, side, side] -> a prediction of the same shape.

        Args:
            time: embedded times [n] of a process.
            condition: [n, `condition`]; None: all are without one.
            conditioned: bool [n], which samples read theirs; None: all.
        """
        embedded = self.temb(time, condition, conditioned)
        written = [self.conv_in(noisy)]
        for level in self.down:
            written += level(written[-1], embedded)
        x = self.mid(written[-1], embedded)
        for level in reversed(self.up):  # ZeRO-3 hands a module copies of lists: what it took would stay
            unread = len(written) - self.reads
            x, written = level(x, embedded, written[unread:]), written[:unread]
        return self.conv_out(F.silu(self.norm_out(x)))

    def places(self) -> dict[str, nn.Module]:
        """The modules that end each block, by name, from the input to the output.

        `down.LEVEL.BLOCK`, `mid`, `up.LEVEL.BLOCK`: level 0 has the side of a sample, and the way up begins
        at the last level.
        """
        down, up = _ends("down", self.down), _ends("up", self.up)
        parts: list[dict[str, nn.Module]] = [*down, {"mid": self.mid}, *reversed(up)]
        return {name: module for part in parts for name, module in part.items()}

    def inner(
        self,
        noisy: Tensor,
        time: Tensor,
        names: Iterable[str],
        read: Callable[[Tensor], Tensor] = torch.Tensor.detach,
    ) -> dict[str, Tensor]:
        """What `read` makes of the activations [n, C, H, W] behind blocks, by name; without a condition.

        Args:
            names: of `places`.
            read: called while `forward` runs, so that no more than its results is kept.

        Raises:
            KeyError: there is no such place.
        """
        places = self.places()
        activations: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
            activations[name] = read(output)

        with ExitStack() as hooks:
            for name in names:
                hooks.enter_context(places[name].register_forward_hook(partial(keep, name)))
            self(noisy, time)
        return activations


def _ends(way: str, levels: nn.ModuleList) -> list[dict[str, nn.Module]]:
    """The modules that end the blocks of each level, by name."""
    return [
        {f"{way}.{number}.{block}": module for block, module in enumerate(level.ends())}
        for number, level in enumerate(levels)
        if isinstance(level, Level)
    ]
