"""The world against what physics, the source data and a meter's promise say."""

import numpy as np
import pytest

from simulators import layout, profiles
from simulators.layout import Habit, design
from simulators.loads import Loads
from simulators.meters import MeterClock
from simulators.powerflow import AreaFlow
from simulators.profiles import QUARTERS
from simulators.world import DAYS_BEFORE, INTERVAL_S, REGISTERS, WH_PER_STEP, World
from tests.simulators.conftest import METERS, SEED, START, new_world

HOUR_S = 3600


def test_quarter_hours_keep_the_sum_of_every_hour() -> None:
    hourly = np.array([0.0, 3.0, 1.0, 8.0, 0.5, 2.0])
    for signed in (False, True):
        quarters = profiles.resample(hourly, signed=signed)
        assert np.allclose(quarters.reshape(-1, 4).mean(axis=1), hourly)
    assert profiles.resample(hourly).min() >= 0


def test_category_sums_are_those_of_the_measured_profiles() -> None:
    loads = Loads(design(SEED, METERS), SEED, first_weekday=2)
    active, _ = loads.day(5)
    no_pv = {c.point for area in design(SEED, METERS) for c in area.customers if not c.pv_kwp}
    points = [c.point for area in design(SEED, METERS) for c in area.customers]
    checked = 0
    for (_, network, category), members in loads.groups.items():
        if all(points[i] in no_pv for i in members):
            shape = profiles.take(profiles.load(network).active[category], 7 * QUARTERS, QUARTERS)
            assert np.allclose(active[members].sum(axis=0), loads.nominal_w[members].sum() * shape)
            checked += 1
    assert checked > 5


def test_customers_of_one_category_differ_in_time_and_size() -> None:
    loads = Loads(design(SEED, 300), SEED, first_weekday=0)
    active, _ = loads.day(1)
    members = max(loads.groups.values(), key=len)
    shapes = active[members] / active[members].mean(axis=1, keepdims=True)
    assert len(np.unique(shapes.argmax(axis=1))) > len(members) // 3
    assert np.corrcoef(shapes).min() < 0.9


def test_a_day_has_the_shape_of_real_life() -> None:
    """Evenings above nights, over the whole site and a week."""
    loads = Loads(design(SEED, 300), SEED, first_weekday=0)
    mean_w = np.mean([loads.day(day)[0].sum(axis=0) for day in range(7, 14)], axis=0).reshape(24, 4).mean(axis=1)
    assert mean_w[17:20].mean() > 1.3 * mean_w[1:5].mean()


def test_the_same_seed_is_the_same_world_however_it_is_computed(world: World) -> None:
    piecewise = World(SEED, METERS, START)
    for hours in (-400, -3, 5, 30):
        piecewise.extend(piecewise.start_s + hours * HOUR_S)
    assert np.array_equal(piecewise.registers, world.registers)


def test_another_seed_is_another_world(world: World) -> None:
    other = World(SEED + 1, METERS, START)
    other.extend(other.zero_s + 1)
    assert not np.array_equal(other.registers[:, :97], world.registers[:, :97])


def test_meters_remember_62_days_before_the_start(world: World) -> None:
    assert world.start_s - world.zero_s >= 62 * 86_400
    assert world.record(0, world.zero_s, world.start_s) is not None
    assert world.record(0, world.zero_s - INTERVAL_S, world.start_s) is None
    assert world.record(0, round(world.start_s) + INTERVAL_S, world.start_s) is None, "the future"


def test_registers_never_go_back(world: World) -> None:
    assert (np.diff(world.registers, axis=1) >= 0).all()
    moved = world.registers[:, -1] - world.registers[:, 0]
    assert (moved[:, 0] > 0).all(), "everybody uses something"
    assert (moved[:, 1] > 0).any(), "somebody with PV exports"


