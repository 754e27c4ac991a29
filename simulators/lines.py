"""Serial lines for tests and demos: a pty with the timing of a real bus, several meters on it, and faults to order.

A program opens ``SerialLine.path`` as it would open /dev/ttyUSB0. Bytes take bits / baud seconds each, in both
directions; a meter answers after its turnaround; who talks at the same time garbles one another. The speed a program
sets with termios counts: at another speed than the meter's both hear garbage, as the UARTs would sample it. A pty drops
the parity bit of its settings (Linux does so), so the client's parity is given here where it matters.
"""

import contextlib
import heapq
import itertools
import os
import selectors
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Final, Literal, TypeAlias

from msgspec import structs

from protocols import dlt645, modbus
from simulators.faults import Fault, Reply

# What a meter makes of the bytes it hears; an empty chunk says that the line fell silent.
Responder: TypeAlias = Callable[[bytes], bytes]
Parity: TypeAlias = Literal["N", "E", "O"]

BEIJING: Final = timezone(timedelta(hours=8))
SILENCE_CHARS: Final = 3.5  # V1.02 §2.5.1.1: what ends a frame
SILENCE_REAL_S: Final = 0.02  # an operating system may cut one write into two reads, so shorter pauses end nothing
_SPEEDS = {
    getattr(termios, f"B{baud}"): baud for baud in (300, 600, 1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200)
}


@dataclass(frozen=True, slots=True)
class Setting:
    """How a UART is set. ``8E1`` is 11 bits a character with the start bit, ``8N1`` is 10."""

    baud: int = 9600
    parity: Parity = "E"
    stop_bits: int = 1

    @property
    def char_bits(self) -> int:
        return 9 + (self.parity != "N") + self.stop_bits

    @property
    def char_s(self) -> float:
        return self.char_bits / self.baud


def overhear(raw: bytes, sent: Setting, heard: Setting) -> bytes:
    """What a UART set to ``heard`` makes of ``raw`` sent back to back with ``sent``; ``raw`` itself when they agree.

    A falling edge starts a character; each bit is sampled in its middle. Characters with a wrong parity or stop bit are
    passed on, as a terminal without INPCK does.
    """
    if sent == heard:
        return raw
    levels: list[int] = []
    for byte in raw:
        data = [byte >> i & 1 for i in range(8)]
        parity = {"N": [], "E": [sum(data) & 1], "O": [1 - (sum(data) & 1)]}[sent.parity]
        levels += [0, *data, *parity, *[1] * sent.stop_bits]
    end_s = len(levels) / sent.baud

    def level(at_s: float) -> int:
        return levels[int(at_s * sent.baud)] if at_s < end_s else 1

    out, at_s, step_s = bytearray(), 0.0, 1 / (16 * heard.baud)  # a UART looks 16 times a bit for the edge
    while at_s < end_s:
        if level(at_s):
            at_s += step_s
            continue
        out.append(sum(level(at_s + (1.5 + i) / heard.baud) << i for i in range(8)))
        at_s += (heard.char_bits - 0.5) / heard.baud  # the middle of the stop bit
        while at_s < end_s and not level(at_s):  # a break: wait for the line to rest
            at_s += step_s
    return bytes(out)


@dataclass(frozen=True, slots=True)
class Meter:
    """One meter on the bus. ``turnaround_s``: from the request's last bit to the reply's first."""

    answer: Responder
    setting: Setting = field(default_factory=Setting)
    turnaround_s: float = 0.02


