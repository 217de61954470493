"""Saturation and hue as torchvision changes them, in HSV: in numpy, for a CPU."""

import numpy as np

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R 601)
BLOCK = 65536  # pixels at once: with fewer, the calls cost more than what stays in the cache saves


class SaturationAndHue:
    """Changes the saturation of images, then turns their hue in HSV.

    Source: torchvision's `adjust_saturation` and `adjust_hue`, without their rounding to whole values.

    No pixel is converted to HSV and back. Let top, mid and bottom be the largest, median and smallest of its
    red, green and blue. As the hue turns, each channel follows a triangular wave, cut off at top and bottom,
    of the slope top - bottom a sixth of the circle. It stands at 2 x - mid before the turn, and falls where
    the next channel exceeds the previous one. So for a turn of `step` sixths, of at most one either way,

        x' = min(max(2 x - mid - sign(next - previous) (top - bottom) step, bottom), top)

    whatever the sign of 0 is. A turn by a third of the circle permutes the channels.

    Every operation is one of single pixels, so an image's values do not depend on its neighbours in a batch.
    An object works in memory that it keeps: one call at a time.
    """

    def __init__(self) -> None:
        self.output = np.empty((0, 0, 3), np.float32)
        self.scratch = np.empty((12, 0, 0), np.float32)

    def __call__(
        self, images: list[np.ndarray], saturation: list[np.ndarray], degrees: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Returns float32 [H, W, 3] in 0..255 for each image; the next call writes into the same memory.

        Args:
            images: n of one size, uint8 [H, W, 3].
            saturation: n factors; 0 gives grey, 1 changes nothing.
            degrees: n angles, from -180 to 180.
        """
        if not images:
            return []
        pixels = [image.reshape(-1, 3) for image in images]
        self._reserve(len(pixels), len(pixels[0]))
        factors = np.array(saturation, np.float32)[:, None]
        thirds, steps = thirds_and_steps(np.array(degrees, np.float32)[:, None])
        changed: dict[int, np.ndarray] = {}
        first = 0
        for third in (0, 1, 2):
            rows = np.flatnonzero(thirds == third)
            for part in np.split(rows, range(self.scratch.shape[1], len(rows), self.scratch.shape[1])):
                block = self.output[first : first + len(part)]
                self._change([pixels[row] for row in part], factors[part], steps[part], third, block)
                changed |= zip(part.tolist(), block, strict=True)
                first += len(part)
        return [changed[row].reshape(image.shape) for row, image in enumerate(images)]

    def _reserve(self, images: int, pixels: int) -> None:
        if self.output.shape[1] != pixels or len(self.output) < images:
            self.output = np.empty((images, pixels, 3), np.float32)
            self.scratch = np.empty((12, max(1, BLOCK // pixels), min(pixels, BLOCK)), np.float32)
            self.scratch[-2:] = np.array([0, 255], np.float32)[:, None, None]

    def _change(
        self, pixels: list[np.ndarray], factors: np.ndarray, steps: np.ndarray, third: int, output: np.ndarray
    ) -> None:
        """Of k images [pixels, 3] that fit into a block, or one: their values, into [k, pixels, 3]."""
        width = self.scratch.shape[2]
        for start in range(0, output.shape[1], width):
            part = output[:, start : start + width]
            planes = self.scratch[:, : part.shape[0], : part.shape[1]]
            for number, image in enumerate(pixels):
                np.copyto(planes[:3, number], image[start : start + width].T)
            _saturate(planes, factors)
            _turn(planes, steps, [part[..., (channel + third) % 3] for channel in range(3)])


def thirds_and_steps(degrees: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 angles -> the thirds of the circle nearest to them, 0 to 2, and the rest in sixths: [-1, 1]."""
    thirds = np.floor(degrees / np.float32(120) + np.float32(0.5))
    return thirds.astype(np.int64) % 3, (degrees - np.float32(120) * thirds) / np.float32(60)


def _saturate(planes: np.ndarray, factors: np.ndarray) -> None:
    """A blend with grey, in place; planes [12, k, m]: red, green, blue, scratch, all 0, all 255."""
    rgb, parts, grey, (zeros, limits) = planes[:3], planes[3:6], planes[6], planes[10:]
    np.multiply(rgb, np.array(LUMA, np.float32)[:, None, None] * (1 - factors), out=parts)
    np.add(parts[0], parts[1], out=grey)
    np.add(grey, parts[2], out=grey)
    np.multiply(rgb, factors, out=rgb)
    np.add(rgb, grey, out=rgb)
    np.maximum(rgb, zeros, out=rgb)  # with an array: with a number it takes three times as long
    np.minimum(rgb, limits, out=rgb)


def _turn(planes: np.ndarray, steps: np.ndarray, outputs: list[np.ndarray]) -> None:
    """The formula above, on planes as `_saturate` leaves them; outputs: three of [k, m]."""
    (red, green, blue), signed, (top, mid, bottom, reach) = planes[:3], planes[3:6], planes[6:10]
    np.minimum(red, green, out=bottom)
    np.maximum(red, green, out=top)
    np.minimum(top, blue, out=mid)
    np.maximum(mid, bottom, out=mid)
    np.maximum(top, blue, out=top)
    np.minimum(bottom, blue, out=bottom)
    np.subtract(top, bottom, out=reach)
    np.multiply(reach, steps, out=reach)
    for number, (following, previous) in enumerate([(green, blue), (blue, red), (red, green)]):
        np.subtract(following, previous, out=signed[number])
    # The sign's bit goes from the differences to the reach: `copysign` takes twice as long.
    bits = signed.view(np.int32)
    np.bitwise_and(bits, np.int32(-(2**31)), out=bits)
    np.bitwise_xor(bits, reach.view(np.int32), out=bits)
    rgb = planes[:3]
    np.add(rgb, rgb, out=rgb)
    np.subtract(rgb, mid, out=rgb)
    np.subtract(rgb, signed, out=rgb)
    np.minimum(rgb, top, out=rgb)
    for values, output in zip(rgb, outputs, strict=True):
        np.maximum(values, bottom, out=output)
