"""The meters on the customers and areas of a layout: their points, addresses, protocols and clocks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from simulators.layout import Area, Habit

HEAD_PT_RATIO = 100  # a head meter sits on the 10 kV side, behind 10,000/100 V transformers
MODBUS, DLT645 = "modbus-tcp", "dlt645-2007"
TEMPLATES: Final = {MODBUS: "gridloom-demo-modbus", DLT645: "dlt645-2007"}
MODBUS_UNITS_MAX = 200  # of the 247 addresses of a line
# The drifting clock is this slow at the start and loses this much a day; before that it kept time.
SLOW_AT_START_S, LOST_PER_DAY_S = 200.0, 8.0
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Meter:
    """``address`` is what the line calls it: 12 digits, or the unit. ``line`` names the line it hangs on."""

    point: str
    area: str
    node: str
    role: str
    serial: str
    protocol: str
    wire_name: str
    line: str
    address: str
    controllable: bool
    ct_ratio: int
    pt_ratio: int
    habit: Habit

    @property
    def ratio(self) -> int:
        return self.ct_ratio * self.pt_ratio


def gateway_name(area: str) -> str:
    return f"gw-{area.lower()}"


def place(areas: Sequence[Area], seed: int) -> tuple[Meter, ...]:
    """Area by area, head first, then the customers in their order."""
    return tuple(meter for number, area in enumerate(areas, 1) for meter in _place(area, number, seed))


def _place(area: Area, number: int, seed: int) -> Iterator[Meter]:
    name = area.plan.area
    units = 0
    for i in range(len(area.customers) + 1):
        customer = area.customers[i - 1] if i else None
        # Alternating; the head reads hundreds of kW, more than a DL/T 645 power block has digits for.
        protocol = DLT645 if i % 2 else MODBUS
        serial = f"20{seed % 100:02d}{number:02d}{i:06d}"
        if protocol == MODBUS:
            line, address = f"{name.lower()}-modbus-{units // MODBUS_UNITS_MAX + 1}", str(units % MODBUS_UNITS_MAX + 1)
            units += 1
        else:
            line, address = f"{name.lower()}-645", serial
        yield Meter(
            point=customer.point if customer else area.head_point,
            area=name,
            node=customer.node if customer else area.source_node,
            role="customer" if customer else "supply",
            serial=serial,
            protocol=protocol,
            wire_name=f"m{i + 1:03d}",
            line=line,
            address=address,
            controllable=customer.controllable if customer else False,
            ct_ratio=customer.ct_ratio if customer else 1,
            pt_ratio=1 if customer else HEAD_PT_RATIO,
            habit=customer.habit if customer else Habit.PLAIN,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """A clock was set to ``to_s`` at the true moment ``at_s``. ``broadcast``: by 08H, which counts for the day."""

    at_s: float
    to_s: float
    broadcast: bool = False


@dataclass(slots=True)
class MeterClock:
    """A meter's own clock against the true one, in seconds since 1970 UTC.

    At ``since_s`` it was ``ahead_s`` (negative: slow) and it gains ``gains_s_per_day``; a clock that moves away from
    the right time kept time before it left it. Orders set it; it then drifts on from there.
    """

    ahead_s: float = 0.0
    gains_s_per_day: float = 0.0
    since_s: float = 0.0
    settings: list[Setting] = field(default_factory=list)  # oldest first

    @property
    def is_right(self) -> bool:
        """Since ever: its marks are the true ones."""
        return not (self.ahead_s or self.gains_s_per_day or self.settings)

    def at(self, true_s: float) -> float:
        for setting in reversed(self.settings):
            if setting.at_s <= true_s:
                return setting.to_s + (self._ran(true_s) - self._ran(setting.at_s))
        return self._ran(true_s)

    def true(self, meter_s: float, *, by_s: float = inf) -> float | None:
        """The last moment until ``by_s`` at which the clock showed ``meter_s``; None where it skipped it.

        A clock that is set back shows a time twice, and its memory keeps what it wrote last.
        """
        until_s = inf
        for setting in reversed(self.settings):
            true_s = self._ran_at(meter_s - setting.to_s + self._ran(setting.at_s))
            if setting.at_s <= true_s < until_s and true_s <= by_s:
                return true_s
            until_s = setting.at_s
        true_s = self._ran_at(meter_s)
        return true_s if true_s < until_s and true_s <= by_s else None

    def set(self, true_s: float, to_s: float, *, broadcast: bool = False) -> None:
        self.settings.append(Setting(true_s, to_s, broadcast))

    def _ran(self, true_s: float) -> float:
        """What it would show had nobody ever set it."""
        return true_s + self._clipped(self.ahead_s + self.gains_s_per_day * (true_s - self.since_s) / DAY_S)

    def _ran_at(self, meter_s: float) -> float:
        """Inverse of ``_ran``."""
        rate = self.gains_s_per_day / DAY_S
        true_s = (meter_s - self.ahead_s + rate * self.since_s) / (1 + rate)
        return meter_s - self._clipped(meter_s - true_s)

    def _clipped(self, offset_s: float) -> float:
        if self.gains_s_per_day < 0 and self.ahead_s <= 0:
            return min(0.0, offset_s)
        return max(0.0, offset_s) if self.gains_s_per_day > 0 and self.ahead_s >= 0 else offset_s


def drifting(start_s: float) -> MeterClock:
    return MeterClock(-SLOW_AT_START_S, -LOST_PER_DAY_S, start_s)
