"""Whether the gateway's own clock may set others'."""

import time
from collections.abc import Callable
from typing import Final, Literal

from gateway.health import clock_error_s

STEP_MAX_S: Final = 2.0  # between the box's two clocks; more, and its wall clock was set
ERROR_MAX_S: Final = 5.0  # of the kernel's own estimate; it says 16 when nothing synchronises it


class OwnTime:
    """Whether this box's wall clock may set others'. It is the operating system's, also where the site's is simulated.

    A time server slews the steady clock with the wall clock; only a step parts them.
    """

    def __init__(
        self,
        trust: Literal["ntp", "always"],
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        error_s: Callable[[], float | None] = clock_error_s,
    ) -> None:
        self._trust = trust
        self._wall, self._steady = wall, steady
        self._error_s = error_s
        self._apart_s = wall() - steady()

    def step_s(self) -> float:
        """What the wall clock was set by since the last call; 0 for less than STEP_MAX_S."""
        apart_s = self._wall() - self._steady()
        step_s, self._apart_s = apart_s - self._apart_s, apart_s
        return step_s if abs(step_s) > STEP_MAX_S else 0.0

    def doubt(self) -> str | None:
        """Why not."""
        if self._trust == "always":
            return None
        error_s = self._error_s()
        if error_s is None:
            return "the kernel does not say whether this gateway's clock is synchronised; see clocks.trust"
        if error_s > ERROR_MAX_S:
            return f"this gateway's own clock is not synchronised (it may be {error_s:.0f} s off); start chrony or ntpd"
        return None
