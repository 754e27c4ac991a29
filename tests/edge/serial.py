"""Serial lines with meters whose every value tells whose it is, and what it is."""

import struct
from collections.abc import Callable

from protocols import dlt645, modbus


def registers(unit: int) -> Callable[[bytes], bytes]:
    """Register n of this meter holds 256 × unit + n; any write is accepted."""

    def answer(pdu: bytes) -> bytes:
        if pdu[0] in (modbus.Function.WRITE_ONE, modbus.Function.WRITE_MANY):
            return modbus.encode_write_reply(pdu)
        address, count = modbus.decode_read(pdu)
        return modbus.encode_read_reply(
            pdu[0], struct.pack(f">{count}H", *(256 * unit + address + i for i in range(count)))
        )

    return answer


def items(number: int) -> Callable[[dlt645.Frame], dlt645.Frame]:
    """An item of this meter holds the number in every member; so does one of the 1997 edition."""

    def answer(request: dlt645.Frame) -> dlt645.Frame:
        di = request.di
        assert di is not None
        item = dlt645.items(request.edition)[di]
        assert item.size is not None
        size = item.size // item.count
        data = dlt645.encode_bcd(number, size) * item.count
        return dlt645.reply(request, f"{number:012d}", data)

    return answer
