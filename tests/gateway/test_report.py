"""``meterctl report``: what is judged, what the page holds, and where the facts come from, on real lines."""

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from gateway.queue import QUEUE_FILE, Queue
from gateway.report.judge import duration, judge, nominal_v
from gateway.report.model import Clock, Day, Exchange, LineFacts, MeterFacts, QueueFacts, Report, Text, Value
from gateway.report.page import render
from protocols import dlt645
from protocols.quantities import QUANTITIES, Kind
from protocols.uplink import Row
from simulators.lines import Meter, Responder, SerialLine, Setting, dlt645_meter
from tests.conftest import IN_CI
from tests.console.conftest import ARGUMENTS, CHROMIUM
from tests.gateway.onbus import family_meter, meterctl, running_agent, write_site

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NOW = datetime(2026, 11, 22, 9, 40, tzinfo=UTC)
HEALTHY = {
    "energy_import_wh": 12_345_670.0,
    "voltage_l1_v": 230.1, "voltage_l2_v": 229.8, "voltage_l3_v": 231.0,
    "current_l1_a": 10.0, "current_l2_a": 9.0, "current_l3_a": 11.0,
    "active_power_w": 6_600.0, "power_factor": 0.955, "frequency_hz": 50.01,
}  # fmt: skip


def values(**changed: float | None) -> tuple[Value, ...]:
    read = {**HEALTHY, **changed}
    return tuple(
        Value(quantity=name, value=value, unit=QUANTITIES[name].unit, item="0201FF00", is_verified=True)
        for name, value in read.items()
    )


def days(*collected: int) -> tuple[Day, ...]:
    return tuple(Day(f"2026-11-{22 - len(collected) + i:02d}", count, 96) for i, count in enumerate(collected, 1))


def codes(*, phases: int = 3, read: tuple[Value, ...] | None = None, **facts: Any) -> dict[str, str]:
    """The findings, code to level."""
    known: dict[str, Any] = {"exchanges": (), "clock": None, "days": (), "is_found": True, "reply_ms": 90.0}
    found = judge(phases=phases, values=values() if read is None else read, **{**known, **facts})
    for finding in found:
        assert finding.what.zh and finding.what.en and finding.todo.zh and finding.todo.en
    return {finding.code: finding.level for finding in found}


# ---- judging ---------------------------------------------------------------------------------------------------------


def test_a_meter_in_order_has_no_finding() -> None:
    assert codes(clock=Clock(offset_s=12, drift_s_per_day=0.4), days=days(96, 96, 96)) == {}


def test_a_meter_without_load_has_no_finding() -> None:
    idle = {"current_l1_a": 0.0, "current_l2_a": 0.0, "current_l3_a": 0.01, "active_power_w": 0.4, "power_factor": 1.0}
    assert codes(read=values(**idle)) == {}


@pytest.mark.parametrize(
    ("changed", "code", "level"),
    [
        ({"voltage_l2_v": 3.1}, "phase_missing", "fault"),
        ({"voltage_l3_v": 251.0}, "voltage_off", "look"),
        ({"voltage_l1_v": 0.0023, "voltage_l2_v": 0.0023, "voltage_l3_v": 0.0023}, "voltage_odd", "look"),
        ({"current_l2_a": 0.0}, "current_missing", "look"),
        ({"active_power_w": -6_600.0}, "power_negative", "look"),
        ({"active_power_w": 66_000.0}, "power_above_apparent", "look"),
        ({"active_power_w": 2_100.0, "power_factor": 0.31}, "power_factor_low", "look"),
        ({"power_factor": 0.31}, "power_factor_differs", "look"),
        ({"power_factor": 9.55}, "power_factor_impossible", "fault"),
        ({"frequency_hz": 500.1}, "frequency_odd", "look"),
    ],
)
def test_what_is_wrong_is_found(changed: dict[str, float], code: str, level: str) -> None:
    assert codes(read=values(**changed)).get(code) == level


def test_two_missing_phases_on_a_voltage_transformer_are_told_from_its_side() -> None:
    read = values(voltage_l1_v=57.9, voltage_l2_v=0.2, voltage_l3_v=58.1, active_power_w=1_100.0)
    (finding,) = [
        finding
        for finding in judge(phases=3, values=read, exchanges=(), clock=None, days=(), is_found=True, reply_ms=None)
        if finding.code == "phase_missing"
    ]
    assert "PT" in finding.todo.zh and "PT" in finding.todo.en


