"""What a demand-response event was worth: load as it would have been, less load as it was."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

COMPARABLE_DAYS: Final = 10
METHOD: Final = "mean of up to 10 comparable days, additive same-day adjustment"


def baseline(past_wh: Array, before_wh: Array) -> Array:
    """Energy per interval of an event, had there been none.

    past_wh: (D, W + K) Wh on comparable days, latest first: W intervals before the event's time of day, then its K.
    before_wh: (W,) Wh in the W intervals just before the event.
    NaN where missing: a day with any gap is not used; neither is the adjustment with a gap in it.

    The first ``COMPARABLE_DAYS`` usable days are averaged, then moved up or down by what the day differed from them
    before the event (symmetric additive adjustment, as in the CAISO and NAESB 10-of-10 baselines).
    Returns (K,) Wh; NaN where no day is usable.
    """
    width = before_wh.shape[0]
    if past_wh.ndim != 2 or past_wh.shape[1] <= width:
        raise ValueError(f"past_wh: (days, more than {width}) expected, got {past_wh.shape}")
    usable = past_wh[~np.isnan(past_wh).any(axis=1)][:COMPARABLE_DAYS]
    if not len(usable):
        return np.full(past_wh.shape[1] - width, np.nan)
    typical = usable.mean(axis=0)
    adjustment = np.mean(before_wh - typical[:width]) if width else 0.0
    expected: Array = typical[width:] + (0.0 if np.isnan(adjustment) else adjustment)
    return expected


def reduction(baseline_wh: Array, actual_wh: Array) -> float:
    """Wh less than the baseline over the whole event, (K,) each. Negative when more was drawn; NaN with any gap."""
    return float(np.sum(baseline_wh - actual_wh))