def test_head_is_customers_plus_technical_loss_plus_theft(world: World) -> None:
    """The balance a grid company draws, from what the registers say; truth to the rounding of the registers."""
    balances = list(world.balances())
    ratio = np.array([meter.ratio for meter in world.meters])
    for number in (3, 40, DAYS_BEFORE):
        marks = world.registers[:, number * QUARTERS], world.registers[:, (number + 1) * QUARTERS]
        net_wh = (marks[1] - marks[0]) @ np.array([1, -1, 0, 0]) * WH_PER_STEP * ratio
        for i, area in enumerate(world.areas):
            name, _, balance = balances[number * len(world.areas) + i]
            assert name == area.plan.area
            rows = [row for row, meter in enumerate(world.meters) if meter.area == name]
            delivered_wh = net_wh[rows[1:]].sum()
            slack_wh = float(2 * WH_PER_STEP * ratio[rows].sum())
            assert net_wh[rows[0]] == pytest.approx(balance.supplied_wh, abs=slack_wh)
            assert net_wh[rows[0]] == pytest.approx(
                delivered_wh + balance.technical_wh + balance.unexplained_wh, abs=slack_wh
            )


@pytest.mark.parametrize("meters", [30, 60, 300])
def test_thieves_stand_out_and_honest_areas_do_not(meters: int) -> None:
    world = World(1, meters, START)
    world.extend(world.start_s)
    supplied = {area.plan.area: 0.0 for area in world.areas}
    unexplained, technical = dict(supplied), dict(supplied)
    for area, _, balance in world.balances():
        supplied[area] += balance.supplied_wh
        unexplained[area] += balance.unexplained_wh
        technical[area] += balance.technical_wh
    share = {area: unexplained[area] / supplied[area] for area in supplied}
    thieves = {m.area for m in world.meters if m.habit in (Habit.SCALED, Habit.BYPASS)}
    assert len(thieves) == 2
    assert all(share[area] > 0.015 for area in thieves)
    assert all(abs(share[area]) < 1e-6 for area in supplied if area not in thieves), "loss is physics"
    assert all(0.01 < technical[area] / supplied[area] < 0.055 for area in supplied)


def test_voltages_and_loadings_are_those_of_a_sane_network() -> None:
    world = World(1, 300, START)
    world.extend(world.start_s)
    day = world._days[DAYS_BEFORE]
    customers = [row for row, meter in enumerate(world.meters) if meter.role == "customer"]
    pu = day.volts[customers] / (400 / 3**0.5)
    assert 0.93 < pu.min() < 0.97
    assert pu.max() < 1.035
    for area, watts in zip(world.areas, world.supplied_w(), strict=True):
        assert 0.5 < watts.max() / layout.POWER_FACTOR / (area.transformer.rated_kva * 1e3) < 0.9


def test_loss_of_one_load_behind_a_transformer_and_a_line_is_the_textbook_one() -> None:
    """One customer draws: series loss 3 I² R of the lines on its way and of the transformer, plus the iron."""
    area = design(SEED, METERS)[0]
    customer = area.customers[0]
    active = np.zeros((len(area.customers), 1))
    active[0] = 10_000.0
    flow = AreaFlow(area).solve(active, np.zeros_like(active))
    feeding = {line.to_node: line for line in area.lines}
    r_ohm, node = 0.0, customer.node
    while node in feeding:
        r_ohm, node = r_ohm + feeding[node].r_ohm, feeding[node].from_node
    transformer = area.transformer
    amperes = 10_000 / 3 / flow.customer_v[0, 0]
    rated_a = transformer.rated_kva * 1e3 / 400 / 3**0.5
    expected_w = 3 * amperes**2 * r_ohm + transformer.load_loss_w * (amperes / rated_a) ** 2
    iron_w = transformer.no_load_loss_w * layout.SOURCE_PU**2
    assert flow.technical_w[0] == pytest.approx(expected_w + iron_w, rel=0.01)


