"""Which meters answer on a line, and what they are.

Modbus is asked unit by unit. DL/T 645 is asked who is there; where several answer at once their frames garble, and the
address is split: AA stands for "any" in front of the last two digits, then of the last four, until each is alone.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Protocol, TypeAlias

import msgspec

from edge import budget
from edge.bus import Bus
from edge.model import Line, PollFailure, Priority, Reason, TapEvent
from edge.model import Protocol as LineProtocol
from edge.plan import PlanError, Span, decode, plan
from protocols import dlt645, modbus, templates
from protocols.dlt645 import edition1997
from protocols.framing import FrameError, Garbage, MeterError
from protocols.templates import Dlt645Meter, ModbusFamily, Template

AnyFrame: TypeAlias = dlt645.Frame | modbus.Frame

# Questions to find meters on one line, where many share their last digits; a meter is named with --address then.
QUESTIONS_MAX: Final = 3_000
PLAUSIBLE_MAX: Final = 5  # candidates told of one meter
ADAPTER_S: Final = 0.03
QUARANTINE_S: Final = 0.05  # every question has another address, so that a late answer is none to the next
# One that ignores the number answers to every unit; that many alike are taken for one.
ALIKE_MIN: Final = 5


class Wanted(msgspec.Struct, frozen=True):
    """``addresses``: DL/T 645 meters to ask by name, on top of asking who is there."""

    units: tuple[int, ...] = tuple(range(1, modbus.UNIT_MAX + 1))
    addresses: tuple[str, ...] = ()


class Candidate(msgspec.Struct, frozen=True):
    """A template that fits, and why."""

    template: str
    reasons: tuple[str, ...]


class Progress(msgspec.Struct, tag_field="step", tag="progress", frozen=True):
    """``total`` grows where addresses must be split."""

    done: int
    total: int
    doing: str


class Found(msgspec.Struct, tag_field="step", tag="found", frozen=True, kw_only=True):
    """A meter. ``candidates``: the likeliest first."""

    protocol: str
    setting: str
    address: str
    says: tuple[str, ...]
    phases: int | None = None
    candidates: tuple[Candidate, ...] = ()


class Note(msgspec.Struct, tag_field="step", tag="note", frozen=True):
    """What was heard and is no meter."""

    text: str


Step: TypeAlias = Progress | Found | Note


class ScanError(RuntimeError):
    """The line cannot be asked; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``raw``: all bytes that came after the question. ``detail``: why there is no ``answer``."""

    answer: AnyFrame | None
    raw: bytes = b""
    detail: str = ""


class Asker(Protocol):
    async def ask(self, request: AnyFrame, *, all_answers: bool = False) -> Outcome:
        """``all_answers``: several may answer, so wait for the others too. Raises ScanError."""
        ...


class BusAsker:
    """Asks through a bus, and listens to what comes besides the answer."""

    def __init__(self, bus: Bus, line: Line) -> None:
        self._bus = bus
        self._line = line
        self._tail = b""
        self._raw = bytearray()
        self._is_ours = False

    async def ask(self, request: AnyFrame, *, all_answers: bool = False) -> Outcome:
        self._tail = _encode(self._line.protocol, request)
        self._is_ours = False
        self._raw.clear()
        untap = self._bus.tap(self._hear)
        try:
            answer = await self._bus.ask(request, meter_key="scan", priority=Priority.SCAN)
            if isinstance(answer, PollFailure) and answer.reason is Reason.LINK_DOWN:
                raise ScanError(answer.detail)
            if all_answers and self._raw:
                await asyncio.sleep(self._line.read_timeout_s)
        finally:
            untap()
        if isinstance(answer, PollFailure):
            return Outcome(None, bytes(self._raw), answer.detail)
        return Outcome(answer, bytes(self._raw))

    def _hear(self, event: TapEvent) -> None:
        if event.direction == "out":
            # Through a running agent others are asked before and after; what they answer is none of ours.
            self._is_ours = event.raw.endswith(self._tail)
            if self._is_ours:
                self._raw.clear()
        elif self._is_ours:
            self._raw += event.raw


def _encode(protocol: LineProtocol, request: AnyFrame) -> bytes:
    """How the question ends on the wire."""
    if isinstance(request, dlt645.Frame):
        return dlt645.encode(request, preamble=0)
    if protocol == "modbus-tcp":  # the client numbers it
        return bytes((request.unit,)) + request.pdu
    return modbus.encode_ascii(request) if protocol == "modbus-ascii" else modbus.encode_rtu(request)


async def scan(
    asker: Asker, line: Line, wanted: Wanted, known: Sequence[Template]
) -> AsyncGenerator[Progress | Found | Note, None]:
    """One line at one setting. ``known``: the templates to recognise meters by."""
    setting = str(line.setting) if line.setting else ""
    if line.protocol.startswith("dlt645"):
        edition: dlt645.Edition = "1997" if line.protocol == "dlt645-1997" else "2007"
        steps = Scan645(asker, edition, setting, wanted, known).run()
    else:
        families = [template for template in known if isinstance(template, ModbusFamily)]
        steps = ScanModbus(asker, line, setting, wanted, families).run()
    try:
        async for step in steps:
            yield step
    finally:
        await steps.aclose()


# ---- how long it takes -----------------------------------------------------------------------------------------------


def question_s(line: Line, request: AnyFrame) -> float:
    """What a question that nobody answers takes at most."""
    rest_s = 0.0 if line.protocol == "modbus-tcp" else line.quarantine_s
    if line.setting is None:
        return line.read_timeout_s + rest_s
    octets = budget.request_bytes(line.protocol, request) + budget.reply_bytes(line.protocol, request)
    silence_s = budget.silence_s(line.protocol, line.setting)
    return octets * line.setting.char_s + line.read_timeout_s + rest_s + silence_s + ADAPTER_S


def bound_s(line: Line, wanted: Wanted) -> float:
    """To look for meters where none is. Those that are there are answered for sooner, then asked what they are."""
    if line.protocol.startswith("dlt645"):
        edition: dlt645.Edition = "1997" if line.protocol == "dlt645-1997" else "2007"
        questions = [*_who_is_there(edition), *(read_energy(edition, address) for address in wanted.addresses)]
        return sum(question_s(line, question) for question in questions)
    return len(wanted.units) * question_s(line, _presence(1))


# ---- DL/T 645 --------------------------------------------------------------------------------------------------------

_ENERGY: Final[dict[dlt645.Edition, int]] = {"2007": 0x00010000, "1997": 0x9010}
_VOLTAGES: Final[dict[dlt645.Edition, tuple[int, ...]]] = {
    "2007": (0x02010100, 0x02010200, 0x02010300),
    "1997": (0xB611, 0xB612, 0xB613),
}


def _read(edition: dlt645.Edition, address: str, di: int) -> dlt645.Frame:
    return edition1997.read(address, di) if edition == "1997" else dlt645.read(address, di)


def read_energy(edition: dlt645.Edition, address: str) -> dlt645.Frame:
    return _read(edition, address, _ENERGY[edition])


def _who_is_there(edition: dlt645.Edition) -> tuple[dlt645.Frame, ...]:
    """1997 has no function to read an address."""
    any_energy = read_energy(edition, dlt645.WILDCARD)
    return (any_energy,) if edition == "1997" else (dlt645.read_address(), any_energy)


def abbreviated(digits: str) -> str:
    """The address that stands for all meters whose number ends in ``digits``, two for each byte."""
    return digits.rjust(12, "A")


class Scan645:
    """Bytes are split whole: AAH stands for a byte, and a byte holds two decimal digits."""

    def __init__(
        self, asker: Asker, edition: dlt645.Edition, setting: str, wanted: Wanted, known: Sequence[Template]
    ) -> None:
        self._asker = asker
        self._edition = edition
        self._protocol = f"dlt645-{edition}"
        self._setting = setting
        self._wanted = wanted
        self._known = known
        self._found: dict[str, bool] = {}  # address → whether it was told already
        self._done = 0
        self._total = len(wanted.addresses) + len(_who_is_there(edition))

    async def run(self) -> AsyncGenerator[Progress | Found | Note, None]:
        for address in self._wanted.addresses:
            yield self._progress(address)
            outcome = await self._asker.ask(read_energy(self._edition, address))
            if outcome.answer is not None:
                yield await self._describe(address)
        collided = False
        for question in _who_is_there(self._edition):
            yield self._progress("who is there?")
            outcome = await self._asker.ask(question, all_answers=True)
            # Both are asked: frames that lie upon each other bit by bit can look like one of them, hardly twice.
            collided |= self._hear(outcome, "")
        for step in await self._tell():
            yield step
        if not collided:
            return
        yield Note("several meters answer at once: their addresses are told apart by their last digits")
        groups = [""]  # those in which several answered
        apart = 0
        while groups:
            digits = groups.pop(0)
            if len(digits) == 12:
                yield Note(f"{digits}: two meters with this one address; disconnect one and give it another")
                continue
            self._total = self._done + 100 * (1 + len(groups))
            for number in range(100):
                ending = f"{number:02d}{digits}"
                if self._done >= QUESTIONS_MAX:
                    yield Note(f"stopped after {self._done} questions; name the other meters with --address")
                    return
                yield self._progress(abbreviated(ending))
                question = read_energy(self._edition, abbreviated(ending))
                outcome = await self._asker.ask(question, all_answers=True)
                if self._hear(outcome, ending):
                    groups.append(ending)
                apart += bool(outcome.raw)
                for step in await self._tell():
                    yield step
        if not apart:
            yield Note("no meter answers to a part of its address; name the meters with --address")

    def _progress(self, doing: str) -> Progress:
        self._done += 1
        return Progress(self._done, max(self._done, self._total), doing)

    def _hear(self, outcome: Outcome, digits: str) -> bool:
        """Note who is heard in clear; whether several spoke at once."""
        decoder = dlt645.Decoder()
        events = decoder.feed(outcome.raw) + decoder.flush()
        frames = [event for event in events if isinstance(event, dlt645.Frame) and event.is_reply]
        addresses = {address for frame in frames if (address := _own_address(frame)).endswith(digits)}
        for address in addresses:
            self._found.setdefault(address, False)
        return len(addresses) > 1 or any(isinstance(event, Garbage) for event in events)

    async def _tell(self) -> list[Found]:
        new = sorted(address for address, is_told in self._found.items() if not is_told)
        return [await self._describe(address) for address in new]

    async def _describe(self, address: str) -> Found:
        self._found[address] = True
        energy = await self._value(address, _ENERGY[self._edition])
        voltages = [await self._value(address, di) for di in _VOLTAGES[self._edition]]
        answered = sum(voltage.is_number for voltage in voltages)
        # Three wires and two elements have no voltage B.
        phases = 3 if answered > 1 else 1 if voltages[0].is_number else None
        return Found(
            protocol=self._protocol,
            setting=self._setting,
            address=address,
            phases=phases,
            says=(
                f"import {energy.text}",
                *(f"voltage {name} {voltage.text}" for name, voltage in zip("ABC", voltages, strict=True)),
            ),
            candidates=self._candidates(phases),
        )

    async def _value(self, address: str, di: int) -> "_Said":
        request = _read(self._edition, address, di)
        outcome = await self._asker.ask(request)
        if not isinstance(outcome.answer, dlt645.Frame):
            return _Said(f"not answered ({outcome.detail})")
        try:
            data = dlt645.decode_reply(request, outcome.answer)
        except (MeterError, FrameError) as error:
            return _Said(str(error).removeprefix("the meter "))
        found = dlt645.decode_data(self._edition, di, data)
        value = found.values[0] if found.values else None
        if isinstance(value, Decimal):
            return _Said(f"{value} {found.item.unit if found.item else ''}".strip(), is_number=True)
        return _Said(
            "null" if value is None and not found.flag else found.flag or f"{data.hex(' ').upper()}, no number"
        )

    def _candidates(self, phases: int | None) -> tuple[Candidate, ...]:
        """The tables of the edition for so many phases; first those that are made for that number alone."""
        said = f"{phases}-phase by the voltages that answer" if phases else "the phases are not known"
        fitting = [
            template.name
            for template in self._known
            if isinstance(template, Dlt645Meter)
            and templates.protocol(template) == self._protocol
            and phases in (None, template.phases)
        ]
        fitting.sort(key=lambda name: (not (phases and name.endswith("-phase")), len(name), name))
        return tuple(Candidate(name, (f"speaks {self._protocol}", said)) for name in fitting[:PLAUSIBLE_MAX])


@dataclass(frozen=True, slots=True)
class _Said:
    """A value, or why there is none."""

    text: str
    is_number: bool = False


def _own_address(frame: dlt645.Frame) -> str:
    """Some meters answer the wildcard with the wildcard; what they say to 13H is their address all the same."""
    if frame.function == dlt645.Function.READ_ADDRESS and len(frame.data) == 6:
        return dlt645.decode_address(frame.data)
    return frame.address if frame.address.isdecimal() else ""


# ---- Modbus ----------------------------------------------------------------------------------------------------------

# An exception that a gateway makes, not a meter behind it.
_NOBODY: Final = (modbus.Fault.GATEWAY_PATH_UNAVAILABLE, modbus.Fault.GATEWAY_TARGET_FAILED_TO_RESPOND)


def _presence(unit: int) -> modbus.Frame:
    """Any meter answers this, if only with an exception; two registers, since some give no half of a value."""
    return modbus.Frame(0, unit, modbus.encode_read(modbus.Function.READ_HOLDING, 0, 2))


def _noise_text(noise: Mapping[int, bytes]) -> str:
    units = list(noise)
    some = ", ".join(map(str, units[:5])) + (", …" if len(units) > 5 else "")
    raw = noise[units[0]][:16].hex(" ").upper()
    return (
        f"asked for unit {some}, something answers that is no frame ({raw}): "
        "two meters of one number, another speed or parity, or another protocol"
    )


class ScanModbus:
    def __init__(
        self, asker: Asker, line: Line, setting: str, wanted: Wanted, families: Sequence[ModbusFamily]
    ) -> None:
        self._asker = asker
        self._line = line
        self._setting = setting
        self._units = wanted.units
        self._families = families

    async def run(self) -> AsyncGenerator[Progress | Found | Note, None]:
        there: dict[int, bytes] = {}
        noise: dict[int, bytes] = {}
        for done, unit in enumerate(self._units, 1):
            yield Progress(done, len(self._units), f"unit {unit}")
            outcome = await self._asker.ask(_presence(unit))
            if isinstance(outcome.answer, modbus.Frame):
                pdu = outcome.answer.pdu
                if not (pdu[0] & 0x80 and pdu[1:2] and pdu[1] in _NOBODY):
                    there[unit] = pdu
            elif outcome.raw:
                noise[unit] = outcome.raw
        if ALIKE_MIN <= len(there) == len(self._units) and len(set(there.values())) == 1:
            first = self._units[0]
            yield Note(f"every unit gives the same answer: one meter that ignores the number; unit {first} is told")
            there = {first: there[first]}
        if noise:
            yield Note(_noise_text(noise))
        for unit in there:
            yield await self._describe(unit)

    async def _describe(self, unit: int) -> Found:
        says = await self._identify(unit)
        answers: dict[Span, bytes | str] = {}
        judged = [await self._judge(family, unit, says, answers) for family in self._families]
        fitting = [it for it in judged if it is not None]
        fitting.sort(key=lambda it: it.score, reverse=True)
        best = fitting[0] if fitting else None
        return Found(
            protocol=self._line.protocol,
            setting=self._setting,
            address=str(unit),
            says=tuple(says) or ("does not say who it is (43/14)",),
            phases=best.phases if best else None,
            candidates=tuple(it.candidate for it in fitting[:PLAUSIBLE_MAX]),
        )

    async def _identify(self, unit: int) -> list[str]:
        """What the meter calls itself; many know no function 43."""
        texts: list[str] = []
        first: int | None = 0
        while first is not None and len(texts) < 8:
            request = modbus.Frame(0, unit, modbus.encode_identify(modbus.Access.BASIC, first))
            outcome = await self._asker.ask(request)
            if not isinstance(outcome.answer, modbus.Frame):
                break
            try:
                reply = modbus.decode_identify_reply(outcome.answer.pdu)
            except (MeterError, FrameError):
                break
            texts += [text for raw in reply.objects.values() if (text := raw.decode("ascii", "replace").strip("\0 "))]
            first = reply.next_object
        return texts

    async def _judge(
        self, family: ModbusFamily, unit: int, says: Sequence[str], answers: dict[Span, bytes | str]
    ) -> "_Judgement | None":
        """By its probes, all of which must hold; then by how much of its table answers, and by what the meter says."""
        probed = frozenset(probe.register for probe in family.probe)
        values = await self._values(family, unit, probed, answers)
        if isinstance(values, str):
            return None
        reasons: list[str] = []
        for probe in family.probe:
            value = values[probe.register]
            if not isinstance(value, int | float) or not probe.min <= value <= probe.max:
                return None
            reasons.append(f"{probe.register} {value:.5g} lies in {probe.min:g} to {probe.max:g}")
        told = " ".join(says).casefold()
        by_maker = family.maker.casefold() in told
        by_model = any(model.casefold() in told for model in family.models)
        if by_maker or by_model:
            reasons.insert(0, f"says it is {', '.join(says)}")
        rest = await self._values(family, unit, frozenset(it.quantity for it in family.register), answers)
        count = 0
        if isinstance(rest, str):
            reasons.append(f"but not all of its table answers: {rest}")
        else:
            count = sum(value is not None for value in rest.values())
            reasons.append(f"all of its table answers, {count} of {len(rest)} with a value")
        score = (by_model, by_maker, not isinstance(rest, str), len(family.probe), count)
        return _Judgement(score, family.phases, Candidate(family.name, tuple(reasons)))

    async def _values(
        self, family: ModbusFamily, unit: int, keys: frozenset[str], answers: dict[Span, bytes | str]
    ) -> dict[str, float | int | str | None] | str:
        """Or why they cannot be read. ``answers``: what was asked of this meter before."""
        try:
            made = plan(family, keys)
        except PlanError as error:
            return str(error)
        raws: list[bytes] = []
        for span in made.requests:
            if span not in answers:
                answers[span] = await self._registers(unit, span)
            answer = answers[span]
            if isinstance(answer, str):
                return f"0x{span.address:04X} {answer}"
            raws.append(answer)
        try:
            return decode(family, made, raws)
        except FrameError as error:
            return str(error)

    async def _registers(self, unit: int, span: Span) -> bytes | str:
        request = modbus.Frame(0, unit, modbus.encode_read(span.function, span.address, span.count))
        outcome = await self._asker.ask(request)
        if not isinstance(outcome.answer, modbus.Frame):
            return "is not answered"
        try:
            return modbus.decode_read_reply(outcome.answer.pdu, span.count)
        except (MeterError, FrameError) as error:
            return str(error).removeprefix("the meter ")


@dataclass(frozen=True, slots=True)
class _Judgement:
    """``score``: what speaks for the family, the weightiest first."""

    score: tuple[int, ...]
    phases: int
    candidate: Candidate
