"""The quantities a meter reports, their kinds, and the quality of a row.

Names are the field's words with the unit last. Positive power is import: the customer takes energy from the grid.
"""

from dataclasses import dataclass
from enum import IntFlag, StrEnum
from typing import Final


class Kind(StrEnum):
    """What a batch carries. The kinds differ in worth, cadence and what may be evicted first."""

    ENERGY = "energy"
    POWER = "power"
    EVENTS = "events"


class Quality(IntFlag):
    """What is known against a row. 0 is good; a missing value is null, never a quality bit on a 0."""

    GOOD = 0
    ESTIMATED = 1
    BACKFILLED = 2
    STALE = 4
    CLOCK_SUSPECT = 8
    IMPLAUSIBLE = 16
    REVERSED = 32
    METER_ERROR = 64
    OFF_MARK = 128  # a true reading, but of ``gateway_at`` and not of the mark


@dataclass(frozen=True, slots=True)
class Quantity:
    """One measured quantity. ``obis`` is the C.D.E part of the OBIS code (IEC 62056-61)."""

    name: str
    kind: Kind
    obis: str

    @property
    def unit(self) -> str:
        return _UNITS.get(self.name.rpartition("_")[2], "")


_UNITS: Final = {"wh": "Wh", "varh": "varh", "w": "W", "var": "var", "v": "V", "a": "A", "hz": "Hz"}


# Registers at marks: integers in Wh and varh, because money is never a float.
ENERGY: Final = tuple(
    Quantity(name, Kind.ENERGY, obis)
    for name, obis in (
        ("energy_import_wh", "1.8.0"),
        ("energy_export_wh", "2.8.0"),
        ("reactive_import_varh", "3.8.0"),
        ("reactive_export_varh", "4.8.0"),
    )
)

# Instantaneous values: float32 is finer than any meter's class.
POWER: Final = tuple(
    Quantity(name, Kind.POWER, obis)
    for name, obis in (
        ("active_power_w", "16.7.0"),
        ("reactive_power_var", "131.7.0"),
        ("voltage_l1_v", "32.7.0"),
        ("voltage_l2_v", "52.7.0"),
        ("voltage_l3_v", "72.7.0"),
        ("current_l1_a", "31.7.0"),
        ("current_l2_a", "51.7.0"),
        ("current_l3_a", "71.7.0"),
        ("power_factor", "13.7.0"),
        ("frequency_hz", "14.7.0"),
    )
)

QUANTITIES: Final = {quantity.name: quantity for quantity in ENERGY + POWER}
ENERGY_NAMES: Final = tuple(quantity.name for quantity in ENERGY)
POWER_NAMES: Final = tuple(quantity.name for quantity in POWER)
