"""What the ridges see of each block: lags, levels, calendar and weather, all less a base that needs no learning."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast.blocks import HOLIDAY, KINDS, Blocks
from cloud.engines.forecast.inputs import Array
from cloud.engines.forecast.weather import Weather

WEEK = 7


def weeks(lead: int) -> int:
    """Days back from a block `lead` ahead to the latest known one of its weekday."""
    return WEEK * -(-(lead + 1) // WEEK)


def back(values: NDArray[Any], days: int) -> NDArray[Any]:
    """Values (B, …) so many blocks before each; those of the first where there are none."""
    found: NDArray[Any] = np.empty_like(values)  # in the order the values have in memory
    found[:days] = values[0]
    found[days:] = values[: max(len(values) - days, 0)]
    return found


def usual(load: NDArray[Any], lead: int) -> NDArray[Any]:
    """The usual day (B, S, N) of each block: between the last week and the same weekdays."""
    week = _mean(load, [lead + 1 + i for i in range(WEEK)])
    same = _mean(load, [weeks(lead) + WEEK * i for i in range(4)])
    week += same
    week /= 2
    return week


def take_usual(x: NDArray[Any], lead: int) -> None:
    """Take from x (B, …) its own usual day, in place: of many columns a block at a time, which the cache can hold."""
    week, same = [lead + 1 + i for i in range(WEEK)], [weeks(lead) + WEEK * i for i in range(4)]
    for block in reversed(range(len(x))):
        usual_day = np.zeros_like(x[0])
        for days in week, same:
            total = x[max(block - days[0], 0)] + x[max(block - days[1], 0)]
            for ago in days[2:]:
                total += x[max(block - ago, 0)]
            total /= 2 * len(days)
            usual_day += total
        x[block] -= usual_day


def _mean(values: NDArray[Any], days: list[int]) -> NDArray[Any]:
    """Of the values so many blocks before each."""
    total = back(values, days[0])
    for ago in days[1:]:
        total[:ago] += values[0]
        total[ago:] += values[: max(len(values) - ago, 0)]
    total /= len(days)
    return total


def lags(less: Array, lead: int) -> list[Array]:
    """(B, S, N) or (B, S, 1) each: how the load lately differed from a base that is forecast at the same lead."""
    hours = max(1, less.shape[2] // 24)
    latest, earlier, same = back(less, lead + 1), back(less, lead + 2), back(less, weeks(lead))
    week = _mean(less, [lead + 1 + i for i in range(WEEK)])
    columns = [latest, earlier, week, same, back(less, weeks(lead) + WEEK)]
    columns += [latest.mean(axis=2, keepdims=True), earlier.mean(axis=2, keepdims=True)]
    columns += [latest[:, :, -hours:].mean(axis=2, keepdims=True)]
    columns += [latest[:, :, -6 * hours :].mean(axis=2, keepdims=True)]
    return [*columns, same.mean(axis=2, keepdims=True)]


def calendar(blocks: Blocks, lead: int) -> list[Array]:
    """(B, 1, N) each: kind of day, of the latest known day, and season."""
    before = back(blocks.kind, lead + 1)
    columns = [blocks.kind == kind for kind in range(KINDS)]
    columns += [before == HOLIDAY, (before >= 5) & (before <= HOLIDAY)]
    angle = 2 * np.pi * blocks.yearday / 365.25
    return [column[:, None].astype(float) for column in (*columns, np.sin(angle), np.cos(angle))]


def weather(seen: Weather, lead: int) -> list[Array]:
    """(B, 1, N) each: now and felt, squared, and how much that differs from the latest known day."""
    columns: list[Array] = []
    for group in range(seen.now.shape[1]):
        now = seen.now[:, group : group + 1]
        columns += [now, now - back(now, lead + 1)]
        if seen.now.shape[1] <= 4:
            felt = seen.felt[0][:, group : group + 1]
            columns += [now**2, felt, felt**2, now**2 - back(now, lead + 1) ** 2]
    return columns
