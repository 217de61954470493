"""What a run prints: a progress bar on a terminal, otherwise a line at intervals."""

import sys
import time

from tqdm import tqdm

LINE_INTERVAL = 10.0  # seconds between two lines where there is no terminal


def duration(seconds: float) -> str:
    """Seconds as `40 s`, `12 min` or `5.2 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Progress:
    """The progress of a run from `start` to `total` images; prints on the rank with `shown` only."""

    def __init__(self, start: int, total: int, shown: bool):
        self.total, self.shown, self._last_line = total, shown, 0.0
        terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(initial=start, total=total, unit="img", unit_scale=True, dynamic_ncols=True)
            if shown and terminal
            else None
        )

    def step(self, images: int) -> None:
        """An optimizer step has ended; `images` seen so far."""
        if self._bar is not None:
            self._bar.update(images - self._bar.n)

    def status(self, images: int, values: dict[str, float]) -> None:
        """New figures, as `loss -0.93  mi/local 2.31/4.16  812 img/s  wait 1%`."""
        parts = [f"loss {values['loss']:.4f}"]
        # Beside the loss of random guessing, which it may exceed early, with old keys.
        if "contrast/random_guess" in values:
            parts.append(f"contrast {values['contrast']:.2f}/{values['contrast/random_guess']:.2f}")
        if "sse" in values:
            parts.append(f"sse {values['sse']:.2f}")
        for name, value in values.items():  # beside the error of answering 0, which no denoiser should exceed
            if f"{name}/zero" in values:
                parts.append(f"{name} {value:.3f}/{values[f'{name}/zero']:.2f}")
        for name, value in values.items():
            if f"{name}/ceiling" in values:
                parts.append(f"{name} {value:.2f}/{values[f'{name}/ceiling']:.2f} nats")
        speed = values.get("images_per_second")
        if speed:
            parts.append(f"{speed:.0f} img/s")
            parts.append(f"wait {values['data_wait']:.0%}")
        line = "  ".join(parts)
        if self._bar is not None:
            self._bar.set_postfix_str(line, refresh=False)
        elif self.shown and (time.monotonic() - self._last_line > LINE_INTERVAL or images >= self.total):
            self._last_line = time.monotonic()
            left = f"  {duration((self.total - images) / speed)} left" if speed else ""
            print(
                f"{images:>12,} of {self.total:,} images ({images / self.total:.0%})  {line}{left}",
                flush=True,
            )

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self.shown:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
