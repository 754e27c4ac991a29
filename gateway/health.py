"""What the gateway's own computer says of itself, where it can be asked; None where not."""

import ctypes
import os
import shutil
from pathlib import Path
from typing import Final

_TIMEX_BYTES: Final = 512  # struct timex is 208 bytes on 64 bits, 128 on 32; with modes 0 it is only read
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised


def clock_is_synchronised() -> bool | None:
    """Whether the kernel's clock follows a reference, as whoever keeps it (chrony, timesyncd, ntpd) told the kernel."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != _TIME_ERROR)


def disk_free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def rss_bytes() -> int | None:
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