def test_the_drifting_clock_is_slow_and_its_records_are_taken_late(world: World) -> None:
    (row,) = (r for r, m in enumerate(world.meters) if m.habit is Habit.DRIFTING)
    clock = world.clocks[row]
    assert clock.at(world.start_s) - world.start_s <= -180
    assert clock.at(world.start_s + 86_400) - (world.start_s + 86_400) == pytest.approx(-208)
    assert clock.at(world.start_s - 40 * 86_400) == world.start_s - 40 * 86_400, "it once kept time"
    for at_s in (world.start_s, world.start_s - 40 * 86_400, world.start_s + 1e5):
        assert clock.true(clock.at(at_s)) == pytest.approx(at_s)
    mark_s = round(world.start_s)
    true_s = clock.true(mark_s)
    assert true_s is not None
    assert world.record(row, mark_s, mark_s + 100) is None, "the meter has not come to this mark yet"
    assert world.record(row, mark_s, mark_s + 300) == world.reading(row, true_s).tolist()


@pytest.mark.parametrize(("ahead_s", "gains_s_per_day"), [(0, 0), (-200, -8), (150, 20), (90, -30), (-70, 40)])
def test_a_clock_that_is_set_skips_marks_or_lives_them_twice(ahead_s: float, gains_s_per_day: float) -> None:
    clock = MeterClock(ahead_s, gains_s_per_day, since_s=1000.0)
    for at_s in (1000.0, 90_000.0, 1e6):
        assert clock.true(clock.at(at_s)) == pytest.approx(at_s)
    clock.set(2_000_000, 2_003_600)  # an hour ahead
    clock.set(2_010_000, 2_010_000)
    assert clock.at(2_000_000) == 2_003_600
    assert clock.true(2_001_800) is None, "it skipped this"
    twice_s = 2_011_000.0  # shown at about 2,007,400 by the wrong clock, and again a little after it was set right
    assert clock.true(twice_s) == pytest.approx(twice_s, abs=1)
    first_s = clock.true(twice_s, by_s=2_010_500)
    assert first_s == pytest.approx(twice_s - 3600, abs=5)
    assert not clock.is_right


def test_the_memory_of_a_clock_that_was_set_forward_lacks_the_marks_it_skipped() -> None:
    world = new_world(8)
    row = next(r for r, m in enumerate(world.meters) if m.habit is Habit.PLAIN)
    at_s = world.start_s + 600.0  # ten minutes after a mark
    world.clocks[row].set(at_s, at_s + 1800)
    marks = [round(world.start_s) + i * INTERVAL_S for i in range(5)]
    there = [world.record(row, mark_s, at_s + 900) is not None for mark_s in marks]
    assert there == [True, False, False, True, False], "two skipped, one lived early, one not yet"
    assert world.record(row, marks[3], at_s + 900) == world.reading(row, marks[3] - 1800).tolist()


# ---- relays ----------------------------------------------------------------------------------------------------------


def controllable(world: World) -> int:
    return next(row for row, meter in enumerate(world.meters) if meter.controllable)


def test_an_open_relay_stops_the_register_and_lowers_the_head() -> None:
    world, plain = new_world(), new_world()
    row, opened_s = controllable(world), world.start_s + 1000.0
    expires_s = opened_s + 1800
    head = world.row_of[f"{world.meters[row].area}-HEAD"]
    shown = plain.reading(row, opened_s).tolist()
    world.set_relay(row, opened_s, closed=False, expires_s=expires_s)
    assert world.reading(row, opened_s).tolist() == shown
    assert world.reading(row, opened_s + 1).tolist() == world.reading(row, expires_s - 1).tolist()
    assert not world.is_closed(row, opened_s)
    assert world.power(row, opened_s + 60).active_w == 0
    assert world.is_closed(row, expires_s)
    assert world.power(row, expires_s + 1).active_w == plain.power(row, expires_s + 1).active_w > 3000
    would, drew = world.drawn_wh(row, opened_s - 100, expires_s + 100)
    assert would - drew == pytest.approx(sum(plain.drawn_wh(row, opened_s, expires_s)) / 2)
    saved = (plain.registers - world.registers)[:, -1, 0] * WH_PER_STEP * [m.ratio for m in world.meters]
    assert saved[row] == pytest.approx(would - drew, abs=2 * WH_PER_STEP)
    assert saved[row] * 0.99 - 1000 <= saved[head] <= saved[row] * 1.15 + 1000, "with it go its losses"
    others = [r for r in range(len(world.meters)) if r not in (row, head)]
    assert (saved[others] == 0).all()
    assert world.power(row, opened_s + 60).volts > plain.power(row, opened_s + 60).volts