@pytest.mark.parametrize(("offset_s", "level"), [(59.0, None), (-75.0, "look"), (412.0, "fault")])
def test_a_clock_is_judged_by_what_may_be_broadcast(offset_s: float, level: str | None) -> None:
    assert codes(clock=Clock(offset_s=offset_s)).get("clock_off") == level


@pytest.mark.parametrize(("collected", "level"), [((96, 96), None), ((96, 90), "look"), ((96, 0), "fault")])
def test_completeness_is_judged_over_all_days(collected: tuple[int, ...], level: str | None) -> None:
    assert codes(days=days(*collected)).get("incomplete") == level


def test_what_was_not_read_is_not_judged() -> None:
    assert codes(read=(), is_found=None) == {}
    silent = Exchange("00010000", "68", "", 1000.0, "silent: no answer in 1.0 s")
    assert codes(read=(), is_found=False, exchanges=(silent,)) == {"silent": "fault"}


def test_nominal_voltages_and_short_times() -> None:
    assert [nominal_v(read) for read in ([230.4, 1.0], [57.9], [101.2], [3.0])] == [230.0, 57.7, 100.0, None]
    assert [duration(seconds) for seconds in (7, 412, 7_300, 300_000)] == ["7 s", "6.9 min", "2.0 h", "3.5 d"]


# ---- the page --------------------------------------------------------------------------------------------------------


def report(count: int = 3, **head: Any) -> Report:
    meters = []
    for i in range(count):
        facts: dict[str, Any] = {
            "values": values(), "clock": Clock(offset_s=i % 50), "days": days(96, 96 if i else 40), "is_found": True,
            "reply_ms": 120.0 + i, "exchanges": (Exchange("0201FF00", "68 01 16", "68 81 16", 120.0 + i),),
        }  # fmt: skip
        meters.append(
            MeterFacts(
                name=f"meter-{i}", line=f"line-{i % 3}", address=f"{i:012d}", role="customer", template="dlt645-2007",
                models="any", phases=3, findings=judge(phases=3, **facts), **facts,
            )
        )  # fmt: skip
    known: dict[str, Any] = {
        "gateway": "gw-1", "site": "site.toml", "software": "gridloom 0.1.0", "made_at": NOW, "made_by": "W. Wang",
        "through": Text("代理", "the agent"), "zone_h": 8.0, "meters": tuple(meters),
        "lines": tuple(
            LineFacts(name=f"line-{i}", protocol="dlt645-2007", endpoint="/dev/ttyUSB0", setting="2400 8E1")
            for i in range(3)
        ),
        "queue": QueueFacts(batches=2, fill=0.1, receipt_at=NOW),
    }  # fmt: skip
    return Report(**{**known, **head})


