"""The clock all processes of a site share: the wall clock, or a simulated one read from one small file.

This is the one module of ``protocols`` that asks the operating system: the clock file is an agreement between
programs, and three copies of its reader would drift apart. Everything else takes time as an argument.
"""

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

# A sleeper looks at the file again this often, so that a new rate is noticed at once.
SLEEP_MAX_S = 0.25


@dataclass(frozen=True, slots=True)
class Anchor:
    """Simulated time runs from ``simulated_s`` at ``rate`` since ``real_s``, and never passes the wall clock.

    Both are seconds since 1970 UTC.
    """

    real_s: float
    simulated_s: float
    rate: float

    def at(self, real_s: float) -> float:
        return min(real_s, self.simulated_s + self.rate * (real_s - self.real_s))

    def speed(self, real_s: float) -> float:
        """Simulated seconds per real second just now: 1 once the wall clock is caught up."""
        return 1.0 if self.at(real_s) >= real_s else self.rate


class Clock(Protocol):
    """``now`` dates data, ``monotonic`` measures deadlines in real seconds."""

    def now(self) -> datetime: ...
    def monotonic(self) -> float: ...
    async def sleep(self, real_s: float) -> None: ...
    async def sleep_until(self, moment: datetime) -> None: ...


class SystemClock:
    """The wall clock, or the simulated clock of ``path`` when one is given."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._anchor: Anchor | None = None

    @classmethod
    def from_environment(cls) -> "SystemClock":
        """Read ``GRIDLOOM_CLOCK``: the path of a clock file; unset or empty means the wall clock."""
        path = os.environ.get("GRIDLOOM_CLOCK")
        return cls(Path(path) if path else None)

    def anchor(self) -> Anchor | None:
        if self._path is None:
            return None
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            self._anchor = read_anchor(self._path)
            self._stamp = stamp
        return self._anchor

    def now(self) -> datetime:
        real_s = time.time()
        anchor = self.anchor()
        return datetime.fromtimestamp(anchor.at(real_s) if anchor else real_s, UTC)

    def speed(self) -> float:
        """Simulated seconds per real second."""
        anchor = self.anchor()
        return anchor.speed(time.time()) if anchor else 1.0

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, real_s: float) -> None:
        await asyncio.sleep(real_s)

    async def sleep_until(self, moment: datetime) -> None:
        # Polled, because the clock file may change its rate while we sleep.
        while (left_s := (moment - self.now()).total_seconds()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(left_s / self.speed(), SLEEP_MAX_S))


def read_anchor(path: Path) -> Anchor:
    """Raises ValueError when the file is not a clock file."""
    try:
        return Anchor(**{name: float(value) for name, value in json.loads(path.read_text()).items()})
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a clock file ({error}); remove it and start again") from error


def write_anchor(path: Path, anchor: Anchor) -> None:
    """Replace the file in one step, so that a reader never sees half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(anchor)))
    fresh.replace(path)
