"""What the gateway's own computer says of itself, where it can be asked; None where not."""

import ctypes
import os
import shutil
from pathlib import Path
from typing import Final

CLOCK_ERROR_MAX_S: Final = 16.0  # where the kernel's own estimate ends: nothing synchronises its clock


class _Timex(ctypes.Structure):
    """The beginning of struct timex, the same with glibc and musl, and room for the rest. With modes 0 it is read."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),  # µs; grows by 500 ppm, and is set back by whoever synchronises
        ("rest", ctypes.c_byte * 512),
    )


def clock_error_s() -> float | None:
    """What the kernel's clock may be off by, as whoever keeps it (chrony, timesyncd, ntpd) told the kernel.

    The flag STA_UNSYNC says less: chrony leaves it set where it does not keep the hardware clock too.
    """
    told = _Timex()
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(told))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else float(told.maxerror / 1e6)


def clock_is_synchronised() -> bool | None:
    error_s = clock_error_s()
    return None if error_s is None else error_s < CLOCK_ERROR_MAX_S


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