class Page(HTMLParser):
    """What a reader of the file would load, and whether each tag is closed."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
            if name in ("href", "src", "action"):
                self.links.add(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = render(report())
    page = Page(text)
    assert not page.open
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "http" not in re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL)
    assert "url(" not in text and "@import" not in text


def test_the_page_says_it_in_both_languages() -> None:
    page = Page(render(report(made_by="王工")))
    for words in (
        "投运报告", "Commissioning report", "gw-1", "gridloom 0.1.0", "2026-11-22 17:40", "UTC+8", "王工",
        "要做的事", "What to do", "70.8%", "施工人员", "Accepted by", "2400 8E1", "230.1", "12,345.67 kWh", "68 81 16",
    ):  # fmt: skip
        assert words in page.text, words


def test_what_comes_from_outside_is_escaped() -> None:
    nasty = "\"><script>alert(1)</script>'&"
    one = report(1)
    meter = msgspec.structs.replace(
        one.meters[0],
        name=nasty, line=nasty, address=nasty, template=nasty, models=nasty, role=nasty,
        exchanges=(Exchange(nasty, nasty, nasty, 1.0, nasty),),
        values=(Value(quantity=nasty, value=1.0, unit=nasty, item=nasty, said=nasty),),
        findings=judge(
            phases=3, values=(), exchanges=(Exchange(nasty, "", "", 1.0, nasty),), clock=None, days=(), is_found=False,
            reply_ms=None,
        ),
    )  # fmt: skip
    line = LineFacts(name=nasty, protocol=nasty, endpoint=nasty, setting=nasty)
    text = render(
        report(1, meters=(meter,), lines=(line,), gateway=nasty, site=nasty, software=nasty, made_by=nasty,
               through=Text(nasty, nasty))
    )  # fmt: skip
    page = Page(text)
    assert "script" not in page.tags and not page.open
    assert "<script" not in text


@pytest.mark.parametrize("count", [0, 1, 500])
def test_sites_of_any_size_fit(count: int) -> None:
    began_s = time.process_time()
    text = render(report(count))
    took_s = time.process_time() - began_s
    print(f"report of {count} meters: {len(text) / 1e6:.2f} MB, rendered in {took_s:.2f} s")
    page = Page(text)
    assert len(page.ids) >= count
    assert len(text) < 8_000_000
    folded = len(re.findall(r'<details class="meter good" id="m\d+">', text))
    assert folded == (499 if count == 500 else 0)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    if not CHROMIUM.exists():
        reason = "Chromium is not installed; on Debian: apt-get install chromium fonts-noto-cjk"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_scrolling_sideways(browser: "Browser", tmp_path: Path, width: int) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(report(14)))
    with browser.new_page(viewport={"width": width, "height": 900}) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        assert asked == [file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg circle.dot").count() >= 14
        outside = """() => [...document.querySelectorAll('figure svg text')].filter(one => {
            const box = one.getBoundingClientRect(), all = one.closest('figure').getBoundingClientRect();
            return box.left < all.left - 1 || box.right > all.right + 1;
        }).length"""
        assert page.evaluate(outside) == 0


# ---- where the facts come from ---------------------------------------------------------------------------------------


def collected(site: Path, meter: str, last: datetime, marks: int) -> None:
    """Let the gateway's queue hold marks of ``meter``, as after some days of collecting."""
    queue = Queue(site.parent / QUEUE_FILE, gateway="gw-1", interval_s=900, bytes_max=4_000_000)
    rows = [
        Row(meter, last - timedelta(seconds=900 * i), last, None, 0, {"energy_import_wh": 1000 * i})
        for i in range(marks)
    ]
    queue.append_rows(Kind.ENERGY, rows, last)
    queue.close()


STEPS = {
    0x00010000: [123_456], 0x00020000: [0], 0x00030000: [2_200], 0x00040000: [0],
    0x0201FF00: [2301, 31, 2310], 0x0202FF00: [10_000, 9_000, 11_000], 0x0203FF00: [46_000, 23_000, 0, 23_000],
    0x0204FF00: [4_000, 2_000, 0, 2_000], 0x0206FF00: [955, 950, 940, 960], 0x02800002: [5_001],
}  # fmt: skip


def house(address: str, *, ahead_s: float) -> Responder:
    """A three-phase meter that has lost its second phase, with a clock of its own."""
    zone = timezone(timedelta(hours=8))

    def answer(request: dlt645.Frame) -> dlt645.Frame | None:
        clock = datetime.now(UTC) + timedelta(seconds=ahead_s)
        data = {dlt645.DATE: "wdmy", dlt645.TIME: "SMH"}
        if request.di in data:
            return dlt645.reply(request, address, dlt645.encode_time(clock, data[request.di], zone))
        if request.di not in STEPS:
            return dlt645.refuse(request, address, dlt645.Fault.NO_SUCH_DATA)
        return dlt645.reply(request, address, dlt645.encode_item(request.di, STEPS[request.di]))

    return dlt645_meter(address, answer)


