"""How far a shuffle is: one line on standard error, rewritten on a terminal."""

import sys
import time

__all__ = ["Progress"]


class Progress:
    """Share, rate and time left.

    Args:
        shown: whether to show anything.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self.terminal = sys.stderr.isatty()
        self.every = 0.2 if self.terminal else 10.0
        self.began = self.last = time.perf_counter()
        self.stage, self.stage_began = "", self.began
        self.drawn = False

    @staticmethod
    def say(text: str) -> None:
        """A remark of its own line."""
        print(text, file=sys.stderr)

    def at(self, stage: str, done: tuple[int, int] | None, size: int | None = None) -> None:
        """Where a stage is.

        Args:
            stage: its name.
            done: so much of so much; None where the end is unknown.
            size: bytes so far, if `done` does not count bytes.
        """
        if not self.shown:
            return
        now = time.perf_counter()
        if stage != self.stage:
            self.stage, self.stage_began = stage, now
        if now - self.last < self.every:
            return
        self.last = now
        spent = max(now - self.stage_began, 1e-9)
        seen = size if size is not None else done[0] if done else 0
        text = f"{stage:<8} {seen / 1e6 / spent:7,.0f} MB/s"
        if done and done[0]:
            share = done[0] / max(done[1], 1)
            left = int(spent * (1 - share) / max(share, 1e-9))
            text = f"{stage:<8}{share:6.1%}  {seen / 1e6 / spent:7,.0f} MB/s  {clock(left)} left"
        if self.terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self.drawn = True
        else:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves a clean line."""
        if self.drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self.drawn = False


def clock(seconds: int) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
