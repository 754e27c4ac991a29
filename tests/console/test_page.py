"""The console in headless Chromium, in front of a real server and a real database. Screenshots go to build/."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, BrowserContext, Page, expect

from simulators.services import Postgres
from tests.api.site import AREAS, KEY, Served, create_database, database_closed, serve

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"


@contextmanager
def console(
    browser: Browser,
    served: Served,
    *,
    width: int = 1440,
    height: int = 950,
    locale: str = "en-US",
    scheme: Literal["dark", "light"] = "dark",
    fragment: str = f"#key={KEY}",
    refused: bool = False,
) -> Iterator[Page]:
    """The page, open. Nothing may be logged as an error, save for ``refused`` requests, or come from another host."""
    context = browser.new_context(viewport={"width": width, "height": height}, locale=locale, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(served.url) else None)
    page.goto(f"{served.url}/{fragment}")
    try:
        yield page
        allowed = re.compile("Failed to load resource") if refused else re.compile("(?!)")
        assert [text for text in said if not allowed.search(text)] == []
    finally:
        context.close()


def board(page: Page) -> Any:
    return page.locator("#board")


def painted(page: Page) -> int:
    """How many different colours the chart's canvas shows: an empty one has very few."""
    count: int = page.evaluate(
        """() => {
            const canvas = document.querySelector("#chart canvas");
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )
    return count


def photograph(page: Page, name: str) -> Path:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"console-{name}.png"
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(600)  # bars grow
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size > 30_000
    return path


def no_sideways_scrolling(page: Page) -> bool:
    fits: bool = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    return fits


def test_wide_in_english_shows_every_view(browser: Browser, served: Served) -> None:
    with console(browser, served) as page:
        expect(board(page)).to_be_visible()
        expect(page.locator("#now")).to_contain_text("18:3")
        expect(page.locator("#line")).to_contain_text("5 of 6 online")
        expect(page.locator("#completeness-total")).to_have_text("98.70 %")
        expect(page.locator("#completeness-areas li")).to_have_count(AREAS)
        expect(page.locator("#completeness-areas")).to_contain_text("gateway offline")
        expect(page.locator("#load-value")).to_have_text("499 kW")
        expect(page.locator("#peak-value")).to_have_text("579 kW")
        expect(page.locator("#accuracy-state")).to_contain_text("33 % less than naive")
        expect(page.locator("#alert-list li")).to_have_count(3)
        expect(page.locator("#alert-list li").first).to_contain_text("Critical")
        expect(page.locator("#loss-bars li")).to_have_count(AREAS)
        expect(page.locator("#loss-table tr.high")).to_contain_text("too high")
        expect(page.locator("#loss-bars .unsure")).to_have_count(AREAS)
        expect(page.locator("#loss-table tr.high td >> nth=4")).to_contain_text("±")
        expect(page.locator("#suspects-note")).to_have_text("5 areas searched through 17 Mar. 1 could not be searched.")
        expect(page.locator("#suspects-list li")).to_have_count(3)
        expect(page.locator("#suspects-list li.named")).to_have_count(2)
        first = page.locator("#suspects-list li").first
        for said in ("A2-C03", "constant share missing", "since before 12 Feb", "1,050 kWh missing", "840 to 1,260 kWh",
                     "First check topology", "log odds 30.2"):  # fmt: skip
            expect(first).to_contain_text(said)
        expect(page.locator("#dr-list")).to_contain_text("9.2 kWh saved")
        expect(page.locator("#gaps-total")).to_have_text("289 intervals missing in 14 days")
        expect(page.locator("#strip tbody tr")).to_have_count(AREAS)
        expect(page.locator("#strip td.few")).to_have_count(3)
        expect(page.locator("#gaps-list li")).to_have_count(3)
        expect(page.locator("#gaps-list li").first).to_contain_text("Meter silent")
        # One line for a gateway, with one command for all its meters.
        expect(page.locator("#gaps-list li >> nth=1")).to_contain_text("5 points of gw-a2 · 90 intervals")
        expect(page.locator("#gaps-list code >> nth=1")).to_have_text(
            "gridloom command gw-a2 backfill m000 m001 m002 m003 m004 --start 2026-03-13T18:00Z --end 2026-03-13T22:30Z"
        )
        expect(page.locator("#gaps-list li >> nth=2")).to_contain_text("7 the meter does not have")
        assert painted(page) > 50
        assert no_sideways_scrolling(page)
        photograph(page, "wide-en-dark")


def test_narrow_in_chinese_shows_the_same(browser: Browser, served: Served) -> None:
    with console(browser, served, width=390, height=844, locale="zh-CN") as page:
        expect(board(page)).to_be_visible()
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        expect(page.locator("#completeness h2")).to_have_text("采集成功率")
        expect(page.locator("#alert-list li").first).to_contain_text("A2 老集市")
        expect(page.locator("#gaps-list li").first).to_contain_text("电表无应答")
        night = page.locator("#suspects-list li >> nth=1")
        for said in (
            "A2-C01",
            "夜间少计",
            "80% 区间 248～372 kWh",
            "先核对户变关系和相位",
            "台区电量平衡在该户夜间缺失电量",
        ):
            expect(night).to_contain_text(said)
        assert painted(page) > 50
        assert no_sideways_scrolling(page)
        photograph(page, "narrow-zh-dark")


def test_light_where_the_system_is_light(browser: Browser, served: Served) -> None:
    with console(browser, served, locale="zh-CN", scheme="light") as page:
        expect(board(page)).to_be_visible()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert min(int(part) for part in re.findall(r"\d+", background)) > 220
        photograph(page, "wide-zh-light")


def test_the_key_leaves_the_address_bar_and_stays_in_this_window(browser: Browser, served: Served) -> None:
    with console(browser, served) as page:
        expect(board(page)).to_be_visible()
        assert page.url == f"{served.url}/"
        page.reload()
        expect(board(page)).to_be_visible()
        page.click("#forget")
        expect(page.locator("#ask")).to_be_visible()
        expect(board(page)).to_be_hidden()


def test_a_wrong_key_is_refused_in_words_and_a_right_one_opens(browser: Browser, served: Served) -> None:
    with console(browser, served, fragment="", refused=True) as page:
        page.fill("#key", "gl_wrong")
        page.click("#ask button[type=submit]")
        expect(page.locator("#refused")).to_contain_text("unknown or revoked")
        photograph(page, "key")
        page.fill("#key", KEY)
        page.click("#ask button[type=submit]")
        expect(board(page)).to_be_visible()


def test_choosing_series_range_language_and_alerts(browser: Browser, served: Served) -> None:
    with console(browser, served) as page:
        page.select_option("#series", "area:A2")
        expect(page.locator("#load-name")).to_have_text("A2 Old Market")
        expect(page.locator("#peak-state")).to_contain_text("above the limit")
        page.click("#loss-bars button >> nth=4")
        expect(page.locator("#load-name")).to_have_text("A5 Station East")
        page.click("#range button >> nth=2")
        expect(page.locator("#range button >> nth=2")).to_have_attribute("aria-pressed", "true")
        page.click("#alert-filter button >> nth=1")
        expect(page.locator("#alert-list li")).to_have_count(4)
        page.hover("#chart .u-over")
        expect(page.locator("#legend .moment")).to_be_visible()
        photograph(page, "area-7-days")
        page.click("#language")
        expect(page.locator("#load-name")).to_have_text("A5 东站")
        page.reload()
        expect(page.locator("#alerts h2")).to_have_text("告警")


def test_an_empty_site_says_what_is_awaited(browser: Browser, postgres: Postgres, tmp_path: Path) -> None:
    with serve(create_database(postgres), tmp_path) as served, console(browser, served) as page:
        expect(board(page)).to_be_visible()
        for view in ("load", "alerts", "losses", "suspects", "dr", "gaps"):
            expect(page.locator(f"#{view}-empty")).to_be_visible()
            assert len(page.locator(f"#{view}-empty").inner_text()) > 10
        expect(page.locator("#completeness-note")).to_contain_text("Waiting")
        photograph(page, "empty")


def test_it_says_when_it_is_cut_off_and_recovers_by_itself(
    browser: Browser, served: Served, postgres: Postgres
) -> None:
    with console(browser, served, refused=True) as page:
        expect(board(page)).to_be_visible()
        banner = page.locator("#banner")
        expect(banner).to_be_hidden()
        context: BrowserContext = page.context
        context.set_offline(True)
        expect(banner).to_contain_text("The server does not answer", timeout=15_000)
        expect(page.locator("#completeness-total")).to_have_text("98.70 %")
        photograph(page, "cut-off")
        context.set_offline(False)
        expect(banner).to_be_hidden(timeout=15_000)
        with database_closed(postgres, served.dsn):
            expect(banner).to_contain_text("The database does not answer", timeout=15_000)
        expect(banner).to_be_hidden(timeout=15_000)


def test_the_api_documentation_works_offline(browser: Browser, served: Served) -> None:
    with console(browser, served, fragment="docs") as page:
        expect(page.locator(".info h1")).to_contain_text("Gridloom")
        expect(page.locator(".opblock-get")).to_have_count(17)
        page.click("text=Interval energy of metering points")
        expect(page.locator(".opblock.is-open")).to_contain_text("half-open", ignore_case=True)
        photograph(page, "docs")
