"""Pictures for reports: one style, labels in Chinese and English, PNG or SVG."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Label = Callable[[str, str], str]

SUFFIXES: Final = (".png", ".svg")
INK: Final = "#222831"
FAINT: Final = "#8a929b"
BLUE: Final = "#1f5fa8"
RED: Final = "#c0392b"
NO_CHINESE: Final = (
    "no font with Chinese characters found, so labels are English alone; try: apt-get install fonts-noto-cjk"
)
_CHINESE: Final = (
    "Noto Sans CJK SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "PingFang SC", "Microsoft YaHei", "SimHei", "Heiti SC", "Droid Sans Fallback",
)  # fmt: skip
_STYLE: Final[Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.unicode_minus": False,
    "svg.hashsalt": "gridloom",  # the same picture is the same file
}


class PictureError(RuntimeError):
    """No picture; the text says why and what to do."""


def chinese_font() -> str | None:
    """A font on this machine that has Chinese characters."""
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in _CHINESE if name in there), None)


@contextmanager
def style() -> Iterator[Label]:
    """Draw within; gives ``label(chinese, english)``, which is English alone where no font has the characters."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise PictureError('matplotlib is not installed; pip install "gridloom[report]"') from error
    chinese = chinese_font()
    families = ["DejaVu Sans"] if chinese is None else ["DejaVu Sans", chinese]

    def label(zh: str, en: str) -> str:
        return en if chinese is None else f"{zh} {en}"

    with mpl.rc_context(_STYLE | {"font.family": families}):
        yield label


def check(path: Path) -> None:
    """Before anything is computed: can this file be a picture?"""
    if path.suffix.lower() not in SUFFIXES:
        raise PictureError(f"{path}: a name that ends in {' or '.join(SUFFIXES)} expected")
    if not path.absolute().parent.is_dir():
        raise PictureError(f"{path.absolute().parent}: no such folder")


def save(figure: "Figure", path: Path) -> None:
    try:
        figure.savefig(
            path, dpi=150, facecolor="white", metadata={"Date": None} if path.suffix.lower() == ".svg" else {}
        )
    except OSError as error:
        raise PictureError(f"{path}: cannot be written: {error.strerror or error}") from error
