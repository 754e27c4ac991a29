"""Both languages say everything, with the same holes."""

import re
from pathlib import Path

CONSOLE = Path(__file__).resolve().parents[2] / "cloud/console"
OWN = [path for path in CONSOLE.iterdir() if path.suffix in (".js", ".html", ".css")]
NAMED = re.compile(r'(\w+): "((?:[^"\\]|\\.)*)"')


def languages() -> dict[str, dict[str, str]]:
    source = (CONSOLE / "strings.js").read_text()
    blocks = re.findall(r"^const (en|zh) = \{(.*?)^\};", source, re.DOTALL | re.MULTILINE)
    return {name: dict(NAMED.findall(body)) for name, body in blocks}


def test_every_text_is_there_in_both_languages_with_the_same_holes() -> None:
    texts = languages()
    assert len(texts["en"]) > 80
    assert set(texts["en"]) == set(texts["zh"])
    for name, english in texts["en"].items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", texts["zh"][name])), name


def test_every_text_the_page_asks_for_is_there() -> None:
    asked: set[str] = set()
    for path in OWN:
        source = path.read_text()
        asked |= set(re.findall(r'data-(?:text|title|label)="(\w+)"', source))
        asked |= set(re.findall(r'\btext\("(\w+)"', source))
    assert asked <= set(languages()["en"])
    assert len(asked) > 40


def test_the_page_refers_to_nothing_outside() -> None:
    for path in OWN:
        addresses = set(re.findall(r"https?://[^\"'\s)]+", path.read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name


def test_no_inline_script_or_style_because_the_policy_refuses_them() -> None:
    page = (CONSOLE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)
