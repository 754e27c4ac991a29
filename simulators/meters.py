"""The meters on the customers and areas of a layout: their points, addresses, protocols and clocks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
class MeterClock:
    """A meter's own clock against the true one, in seconds since 1970 UTC."""

    drifts: bool
    start_s: float

    def at(self, true_s: float) -> float:
        if not self.drifts:
            return true_s
        return true_s - max(0.0, SLOW_AT_START_S + LOST_PER_DAY_S * (true_s - self.start_s) / DAY_S)

    def true(self, meter_s: float) -> float:
        """Inverse of ``at``."""
        if not self.drifts:
            return meter_s
        rate = LOST_PER_DAY_S / DAY_S
        return max(meter_s, (meter_s + SLOW_AT_START_S - rate * self.start_s) / (1 - rate))
