"""`meterctl scan`: addresses told apart, families recognised, and the site file it begins, on ptys and real sockets."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.bus import Bus
from edge.model import Line, Protocol, SerialEndpoint, SerialSetting, TcpEndpoint
from gateway import finder
from gateway.config import Site, load
from gateway.finder import AnyFrame, Asker, BusAsker, Found, Note, Outcome, Progress, Step, Wanted, bound_s, scan
from gateway.lines import Described
from gateway.scan import Result, estimate, jobs_of, known_templates, meters_text, parse_units, site_text
from protocols import dlt645, modbus, templates
from protocols.clock import SystemClock
from protocols.templates import ModbusFamily
from simulators.lines import Meter, Responder, SerialLine, Setting, modbus_meter
from tests.gateway.onbus import document, family_meter, meter_645, meterctl, registers_of, running_agent, write_site

SDM630 = {
    "voltage_l1_v": 231.0, "voltage_l2_v": 229.5, "voltage_l3_v": 230.0, "frequency_hz": 50.01, "active_power_w": 1234.0
}  # fmt: skip
KNOWN = known_templates()


def described(
    *, device: str | None = None, host: str | None = None, port: int | None = None, protocols: tuple[Protocol, ...] = ()
) -> Described:
    return Described(device, host, port, protocols, (), (), 1, None)


def found_in(steps: Sequence[Step]) -> list[Found]:
    return [step for step in steps if isinstance(step, Found)]


def notes_in(steps: Sequence[Step]) -> str:
    return "\n".join(step.text for step in steps if isinstance(step, Note))


async def steps_of(asker: Asker, line: Line, wanted: Wanted) -> list[Step]:
    return [step async for step in scan(asker, line, wanted, KNOWN)]


def on_bus(line: Line, wanted: Wanted) -> list[Step]:
    async def run() -> list[Step]:
        bus = Bus(line, SystemClock())
        try:
            return await steps_of(BusAsker(bus, line), line, wanted)
        finally:
            await bus.close()

    return asyncio.run(run())


# ---- DL/T 645 --------------------------------------------------------------------------------------------------------


class WiredAnd:
    """Meters that answer almost at once, each one byte later: a 0 of one pulls the line down for all."""

    def __init__(self, meters: Sequence[Responder]) -> None:
        self._meters = meters
        self.asked = 0

    async def ask(self, request: AnyFrame, *, all_answers: bool = False) -> Outcome:
        assert isinstance(request, dlt645.Frame)
        self.asked += 1
        heard = [meter(dlt645.encode(request)) for meter in self._meters]
        replies = [b"\xff" * i + reply for i, reply in enumerate(heard) if reply]
        size = max(map(len, replies), default=0)
        raw = bytearray(b"\xff" * size)
        for reply in replies:
            for i, byte in enumerate(reply):
                raw[i] &= byte
        decoder = dlt645.Decoder()
        frames = [it for it in decoder.feed(bytes(raw)) + decoder.flush() if isinstance(it, dlt645.Frame)]
        answers = [frame for frame in frames if dlt645.is_answer(request, frame)]
        return Outcome(answers[0] if answers else None, bytes(raw), "" if answers else "no answer")


LINE_645 = Line("x", "dlt645-2007", TcpEndpoint("127.0.0.1", 1))
numbers = st.sets(st.integers(0, 10**12 - 1).map(lambda number: f"{number:012d}"), min_size=1, max_size=5)
alike = st.sets(st.integers(0, 99).map(lambda number: f"{number:02d}0000112233"), min_size=2, max_size=4)


@settings(max_examples=30, deadline=None)
@given(numbers | alike)
def test_meters_that_talk_at_once_are_told_apart(addresses: set[str]) -> None:
    """Also such as differ in their first two digits alone, six questions deep."""
    asker = WiredAnd([meter_645(address) for address in addresses])
    steps = asyncio.run(steps_of(asker, LINE_645, Wanted()))
    assert {it.address for it in found_in(steps)} == addresses
    assert len(found_in(steps)) == len(addresses)
    assert asker.asked < 600 * len(addresses)


def test_two_meters_with_one_address_are_told_so() -> None:
    asker = WiredAnd([meter_645("000000000007", energy=5), meter_645("000000000007", energy=9_999_999)])
    steps = asyncio.run(steps_of(asker, LINE_645, Wanted()))
    assert "two meters with this one address" in notes_in(steps)


def test_collisions_on_a_serial_line_are_split_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "QUESTIONS_MAX", 7)
    setting = Setting(19200, "E")
    meters = [Meter(meter_645("000000000001", phases=1), setting), Meter(meter_645("999900000002"), setting)]
    with SerialLine(meters) as bus:
        line = Line("x", "dlt645-2007", SerialEndpoint(bus.path, SerialSetting(19200, "N")), 0.3, 0.05)
        steps = on_bus(line, Wanted())
    single, three = sorted(found_in(steps), key=lambda it: it.address)
    assert (single.address, single.phases) == ("000000000001", 1)
    assert single.candidates[0].template == "dlt645-2007-single-phase"
    assert "import 1234.56 kWh" in single.says and "voltage B refused: no_requested_data (0x02)" in single.says
    assert (three.address, three.phases) == ("999900000002", 3)
    assert three.candidates[0].template == "dlt645-2007-three-phase"
    assert "several meters answer at once" in notes_in(steps)
    assert "stopped after 7 questions" in notes_in(steps)


def test_a_lone_meter_of_the_old_edition_takes_one_question() -> None:
    with SerialLine([Meter(meter_645("000000000042", edition="1997"), Setting(9600, "E"))]) as bus:
        line = Line("x", "dlt645-1997", SerialEndpoint(bus.path, SerialSetting(9600, "N")), 0.3, 0.05)
        steps = on_bus(line, Wanted())
    (it,) = found_in(steps)
    assert (it.address, it.protocol, it.phases) == ("000000000042", "dlt645-1997", 3)
    assert it.candidates[0].template.startswith("dlt645-1997")
    assert sum(isinstance(step, Progress) for step in steps) == 1


# ---- Modbus ----------------------------------------------------------------------------------------------------------


def family(name: str) -> ModbusFamily:
    template = templates.load(name)
    assert isinstance(template, ModbusFamily)
    return template


def on_tcp(answer: Callable[[modbus.Frame], bytes], units: tuple[int, ...]) -> list[Step]:
    """Scan a Modbus TCP server on loopback."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = modbus.TcpDecoder()
        with suppress(asyncio.CancelledError):  # the test ends with the connection open
            while chunk := await reader.read(1024):
                for frame in decoder.feed(chunk):
                    assert isinstance(frame, modbus.Frame)
                    writer.write(modbus.encode(modbus.Frame(frame.transaction, frame.unit, answer(frame))))
        writer.close()

    async def run() -> list[Step]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        line = Line("x", "modbus-tcp", TcpEndpoint("127.0.0.1", server.sockets[0].getsockname()[1]))
        bus = Bus(line, SystemClock())
        try:
            return await steps_of(BusAsker(bus, line), line, Wanted(units))
        finally:
            await bus.close()
            server.close()

    return asyncio.run(run())