def test_what_meters_have_shown_is_never_taken_back() -> None:
    """Fine steps through many relay actions: every register of the two meters only grows, also between marks."""
    world = new_world(20)
    row = controllable(world)
    head = world.row_of[f"{world.meters[row].area}-HEAD"]
    rng = np.random.default_rng(0)
    before = {one: world.reading(one, world.start_s) for one in (row, head)}
    at_s = world.start_s
    for _ in range(40):
        world.set_relay(row, at_s, closed=bool(rng.random() < 0.5), expires_s=at_s + rng.uniform(10, 3000))
        for _ in range(12):
            at_s += rng.uniform(1, 60)
            for one in (row, head):
                shown = world.reading(one, at_s)
                assert (shown >= before[one]).all()
                before[one] = shown
    assert (np.diff(world.registers, axis=1) >= 0).all()
    last = world.registers[:, -1]
    world.extend(world.horizon_s + 86_400)
    assert (world.registers[:, -1] >= last).all()
    assert world.registers.shape[2] == REGISTERS


def test_closing_early_ends_the_window_and_a_relay_left_open_stays_open() -> None:
    world = new_world(8)
    row, at_s = controllable(world), world.start_s + 60.0
    world.set_relay(row, at_s, closed=False, expires_s=at_s + 7200)
    world.set_relay(row, at_s + 600, closed=True)
    assert world.is_closed(row, at_s + 601)
    would, drew = world.drawn_wh(row, at_s, at_s + 7200)
    assert would - drew == pytest.approx(world.drawn_wh(row, at_s, at_s + 600)[0])
    world.set_relay(row, at_s + 7200, closed=False)
    world.extend(at_s + 3 * 86_400)
    # One step of rounding: the register is whole, the energy until the relay opened is not.
    assert (world.registers[row, -1] - world.reading(row, at_s + 7200)).max() <= 1


def test_the_stressed_area_passes_its_limit_every_evening_and_the_others_never() -> None:
    from simulators.site import EVENING, capacities_w

    for meters in (60, 300):
        world = World(1, meters, START)
        world.extend(world.start_s + 30 * HOUR_S)
        for area, limit_w, watts in zip(world.areas, capacities_w(world), world.supplied_w(), strict=True):
            if area.plan.stressed:
                assert (watts[DAYS_BEFORE - 10 :, EVENING] > limit_w).all()
                evening, day = watts[-10:, EVENING].mean(), watts[-10:, 40:64].mean()
                assert evening > 1.1 * day
                assert sum(c.controllable for c in area.customers) >= (6 if meters >= 300 else 2)
            else:
                assert (watts < limit_w).all()


@pytest.mark.parametrize("meters", [30, 31, 45, 2000])
def test_any_number_of_meters_makes_a_town(meters: int) -> None:
    world = World(2, meters, START)
    world.extend(world.zero_s + 1)
    assert len(world.meters) == meters
    assert len({meter.serial for meter in world.meters}) == meters
    assert len({(meter.line, meter.address) for meter in world.meters}) == meters
    protocols = [meter.protocol for meter in world.meters]
    assert 0.4 < protocols.count("modbus-tcp") / meters < 0.65
    assert (np.diff(world.registers, axis=1) >= 0).all()


def test_too_few_meters_are_refused_with_the_bounds() -> None:
    with pytest.raises(ValueError, match="30 to 3000 expected, got 12"):
        design(1, 12)
