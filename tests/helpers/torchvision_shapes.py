"""torchvision's ResNets, from its source: their blocks, and the names and shapes of their tensors."""

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # of layer1 to layer4


def torchvision_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Of parameters and buffers, without `fc`."""
    wide, blocks = depth >= 50, BLOCKS[depth]
    shapes = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    before = 64
    for number, count in enumerate(blocks):
        planes, stage = 64 * 2**number, f"layer{number + 1}"
        after = 4 * planes if wide else planes
        for block in range(count):
            at = f"{stage}.{block}"
            kernels = [(planes, 1), (planes, 3), (after, 1)] if wide else [(planes, 3), (planes, 3)]
            channels = before
            for index, (out, kernel) in enumerate(kernels, 1):
                shapes[f"{at}.conv{index}.weight"] = (out, channels, kernel, kernel)
                norm(f"{at}.bn{index}", out)
                channels = out
            if block == 0 and (number > 0 or before != after):
                shapes[f"{at}.downsample.0.weight"] = (after, before, 1, 1)
                norm(f"{at}.downsample.1", after)
            before = after
    return shapes
