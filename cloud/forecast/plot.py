"""A forecast as a picture: the fan over the last days, what it missed and when, and whether its quantiles hold."""

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast import LEVELS
from cloud.forecast.backtest import Backtest, Window
from cloud.forecast.panel import MINUTES_PER_DAY, Panel
from cloud.forecast.scores import Array, Scores, mean, scores
from cloud.pictures import BLUE, FAINT, INK, RED, Label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Z90: Final = 1.645  # two-sided 90 % of a normal
_SHADES: Final = ("#e3ecf6", "#cbdcee", "#aac7e4", "#86aed7", "#6195ca")  # widest band first


def picture(
    panel: Panel, test: Window, made: Backtest, row: int, method: str, label: Label, shown: int = 7
) -> "Figure":
    """row: which series.  shown: days in the fan."""
    from matplotlib.figure import Figure

    actual = panel.load[row, test.steps]
    times = panel.times(test.steps)
    one = scores(
        actual[None], made.point[row : row + 1], made.quantiles[row : row + 1], LEVELS,
        panel.load[row : row + 1, : test.steps[0]], 7 * panel.steps_per_day,
    )  # fmt: skip
    figure = Figure(figsize=(13, 8.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1), width_ratios=(1.1, 1.25, 1))
    last = slice(-min(shown, len(test.origins)) * (len(times) // len(test.origins)), None)
    _fan(figure.add_subplot(grid[0, :]), panel, times[last], actual[last], made.quantiles[row, last], label)
    missed = actual - made.point[row]
    _by_hour(figure.add_subplot(grid[1, 0]), panel, test, missed, label)
    _by_day(figure.add_subplot(grid[1, 1]), panel, test, missed, label)
    _calibration(figure.add_subplot(grid[1, 2]), panel, test, made, row, label)
    what = f"{label('负荷预测', 'Load forecast')} · {panel.name} · {panel.series[row]} · {method}"
    if panel.ex_post and not panel.planned:
        what += f" · {label('天气为实测（事后）', 'weather ex-post')}"
    figure.suptitle(f"{what}\n{_told(one, panel, test, label)}", x=0.01, ha="left", fontsize=11)
    return figure


def _told(one: Scores, panel: Panel, test: Window, label: Label) -> str:
    first, last = panel.times(test.steps[[0, -1]]).astype("datetime64[D]")
    ahead = test.horizon * panel.step_minutes / 60
    parts = [
        f"{label('试验窗', 'window')} {first} – {last}",
        f"{label('提前', 'up to')} {ahead:g} h {label('', 'ahead').strip()}",
        f"MASE {one.mase:.3f}",
        f"WAPE {one.wape:.1f} %",
        f"wQL {one.wql:.1f} %",
        f"{label('80% 区间覆盖率', '80 % interval holds')} {100 * one.cov80:.0f} %",
    ]
    return " · ".join(parts)


def _fan(
    axes: "Axes", panel: Panel, times: NDArray[np.datetime64], actual: Array, quantiles: Array, label: Label
) -> None:
    x = times.astype("datetime64[s]").astype(object)
    worked = panel.calendar()
    grey = False
    for day in np.unique(times.astype("datetime64[D]")):
        index = int((day - panel.start.astype("datetime64[D]")).astype(int))
        if worked.day_kind[index] in (1, 2, 3):
            begin = day.astype("datetime64[s]").astype(object)
            end = (day + np.timedelta64(1, "D")).astype("datetime64[s]").astype(object)
            free = label("休息日", "day off")
            axes.axvspan(begin, end, color="#f2f0ea", lw=0, zorder=0, label="_" if grey else free)
            grey = True
    half = len(LEVELS) // 2
    for k in range(half):
        low, high = quantiles[:, k], quantiles[:, -1 - k]
        share = round(100 * (LEVELS[-1 - k] - LEVELS[k]))
        axes.fill_between(x, low, high, color=_SHADES[k % len(_SHADES)], lw=0, zorder=2, label=f"{share} %")
    axes.plot(x, quantiles[:, half], color=BLUE, lw=1.2, zorder=3, label=label("中位数", "median"))
    axes.plot(x, actual, color=INK, lw=1.1, zorder=4, label=label("实测", "actual"))
    axes.set_xlim(x[0], x[-1])
    days = np.unique(times.astype("datetime64[D]"))
    days = days[:: max(1, len(days) // 10)]
    axes.set_xticks(days.astype("datetime64[s]").astype(object), [str(day)[5:] for day in days])
    axes.set_ylabel(f"{label('负荷', 'load')}, {panel.unit}")
    axes.set_title(label("预测区间与实测", "Fan of the forecast, and what came"))
    axes.legend(ncols=9, loc="upper left", bbox_to_anchor=(0, -0.06), columnspacing=1.2, handlelength=1.4)


def _hours(panel: Panel, test: Window) -> Array:
    """(O, N) hour of the day of each scored step."""
    minutes = test.steps * panel.step_minutes % MINUTES_PER_DAY
    return (minutes / 60).reshape(len(test.origins), -1)


def _by_hour(axes: "Axes", panel: Panel, test: Window, missed: Array, label: Label) -> None:
    hours = _hours(panel, test)
    by_day = missed.reshape(hours.shape)
    axes.plot(hours.ravel(), missed, ".", ms=2.5, color=FAINT, alpha=0.5, mew=0)
    there = np.isfinite(by_day).any(axis=0)
    low, middle, high = np.nanquantile(by_day[:, there], [0.1, 0.5, 0.9], axis=0)
    axes.fill_between(hours[0, there], low, high, color=BLUE, alpha=0.18, lw=0, label="10–90 %")
    axes.plot(hours[0, there], middle, color=BLUE, lw=1.4, label=label("中位数", "median"))
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xticks(range(0, 25, 6))
    axes.set_xlim(0, 24)
    axes.set_xlabel(label("时刻", "hour of the day"))
    axes.set_ylabel(f"{label('实测 − 预测', 'actual − forecast')}, {panel.unit}")
    axes.set_title(label("残差：按时刻", "Residuals by hour"))
    axes.legend(loc="upper right", ncols=2)


def _by_day(axes: "Axes", panel: Panel, test: Window, missed: Array, label: Label) -> None:
    hours = _hours(panel, test)
    by_day = missed.reshape(hours.shape)
    most = np.nanquantile(np.abs(missed), 0.98) if np.isfinite(missed).any() else 1.0
    days = panel.times(test.steps).reshape(hours.shape)[:, 0].astype("datetime64[D]")
    step = panel.step_minutes / 60
    drawn = axes.imshow(
        by_day, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest",
        extent=(hours[0, 0], hours[0, -1] + step, len(days) - 0.5, -0.5),
    )  # fmt: skip
    every = max(1, len(days) // 7)
    axes.set_yticks(range(0, len(days), every), [str(day)[5:] for day in days[::every]])
    axes.set_xticks(np.arange(np.ceil(hours[0, 0] / 6) * 6, hours[0, -1] + step + 1e-9, 6))
    axes.grid(visible=False)
    axes.set_xlabel(label("时刻", "hour of the day"))
    axes.set_title(label("残差：逐日", "Residuals day by day"))
    axes.figure.colorbar(drawn, ax=axes, pad=0.02, extend="both").set_label(
        f"{label('红：实测偏高', 'red: more than forecast')}, {panel.unit}"
    )


def _calibration(axes: "Axes", panel: Panel, test: Window, made: Backtest, row: int, label: Label) -> None:
    nominal = 100 * np.array(LEVELS)
    days = len(test.origins)
    by_day = 100 * _held(
        panel.load[row, test.steps].reshape(days, -1), made.quantiles[row].reshape(days, -1, len(LEVELS))
    )
    counted = np.isfinite(by_day).all(axis=1)
    observed = by_day[counted].mean(axis=0)
    # A day's errors go together, so the days are what is counted.
    error = _Z90 * by_day[counted].std(axis=0, ddof=1) / np.sqrt(counted.sum()) if counted.sum() > 1 else 0 * observed
    axes.plot([0, 100], [0, 100], color=INK, lw=0.8)
    if len(panel.series) > 1:
        every = 100 * mean(_held(panel.load[:, test.steps], made.quantiles), axis=0)
        axes.plot(nominal, every, "-", color=FAINT, lw=2.2, label=label("全部序列", f"all {len(panel.series)} series"))
    axes.errorbar(
        nominal, observed, yerr=error, fmt="o-", ms=4, lw=1.2, color=RED, elinewidth=0.8,
        label=label("本序列", "this series, ± 90 %"),
    )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_box_aspect(1)
    axes.set_xlabel(label("标称分位", "nominal, %"))
    axes.set_ylabel(label("实测不超过的比例", "actual at or below, %"))
    axes.set_title(label("校准", "Calibration"))
    axes.legend(loc="upper left")


def _held(actual: Array, quantiles: Array) -> Array:
    """(R, Q) share of the actual (R, N) at or below each quantile (R, N, Q); NaN where nothing was measured."""
    below = np.where(np.isfinite(actual)[..., None], actual[..., None] <= quantiles, np.nan)
    return mean(below, axis=1)