def test_a_line_of_dlt645_meters_is_reported_alone_and_through_the_agent(tmp_path: Path) -> None:
    setting = Setting(9600, "E")
    houses = [house("000000000007", ahead_s=5), house("000000000008", ahead_s=-412)]
    with SerialLine([Meter(it, setting) for it in houses]) as line:
        meters = {"flat-7": "000000000007", "flat-8": "000000000008", "flat-9": "000000000009"}
        site = write_site(
            tmp_path,
            line.path,
            meters,
            setting='protocol = "dlt645-2007"\nbaud = 9600\nparity = "N"',
            template="dlt645-2007-three-phase",
        )
        mark = datetime.fromtimestamp(datetime.now(UTC).timestamp() // 900 * 900, UTC)
        collected(site, "flat-7", mark, 300)
        page = tmp_path / "alone.html"
        alone = meterctl("report", str(site), "-o", str(page), "--by", "W. <Wang>", "--days", "3")
        assert alone.returncode == 0, alone.stderr
        assert "3 meters" in alone.stdout and "read through this command's own connections" in alone.stderr
        with running_agent(site) as pid:
            through = meterctl("report", str(site), "--json", "--days", "3")
    text = Page(page.read_text()).text
    for words in ("W. <Wang>", "flat-7", "1,234.56 kWh", "Phase L2 has no voltage: 3.1 V", "flat-9", "没有应答"):
        assert words in text, words
    behind = re.search(r"The clock is ([\d.]+) min behind", text)
    assert behind is not None and float(behind[1]) == pytest.approx(412 / 60, abs=0.15)

    assert through.returncode == 0, through.stderr
    document = json.loads(through.stdout)
    assert f"pid {pid}" in document["through"]["en"]
    by_name = {meter["name"]: meter for meter in document["meters"]}
    assert [meter["is_found"] for meter in by_name.values()] == [True, True, False]
    seven = by_name["flat-7"]
    read = {value["quantity"]: value["value"] for value in seven["values"]}
    assert read["energy_import_wh"] == pytest.approx(1_234_560)
    assert read["active_power_w"] == pytest.approx(4_600)
    assert read["voltage_l3_v"] == pytest.approx(231.0)
    assert seven["exchanges"][0]["reply"].startswith("FE") and seven["reply_ms"] > 20
    due, have = (sum(day[key] for day in seven["days"]) for key in ("due", "collected"))
    assert min(due, 300) - 1 <= have <= min(due, 300)  # a mark may have passed since
    assert by_name["flat-8"]["complete"] == 0
    assert {finding["code"] for finding in by_name["flat-9"]["findings"]} >= {"silent", "incomplete"}


def test_a_family_on_modbus_is_read_in_its_planned_requests(tmp_path: Path) -> None:
    family = "eastron-sdm630"
    said = {**HEALTHY, "energy_import_wh": 12_345_600.0, "voltage_l2_v": 2.5}
    with SerialLine([Meter(family_meter(5, family, said), Setting(19200, "N"))]) as line:
        site = write_site(
            tmp_path,
            line.path,
            {"pv": "5"},
            setting='protocol = "modbus-rtu"\nbaud = 19200\nparity = "N"',
            template=family,
        )
        done = meterctl("report", str(site), "--json")
    assert done.returncode == 0, done.stderr
    (meter,) = json.loads(done.stdout)["meters"]
    read = {value["quantity"]: value["value"] for value in meter["values"]}
    assert read["voltage_l1_v"] == pytest.approx(230.1, abs=0.01)
    assert read["energy_import_wh"] == pytest.approx(12_345_600, rel=1e-6)
    assert len(meter["exchanges"]) < len(meter["values"])
    assert meter["state"] == "fault"
    assert "phase_missing" in {finding["code"] for finding in meter["findings"]}
    assert {value["item"] for value in meter["values"]} >= {"4:0x0000:2:float32"}


def test_without_reading_it_says_what_the_gateway_knows(tmp_path: Path) -> None:
    site = write_site(
        tmp_path,
        "/dev/no-such",
        {"flat-7": "000000000007"},
        setting='protocol = "dlt645-2007"\nbaud = 2400\nparity = "E"',
        template="dlt645-2007",
    )
    began = meterctl("report", str(site), "--no-read", "--json")
    document = json.loads(began.stdout)
    assert document["meters"][0]["is_found"] is None
    assert [finding["code"] for finding in document["findings"]] == ["never_ran"]
    refused = meterctl("report", str(site), "--no-read", "-o", str(tmp_path / "no" / "such.html"))
    assert refused.returncode == 1 and "choose another place with -o" in refused.stderr