def gateway_of(meters: Mapping[int, Callable[[bytes], bytes]]) -> Callable[[modbus.Frame], bytes]:
    """Answers for a meter that is not there as gateways do."""

    def answer(frame: modbus.Frame) -> bytes:
        if frame.unit in meters:
            return meters[frame.unit](frame.pdu)
        return modbus.encode_exception(frame.pdu[0], modbus.Fault.GATEWAY_TARGET_FAILED_TO_RESPOND)

    return answer


def test_behind_a_gateway_its_own_exceptions_are_no_meters_and_families_are_known_by_what_they_say() -> None:
    pac = registers_of(family("siemens-pac3200"), SDM630, ("Siemens AG", "SENTRON PAC3200", "V2"))
    sdm = registers_of(family("eastron-sdm630"), SDM630, ())
    steps = on_tcp(gateway_of({2: pac, 9: sdm}), tuple(range(1, 12)))
    first, second = found_in(steps)
    assert (first.address, first.candidates[0].template) == ("2", "siemens-pac3200")
    assert first.candidates[0].reasons[0] == "says it is Siemens AG, SENTRON PAC3200, V2"
    assert (second.address, second.candidates[0].template) == ("9", "eastron-sdm630")
    assert second.says == ("does not say who it is (43/14)",)
    assert "voltage_l1_v 231 lies in 30 to 500" in second.candidates[0].reasons
    assert not any(candidate.template.startswith("siemens") for candidate in second.candidates)


