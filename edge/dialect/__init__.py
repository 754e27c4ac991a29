"""How the two protocols say the same things: registers at marks, the values of now, clocks, the relay.

A dialect asks through a client and decodes; failures rise as the exceptions of the layers below.
"""

from edge.dialect.answers import Dialect, ExpiredError, Mark, Snapshot, UnsupportedError, Values
from edge.dialect.dlt645 import Dlt645Dialect
from edge.dialect.modbus import ModbusDialect
from edge.model import Line
from protocols.clock import Clock

__all__ = ["Dialect", "ExpiredError", "Mark", "Snapshot", "UnsupportedError", "Values", "dialect"]


def dialect(line: Line, clock: Clock, password: str | None) -> Dialect:
    """``password``: of DL/T 645, 8 digits, the level first; without it no relay is moved and no clock written."""
    if line.protocol.startswith("dlt645"):
        return Dlt645Dialect(line, clock, password)
    return ModbusDialect(line, clock)
