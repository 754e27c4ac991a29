"""Pictures: they are drawn, bilingual where a font is there, and English with a note where none is."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud import pictures
from cloud.forecast import commands
from cloud.forecast.backtest import backtest, window
from cloud.forecast.panel import read_panel
from cloud.forecast.plot import picture
from tests.forecast.panels import panel


def drawn(folder: Path) -> str:
    found = read_panel(folder)
    test = window(found, 5)
    with pictures.style() as label:
        figure = picture(found, test, backtest(found, test, "mean4"), 1, "mean4", label)
        pictures.save(figure, folder / "fan.png")
        texts = [text.get_text() for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
        texts += [axes.get_title(loc="left") for axes in figure.axes]
    return "\n".join(texts)


@pytest.mark.skipif(pictures.chinese_font() is None, reason="no font with Chinese characters")
def test_labels_are_chinese_and_english(tmp_path: Path) -> None:
    """A character the font lacks is a warning of matplotlib, and warnings fail the test."""
    texts = drawn(panel(tmp_path))
    for word in ("校准 Calibration", "残差：按时刻 Residuals by hour", "负荷 load, kW"):
        assert word in texts
    assert (tmp_path / "fan.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_font_labels_are_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "chinese_font", lambda: None)
    texts = drawn(panel(tmp_path))
    assert "Calibration" in texts
    assert texts.replace("−", "-").isascii()


def test_the_command_draws_svg_of_the_largest_series(tmp_path: Path) -> None:
    out = tmp_path / "fan.svg"
    shown = CliRunner().invoke(
        commands.forecast,
        ["plot", "--panel", str(panel(tmp_path / "town")), "--days", "3", "--method", "naive7", "--out", str(out)],
    )
    assert shown.exit_code == 0, shown.output
    assert "<svg" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "fan.gif"], "ends in .png or .svg"),
        (["--out", "no/such/fan.png"], "no such folder"),
        (["--out", "fan.png", "--series", "s9"], '"s9": one of s0, s1, s2 expected'),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(tmp_path: Path, arguments: list[str], told: str) -> None:
    shown = CliRunner().invoke(commands.forecast, ["plot", "--panel", str(panel(tmp_path)), "--days", "3", *arguments])
    assert shown.exit_code in (1, 2)
    assert told in shown.output