class SerialLine:
    """A bus on a pty; a context manager that runs it in a thread.

    ``time_scale`` 100 makes a second of the line last 10 ms. ``client``: what the other end is set to; None takes its
    speed from termios and all else from the first meter. ``echoes``: the adapter hears itself. ``choose`` picks a fault
    for each reply; without it, ``order`` queues them.
    """

    def __init__(
        self,
        meters: Sequence[Meter],
        *,
        time_scale: float = 1.0,
        client: Setting | None = None,
        echoes: bool = False,
        choose: Callable[[Reply], Fault | None] | None = None,
    ) -> None:
        self._meters = list(meters)
        self._scale = time_scale
        self._client = client
        self.echoes = echoes
        self._ordered: deque[Fault | None] = deque()
        self._choose = choose or (lambda _reply: self._ordered.popleft() if self._ordered else None)
        self._master, self._slave = os.openpty()  # the slave stays open here: a client may come and go
        self._stop_read, self._stop_write = os.pipe()
        tty.setraw(self._slave)
        self._set_speed(self._meters[0].setting.baud if meters else 9600)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self.busy_s = 0.0  # time of the line taken by bytes, for its utilisation
        self.replies = 0
        self._free_s = 0.0  # until then the client's bytes are on the line
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._coming: deque[list[float]] = deque()  # [due_s, byte] for the client, by time
        self._silence_s: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"line {self.path}", daemon=True)

    def __enter__(self) -> "SerialLine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._stop_write < 0:
            return
        os.write(self._stop_write, b"x")
        if self._thread.is_alive():
            self._thread.join()
        for number in (self._master, self._slave, self._stop_read, self._stop_write):
            os.close(number)
        self._stop_write = -1

    def order(self, *faults: Fault | None) -> None:
        """The next replies suffer these, one each; None leaves a reply alone."""
        self._ordered.extend(faults)

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _now_s(self) -> float:
        return time.monotonic() * self._scale

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._master, selectors.EVENT_READ)
            selector.register(self._stop_read, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(self._wait_s()):
                    if key.fd == self._stop_read:
                        return
                    self._take(os.read(self._master, 4096))
                while self._events and self._events[0][0] <= self._now_s():
                    heapq.heappop(self._events)[2]()
                self._deliver()

    def _wait_s(self) -> float | None:
        dues = [self._events[0][0]] if self._events else []
        if self._coming:
            dues.append(self._coming[0][0])
        return max(0.0, (min(dues) - self._now_s()) / self._scale) if dues else None

    def _at(self, due_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (due_s, next(self._order), act))

    def _take(self, raw: bytes) -> None:
        """The client writes: its bytes are on the line until all their bits are through."""
        client = self._setting()
        begin_s = max(self._now_s(), self._free_s)
        self._free_s = begin_s + len(raw) * client.char_s
        self.busy_s += len(raw) * client.char_s
        raw = self._collide(raw, begin_s, client.char_s)
        if self.echoes:
            self._put(raw, begin_s, client.char_s)
        self._at(self._free_s, lambda: self._hear(raw, client))

    def _collide(self, raw: bytes, begin_s: float, char_s: float) -> bytes:
        """Bytes of meters that are on the line meanwhile spoil the client's, and are lost to it while it sends."""
        spoiled = bytearray(raw)
        kept: deque[list[float]] = deque()
        for due_s, byte in self._coming:
            index = int((due_s - begin_s) / char_s)
            if begin_s < due_s and index < len(raw):
                spoiled[index] &= int(byte)
            else:
                kept.append([due_s, byte])
        self._coming = kept
        return bytes(spoiled)

    def _hear(self, raw: bytes, client: Setting) -> None:
        for meter in self._meters:
            self._reply(meter, meter.answer(overhear(raw, client, meter.setting)), client)
        silence_s = max(SILENCE_CHARS * client.char_s, SILENCE_REAL_S * self._scale)
        due_s = self._silence_s = self._now_s() + silence_s
        self._at(due_s, lambda: self._fall_silent(due_s, client))

    def _fall_silent(self, due_s: float, client: Setting) -> None:
        if due_s != self._silence_s or self._free_s > self._now_s():
            return  # somebody has written since
        for meter in self._meters:
            self._reply(meter, meter.answer(b""), client)

    def _reply(self, meter: Meter, raw: bytes, client: Setting) -> None:
        if not raw:
            return
        self.replies += 1
        reply = Reply(raw)
        fault = self._choose(reply)
        if fault is not None:
            reply = fault(reply)
        begin_s = self._now_s() + meter.turnaround_s + reply.delay_s
        if reply.raw:
            setting = replace(meter.setting, baud=reply.baud) if reply.baud else meter.setting
            self._at(begin_s, lambda: self._send(reply.raw, begin_s, setting, client))

    def _send(self, raw: bytes, begin_s: float, setting: Setting, client: Setting) -> None:
        heard = overhear(raw, setting, client)
        self.busy_s += len(raw) * setting.char_s
        self._put(heard, begin_s, setting.char_s * len(raw) / max(1, len(heard)))

    def _put(self, raw: bytes, begin_s: float, char_s: float) -> None:
        """Bytes for the client; where another sender's byte is on the line at the time, both pull it down."""
        others = list(self._coming)
        for i, byte in enumerate(raw):
            due_s = begin_s + (i + 1) * char_s
            other = next((slot for slot in others if abs(slot[0] - due_s) < 0.9 * char_s), None)
            if other is None:
                self._coming.append([due_s, byte])
            else:
                other[1] = int(other[1]) & byte
        self._coming = deque(sorted(self._coming))

    def _deliver(self) -> None:
        now_s, due = self._now_s(), bytearray()
        while self._coming and self._coming[0][0] <= now_s:
            due.append(int(self._coming.popleft()[1]))
        if due:
            with contextlib.suppress(BlockingIOError):  # a client that does not read loses bytes, as with a UART
                os.write(self._master, due)

    def _setting(self) -> Setting:
        """What the client is set to."""
        if self._client is not None:
            return self._client
        speed = _SPEEDS.get(termios.tcgetattr(self._slave)[4])
        own = self._meters[0].setting if self._meters else Setting()
        return own if speed is None else replace(own, baud=speed)

    def _set_speed(self, baud: int) -> None:
        attributes = termios.tcgetattr(self._slave)
        attributes[4] = attributes[5] = next(code for code, speed in _SPEEDS.items() if speed == baud)
        termios.tcsetattr(self._slave, termios.TCSANOW, attributes)


# ---- meters of either protocol ---------------------------------------------------------------------------------------


def modbus_meter(unit: int, answer: Callable[[bytes], bytes], *, ascii: bool = False) -> Responder:
    """``answer`` makes the reply PDU of a request PDU. A broadcast is done and not answered."""
    decoder: modbus.SerialDecoder = modbus.AsciiDecoder() if ascii else modbus.RtuDecoder()
    encode = modbus.encode_ascii if ascii else modbus.encode_rtu

    def respond(chunk: bytes) -> bytes:
        out = b""
        for event in decoder.feed(chunk) if chunk else decoder.flush():
            if isinstance(event, modbus.Frame) and event.unit in (unit, modbus.BROADCAST):
                pdu = answer(event.pdu)
                out += encode(structs.replace(event, pdu=pdu)) if event.unit else b""
        return out

    return respond


def dlt645_meter(address: str, answer: Callable[[dlt645.Frame], dlt645.Frame | None]) -> Responder:
    """``answer`` makes the reply to a frame for ``address``, exact or abbreviated; None answers nothing."""
    decoder = dlt645.Decoder()

    def respond(chunk: bytes) -> bytes:
        out = b""
        for event in decoder.feed(chunk) if chunk else decoder.flush():
            if not isinstance(event, dlt645.Frame) or event.is_reply:
                continue
            if event.address == dlt645.BROADCAST:
                answer(event)  # done, and never answered
            elif dlt645.address_matches(event.address, address):
                reply = answer(event)
                out += dlt645.encode(reply) if reply is not None else b""
        return out

    return respond


# ---- meters that always say the same ---------------------------------------------------------------------------------


def steady_modbus(unit: str) -> Responder:
    """Every float32 at an even address is 0.5."""

    def answer(pdu: bytes) -> bytes:
        if pdu[0] not in (modbus.Function.READ_HOLDING, modbus.Function.READ_INPUT):
            return modbus.encode_exception(pdu[0], modbus.Fault.ILLEGAL_FUNCTION)
        address, count = modbus.decode_read(pdu)
        floats = modbus.encode_value(0.5, "float32") * (count // 2 + 2)
        return modbus.encode_read_reply(pdu[0], floats[2 * (address % 2) :][: 2 * count])

    return modbus_meter(int(unit), answer)


def steady_645(address: str) -> Responder:
    """Every number is 1 step; the clock is right, in Beijing."""

    def answer(request: dlt645.Frame) -> dlt645.Frame | None:
        if request.function == dlt645.Function.READ_ADDRESS:
            return dlt645.reply(request, address, dlt645.encode_address(address))
        di = request.di
        if request.function != dlt645.Function.READ or di is None:
            return dlt645.refuse(request, address, dlt645.Fault.OTHER)
        if di in (dlt645.DATE, dlt645.TIME):
            fields = "wdmy" if di == dlt645.DATE else "SMH"
            return dlt645.reply(request, address, dlt645.encode_time(datetime.now(UTC), fields, BEIJING))
        try:
            data = dlt645.encode_item(di, [1] * dlt645.ITEMS[di].count)
        except (KeyError, ValueError):
            return dlt645.refuse(request, address, dlt645.Fault.NO_SUCH_DATA)
        return dlt645.reply(request, address, data)

    return dlt645_meter(address, answer)
