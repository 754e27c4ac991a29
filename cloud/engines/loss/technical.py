"""The technical loss of an area by power flow, with all that was drawn in it: also what no record shows."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.loss.balance import Filled
from cloud.engines.loss.flow import Placed, solve
from cloud.engines.loss.gaps import settle

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Where no reactive energy is measured: power factor 0.95 lagging.
TAN_PHI: Final = float(np.tan(np.arccos(0.95)))
_SHARE: Final = (-0.5, 1.0)  # of its records, drawn beside them: more is no theft but a wrong head meter
_ROOF_SHARE: Final = 0.002  # of the intervals feed in, and more than one; fewer are wrong readings
_CLOCK_MAX: Final = 0.4  # of an interval: a clock that is off by more mixes other intervals than the next


@dataclass(frozen=True, slots=True)
class Technical:
    """``wh``: (T,) lost in wires and transformers.  ``voltage_pu``: (N, F, T) as ``Flow`` has it, where asked for."""

    wh: Array
    voltage_pu: Array | None


def technical_loss(
    placed: Placed,
    drawn: Filled,
    supplied_wh: Array,
    use: Mask,
    *,
    steps_per_day: int,
    varh: Array | None = None,
    beside_wh: Array | None = None,
    source_pu: Array | float = 1.0,
    clock_s: float = 0.0,
    voltages: bool = False,
) -> Technical:
    """Loss of an area whose head meter is at the network's source.

    drawn: (T, M) net, loads in the order of ``placed``.  supplied_wh: (T,), unknown (NaN) where not ``use``.
    varh: (T, M) NaN where not measured, None where nobody measures it: power factor 0.95.
    beside_wh: (T, M) drawn at the same nodes beside the records, as far as suspects tell it.
    source_pu: (T,) or one voltage at the head over its rating.  clock_s: standard deviation of the meters' clocks.
    Raises NoSolutionError.

    What was drawn beside the records heats the wires as well: what each interval still leaves unexplained is put on
    top of every customer's import, and the flow solved again. Without it the loss that a theft causes would be taken
    for theft. The first run's rest has that loss in it: losses grow with the square, twice their share.
    """
    step_h = 24 / steps_per_day
    feeds_in = ~drawn.filled & (drawn.wh < 0)
    if beside_wh is not None:
        drawn = Filled(drawn.wh + beside_wh, drawn.sd_wh, drawn.filled, drawn.spread)

    def power(wh: Array) -> tuple[Array, Array]:
        reactive = _reactive(wh, feeds_in, steps_per_day)
        if varh is not None:
            reactive = np.where(np.isnan(varh), reactive, varh)
        return np.ascontiguousarray(wh.T) / step_h, np.ascontiguousarray(reactive.T) / step_h

    active, reactive = power(drawn.wh)
    first = solve(placed, active, reactive, source_pu, voltages=False)
    settled = settle(supplied_wh, drawn, first.loss_w * step_h, use, steps_per_day)
    # A guess is more even than what it stands for, and losses grow with the square: a draw of what it may have been.
    guessed = settled.drawn.sd_wh * np.random.default_rng(0).standard_normal(drawn.wh.shape)
    active, reactive = power(settled.drawn.wh + guessed)
    imported = np.maximum(active, 0).sum(axis=0) + 2 * (first.loss_w - first.no_load_w)
    off = min(clock_s / 3600 / step_h, _CLOCK_MAX)
    rest_wh = (
        settled.rest_wh - _out_of_step(settled.rest_wh, supplied_wh, use, steps_per_day) if off else settled.rest_wh
    )
    share = np.clip(rest_wh / step_h / np.maximum(imported, 1.0), *_SHARE)
    scale = np.where(active > 0, 1 + share, 1.0)
    active, reactive = active * scale, reactive * scale
    flow = solve(placed, active, reactive, source_pu, voltages=voltages)
    swung = _swung(placed, active, reactive, source_pu, flow.loss_w, off)
    return Technical(np.asarray((flow.loss_w + swung) * step_h, np.float64), flow.voltage_pu)


def _out_of_step(rest_wh: Array, supplied_wh: Array, use: Mask, steps_per_day: int) -> Array:
    """(T,) Wh of the rest that the head's clock puts there: shares of the steps to the next interval and the last.

    As load it would follow the head's late or early swings, and lose less than what was drawn. A theft has its hours,
    too: only departures from the mean of the time of day tell the clock.
    """
    steps = np.diff(np.where(use, supplied_wh, np.nan))
    after, before = np.append(steps, np.nan), np.insert(-steps, 0, np.nan)
    both = np.isfinite(after) & np.isfinite(before)
    time_of_day = np.arange(len(rest_wh)) % steps_per_day
    count = np.maximum(np.bincount(time_of_day, both, steps_per_day), 1)

    def unusual(values: Array) -> Array:
        known = np.where(both, values, 0.0)
        usual = np.bincount(time_of_day, known, steps_per_day) / count
        return np.where(both, known - usual[time_of_day], 0.0)

    swings = np.column_stack([unusual(after), unusual(before)])
    gram = swings.T @ swings
    shares = np.linalg.solve(gram + 1e-3 * (np.trace(gram) + 1.0) * np.eye(2), swings.T @ unusual(rest_wh))
    shares = np.clip(shares, -_CLOCK_MAX, _CLOCK_MAX)
    return np.asarray(np.nan_to_num(np.column_stack([after, before])) @ shares, np.float64)


def _swung(
    placed: Placed, active: Array, reactive: Array, source_pu: Array | float, loss_w: Array, off: float
) -> Array | float:
    """(T,) W of loss that records do not show because each meter's clock is off.

    A meter that is the share l of an interval late or early records (1 − l) of one interval and l of the next: the
    square of what it records misses l (1 − l) times the square of the step between the two. What such a step is worth
    in losses is told by the flow half way: of a square, the mean of two less the middle is a quarter of it. Power is
    taken as constant within an interval, as elsewhere; what swings inside of it no record shows.
    off: standard deviation of l, normal: E|l| − E l². The step that records show is damped itself, by about 3 E|l|
    of its square where one interval tells little of the next.
    """
    if off <= 0 or len(loss_w) < 2:
        return 0.0
    source = source_pu if isinstance(source_pu, float) else (source_pu[..., 1:] + source_pu[..., :-1]) / 2
    watts, vars_ = (np.ascontiguousarray((power[:, 1:] + power[:, :-1]) / 2) for power in (active, reactive))
    quarter = (loss_w[1:] + loss_w[:-1]) / 2 - solve(placed, watts, vars_, source, voltages=False).loss_w
    each = np.concatenate([quarter[:1], (quarter[1:] + quarter[:-1]) / 2, quarter[-1:]])
    late = off * (2 / np.pi) ** 0.5
    return np.asarray(4 * (late - off**2) / max(1 - 3 * late, 0.5) * each, np.float64)


def _reactive(drawn_wh: Array, feeds_in: Mask, steps_per_day: int) -> Array:
    """(T, M) varh at power factor 0.95 of what is drawn.

    A roof makes active power only: the reactive of the load behind it does not go away with the import. By day such a
    load is taken as its own nights' times what the median of the customers without a roof has by day over by night.
    """
    drawn = np.maximum(drawn_wh, 0)
    roof = feeds_in.sum(axis=0) > max(1.0, _ROOF_SHARE * len(drawn))
    time_of_day = np.arange(len(drawn)) % steps_per_day
    feeding = np.bincount(time_of_day, feeds_in[:, roof].any(axis=1), steps_per_day) > 0
    night = ~feeding[time_of_day]
    if roof.any() and not roof.all() and night.any():
        usual = drawn[night].mean(axis=0)
        others = ~roof & (usual > 0)
        count = np.maximum(np.bincount(time_of_day, minlength=steps_per_day), 1)
        by_time = np.zeros((steps_per_day, int(others.sum())))
        np.add.at(by_time, time_of_day, drawn[:, others] / usual[others])
        shape = np.median(by_time / count[:, None], axis=1)[time_of_day] if others.any() else np.zeros(len(drawn))
        behind = np.maximum(drawn[:, roof], shape[:, None] * usual[roof])
        drawn[:, roof] = np.where(night[:, None], drawn[:, roof], behind)
    return np.asarray(drawn * TAN_PHI, np.float64)