@pytest.mark.parametrize("name", [template.name for template in KNOWN if isinstance(template, ModbusFamily)])
def test_every_family_is_recognised_by_its_own_registers(name: str) -> None:
    steps = on_tcp(gateway_of({1: registers_of(family(name), SDM630, ())}), (1,))
    (it,) = found_in(steps)
    # Tables of one maker may share their registers; then several fit, and the meter itself must decide.
    assert name in [candidate.template for candidate in it.candidates]


def test_a_device_that_ignores_the_unit_is_one_meter() -> None:
    sdm = registers_of(family("eastron-sdm630"), SDM630, ())
    steps = on_tcp(lambda frame: sdm(frame.pdu), tuple(range(1, 20)))
    assert [it.address for it in found_in(steps)] == ["1"]
    assert "one meter that ignores the number" in notes_in(steps)


def test_what_no_table_fits_is_found_all_the_same() -> None:
    steps = on_tcp(gateway_of({5: lambda pdu: modbus.encode_exception(pdu[0], modbus.Fault.ILLEGAL_FUNCTION)}), (4, 5))
    (it,) = found_in(steps)
    assert it.address == "5" and it.candidates == ()
    assert "# template = " in meters_text([it], "line-1", set())


def test_two_meters_of_one_number_are_noise_that_is_told() -> None:
    others = {**SDM630, "voltage_l1_v": 222.2}
    setting = Setting(19200, "N")
    # Their answers to the first question differ, so that they garble one another.
    one = Meter(_loud(3, bytes.fromhex("0304 00F1 0055")), setting)
    two = Meter(_loud(3, bytes.fromhex("0304 0F00 55AA")), setting)
    three = Meter(family_meter(4, "eastron-sdm630", others), setting)
    with SerialLine([one, two, three]) as bus:
        line = Line("x", "modbus-rtu", SerialEndpoint(bus.path, SerialSetting(19200, "N")), 0.25, 0.05)
        steps = on_bus(line, Wanted((3, 4)))
    assert [it.address for it in found_in(steps)] == ["4"]
    assert "asked for unit 3, something answers that is no frame" in notes_in(steps)


def _loud(unit: int, pdu: bytes) -> Responder:
    return modbus_meter(unit, lambda _: pdu)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_a_scan_begins_a_site_file_that_check_takes(tmp_path: Path) -> None:
    out = tmp_path / "site.toml"
    setting = Setting(9600, "N")
    with SerialLine([Meter(family_meter(3, "eastron-sdm630", SDM630), setting)]) as bus:
        where = ["--device", bus.path, "--protocol", "modbus-rtu", "--baud", "4800", "--baud", "9600", "--parity", "N"]
        done = meterctl("scan", *where, "--units", "2-4", "--write", str(out))
        again = meterctl("scan", *where, "--write", str(out))
    assert done.returncode == 0, done.stderr
    assert "modbus-rtu: 3 units × 2 speeds: at most" in done.stderr
    assert "3  modbus-rtu, 9600 8N1, 3-phase" in done.stdout and "1. eastron-sdm630: " in done.stdout
    assert again.returncode == 1 and "exists already and is left as it is" in again.stderr
    checked = load(out, {}, offline=True)
    assert isinstance(checked, Site), checked
    ((line, (meter,)),) = checked.lines
    assert line.endpoint == SerialEndpoint(bus.path, SerialSetting(9600, "N"))
    assert (meter.address, meter.template.name) == ("3", "eastron-sdm630")


def test_through_the_agent_only_at_the_lines_own_setting(tmp_path: Path) -> None:
    setting = 'protocol = "dlt645-2007"\nbaud = 9600\nparity = "N"'
    with SerialLine([Meter(meter_645("000000000007"), Setting(9600, "E"))]) as bus:
        site = write_site(tmp_path, bus.path, {"known": "000000000009"}, setting=setting, template="dlt645-2007")
        with running_agent(site) as pid:
            done = meterctl("scan", str(site), "--json")
    assert done.returncode == 0, done.stderr
    assert f"through the agent running as pid {pid}, at the setting of line east (dlt645-2007, 9600 8N1)" in done.stderr
    assert f"for other settings: kill -INT {pid}" in done.stderr
    (it,) = document(done)["found"]
    assert (it["address"], it["phases"]) == ("000000000007", 3)


def test_nobody_there_is_told_with_what_to_check() -> None:
    with SerialLine([]) as bus:
        where = ["--device", bus.path, "--protocol", "dlt645-2007", "--baud", "9600", "--parity", "N"]
        done = meterctl("scan", *where, "--timeout", "0.1")
    assert done.returncode == 1
    assert "A and B (swapped?)" in done.stderr and "meterctl sniff" in done.stderr


# ---- on paper --------------------------------------------------------------------------------------------------------


def test_without_options_the_usual_settings_are_tried_and_the_time_is_told_before() -> None:
    jobs = jobs_of(described(device="/dev/ttyUSB0"))
    assert str(jobs[0]) == "dlt645-2007 at 2400 8E1"
    assert len(jobs) == 5 + 5 + 6 * 2
    told = estimate(jobs, Wanted())
    assert "modbus-rtu: 247 units × 6 speeds × 2 parities: at most" in told
    assert told.endswith("narrow with --protocol, --baud, --parity, --units")
    assert [str(job) for job in jobs_of(described(host="192.0.2.7"))] == ["modbus-tcp"]
    over = jobs_of(described(host="192.0.2.7", port=4196))
    assert [str(job) for job in over] == ["dlt645-2007", "dlt645-1997", "modbus-rtu-over-tcp", "modbus-tcp"]


def test_the_time_that_is_told_holds() -> None:
    """Silence costs what the bound says, and no more: nobody is there, so every question runs into its timeout."""
    with SerialLine([]) as bus:
        line = Line("x", "modbus-rtu", SerialEndpoint(bus.path, SerialSetting(19200, "N")), 0.1, 0.05)
        wanted = Wanted(tuple(range(1, 11)))

        async def timed() -> float:
            loop = asyncio.get_running_loop()
            it = Bus(line, SystemClock())
            start = loop.time()
            assert found_in(await steps_of(BusAsker(it, line), line, wanted)) == []
            await it.close()
            return loop.time() - start

        took_s = asyncio.run(timed())
    # A loaded machine may be late; a bound that is wrong by half would still show.
    assert 0.5 * bound_s(line, wanted) < took_s < 1.5 * bound_s(line, wanted) + 1.0


def test_units_are_given_as_people_write_them() -> None:
    assert parse_units("1-3, 40,2") == (1, 2, 3, 40)
    for wrong in ("0", "248", "a", "3-1", ""):
        with pytest.raises(click.BadParameter):
            parse_units(wrong)


def test_a_site_text_has_a_line_for_each_setting() -> None:
    def meter(protocol: str, setting: str, address: str) -> Found:
        candidates = (finder.Candidate("dlt645-2007", ("speaks it",)),)
        return Found(protocol=protocol, setting=setting, address=address, says=(), candidates=candidates)

    result = Result([meter("dlt645-2007", "", "000000000001"), meter("dlt645-2007", "", "000000000002")])
    text = site_text(result, described(host="192.0.2.7", port=4196))
    assert text.count("[[line]]") == 1 and text.count("[[meter]]") == 2 and "port = 4196" in text
    assert meters_text(result.found, "east", {"000000000001"}).count("[[meter]]") == 1
