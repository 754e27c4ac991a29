"""One area in a picture for a report: where its energy went, who explains the rest, and where they are."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cloud.pictures import BLUE, FAINT, INK, RED, Label, PictureError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
FILES: Final = ("losses_day", "suspects", "voltages", "nodes", "customers_day")
GREEN: Final = "#2e8b57"
AMBER: Final = "#d98e04"
_MARKED_MAX: Final = 6  # suspects on the map
_RING: Final = 6.5  # points around a suspect's node
_GAPS: Final = np.array([9.0, 20.0, 32.0, 46.0, 64.0, 86.0, 112.0])  # points between a node and its label
_CROWDED: Final = 28.0  # points between rings: nearer ones all get a line
_ALONG: Final = 12  # points of a wire that a label should not cover


@dataclass(frozen=True, slots=True)
class Found:
    """What a run wrote about one area."""

    area_id: str
    losses_day: pa.Table
    suspects: pa.Table
    voltages: pa.Table
    nodes: pa.Table
    customers_day: pa.Table


def load(run: Path, area_id: str | None) -> Found:
    """The area, or the one with the likeliest suspect. Raises PictureError."""
    tables = {}
    for name in FILES:
        path = run / f"{name}.parquet"
        try:
            tables[name] = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise PictureError(f"{path}: cannot be read; write it with gridloom loss run --out {run}") from error
    areas = list(dict.fromkeys(tables["losses_day"]["area_id"].to_pylist()))
    if area_id is None:
        suspects = tables["suspects"]
        best = int(np.argmax(suspects["score"].to_numpy())) if suspects.num_rows else -1
        area_id = suspects["area_id"][best].as_py() if best >= 0 else areas[0]
    if area_id not in areas:
        raise PictureError(f"area {area_id} is not in {run}; it has {', '.join(areas[:10])}")
    return Found(area_id, **{n: table.filter(pc.equal(table["area_id"], area_id)) for n, table in tables.items()})


def draw(found: Found, label: Label) -> "Figure":
    """Loss waterfall, what is left against the first suspect's record, and a map of the area."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    axes: Any = figure.subplot_mosaic(
        [["fall", "rest"], ["map", "map"]], height_ratios=[1, 1.25], width_ratios=[1, 1.6]
    )
    figure.suptitle(f"{found.area_id} {label('台区线损分析', 'line loss')}", fontweight="bold", x=0.01, ha="left")
    _waterfall(axes["fall"], found, label)
    _rest(axes["rest"], found, label)
    _map(axes["map"], found, label, figure)
    return figure


def _column(table: pa.Table, name: str) -> Array:
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), np.float64)


def _waterfall(axes: "Axes", found: Found, label: Label) -> None:
    supplied, delivered, technical = (
        np.nansum(_column(found.losses_day, name)) / 1000 for name in ("supplied_wh", "delivered_wh", "technical_wh")
    )
    rest = supplied - delivered - technical
    names = [
        label("供电\n", "supplied"), label("技术线损\n", "technical"), label("不明损失\n", "unexplained"),
        label("售电\n", "delivered"),
    ]  # fmt: skip
    values = np.array([supplied, technical, rest, delivered])
    starts = np.array([0.0, delivered + rest, delivered, 0.0])
    axes.bar(names, values, bottom=starts, color=[BLUE, AMBER, RED, GREEN], width=0.65)
    for at, level in enumerate((supplied, delivered + rest, delivered)):
        axes.plot([at + 0.33, at + 0.67], [level] * 2, color=INK, lw=0.8)
    for at, (value, start) in enumerate(zip(values, starts, strict=True)):
        share = f"\n{100 * value / supplied:.2f} %" if supplied > 0 else ""
        axes.annotate(
            f"{value:,.0f}{share}", (at, max(start, start + value)), xytext=(0, 3), textcoords="offset points",
            ha="center", fontsize=8,
        )  # fmt: skip
    # Losses are a few percent: the axis is cut, so that they can be seen.
    span = max(abs(technical) + abs(rest), 0.01 * max(supplied, 1.0))
    low, high = min(supplied, delivered, delivered + rest), max(supplied, delivered, delivered + rest)
    axes.set_ylim(max(0.0, low - 0.5 * span), high + 0.45 * span)
    axes.set_ylabel(f"kWh ({label('纵轴截断', 'axis cut')})")
    axes.set_title(label("电量去向", "where the energy went"))
    axes.grid(axis="x", visible=False)


def _rest(axes: "Axes", found: Found, label: Label) -> None:
    time = found.losses_day["time"].cast(pa.timestamp("us")).to_numpy()
    rest, low, high = (_column(found.losses_day, f"unexplained{part}_wh") / 1000 for part in ("", "_lo", "_hi"))
    axes.fill_between(time, low, high, color=RED, alpha=0.18, lw=0, label=f"80 % {label('区间', 'interval')}")
    axes.plot(time, rest, color=RED, lw=1.3, label=label("不明损失", "unexplained"))
    axes.axhline(0, color=FAINT, lw=0.8)
    axes.set_ylabel(label("kWh/日", "kWh a day"))
    axes.tick_params(axis="x", rotation=25)
    first: dict[str, Any] = found.suspects.slice(0, 1).to_pylist()[0] if found.suspects.num_rows else {"named": False}
    if not first["named"]:
        axes.set_title(label("不明损失", "what is left"))
    else:
        axes.set_title(label("不明损失与首位嫌疑户", "what is left, and the first suspect's record"))
        own = found.customers_day.filter(pc.equal(found.customers_day["meter_id"], first["meter_id"]))
        axes.plot(time, _column(own, "wh") / 1000, color=BLUE, lw=1.1, label=first["meter_id"])
        if first["since"] is not None:
            since = np.datetime64(first["since"].replace(tzinfo=None), "us")
            axes.axvline(cast(float, since), color=INK, ls="--", lw=0.9)  # dates are fine; matplotlib's types say float
            axes.annotate(
                f" {label('自', 'since')} {since.astype('datetime64[D]')}\n {first['kind']}",
                (since, 0.9), xycoords=("data", "axes fraction"), va="top", fontsize=8,
            )  # fmt: skip
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.15 * (top - bottom))
    axes.legend(loc="upper left", fontsize=8, ncols=3)


def layout(parents: dict[str, str | None]) -> dict[str, tuple[float, float]]:
    """A tree drawn from left to right: depth across, leaves one under the other, a parent amid its children."""
    children: dict[str, list[str]] = {name: [] for name in parents}
    depth: dict[str, int] = {}
    for name, parent in parents.items():  # parents come first
        depth[name] = 0 if parent is None else depth[parent] + 1
        if parent is not None:
            children[parent].append(name)
    order: list[str] = []
    waiting = [name for name, parent in parents.items() if parent is None]
    while waiting:
        name = waiting.pop()
        order.append(name)
        waiting += children[name]
    height: dict[str, float] = {}
    leaves = 0
    for name in order:
        if not children[name]:
            height[name], leaves = float(leaves), leaves + 1
    for name in reversed(order):
        if children[name]:
            height[name] = sum(height[child] for child in children[name]) / len(children[name])
    return {name: (float(depth[name]), height[name]) for name in parents}


def _map(axes: "Axes", found: Found, label: Label, figure: "Figure") -> None:
    axes.set_title(label("台区图:电压与嫌疑户", "the area: voltages and suspects"))
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    if not found.nodes.num_rows:
        axes.text(
            0.5, 0.5, label("拓扑未知", "the network is unknown"), ha="center", transform=axes.transAxes, color=FAINT
        )
        return
    rows = found.nodes.to_pylist()
    located = all(row["x"] is not None and row["y"] is not None for row in rows)
    drawn_as = layout({row["node_id"]: row["parent_id"] for row in rows})
    where = {row["node_id"]: (row["x"], row["y"]) for row in rows} if located else drawn_as
    bends: list[Array] = []
    for row in rows:
        if row["parent_id"] is not None:
            (x0, y0), (x1, y1) = where[row["parent_id"]], where[row["node_id"]]
            bend = ([x0, x1], [y0, y1]) if located else ([x0, x0, x1], [y0, y1, y1])
            bends.append(np.column_stack(bend))
            axes.plot(*bend, color=FAINT, lw=0.8, zorder=1)
    lowest: dict[str, float] = {}
    for node, volts in zip(
        found.voltages["node_id"].to_pylist(), _column(found.voltages, "predicted_min_v"), strict=True
    ):
        lowest[node] = min(lowest.get(node, np.inf), volts)
    # Nodes of the low-voltage side share a scale; a 10 kV node would swallow it.
    usual = float(np.median(list(lowest.values())))
    names = [row["node_id"] for row in rows if 0.5 * usual < lowest.get(row["node_id"], 0.0) < 2 * usual]
    axes.margins(x=0.08)  # room for labels at the far ends
    dots = axes.scatter(
        [where[n][0] for n in names], [where[n][1] for n in names], c=[lowest[n] for n in names], s=22,
        cmap="viridis", zorder=2,
    )  # fmt: skip
    figure.colorbar(dots, ax=axes, label=label("最低电压", "lowest voltage, V"), shrink=0.85, pad=0.01)
    node_of = dict(
        zip(found.customers_day["meter_id"].to_pylist(), found.customers_day["node_id"].to_pylist(), strict=True)
    )
    marked = [row for row in found.suspects.to_pylist() if row["named"]][:_MARKED_MAX]
    rings = np.array([where[node_of[row["meter_id"]]] for row in marked], np.float64).reshape(-1, 2)
    axes.scatter(rings[:, 0], rings[:, 1], s=130, facecolors="none", edgecolors=RED, linewidths=1.6, zorder=3)
    if not marked:
        axes.text(0, 0, label("无嫌疑户", "nobody is named"), transform=axes.transAxes, color=FAINT)
    names = [f"{row['rank']}. {row['meter_id']}\n{row['kind']}" for row in marked]
    _labels(axes, figure, rings, names, np.array(list(where.values()), np.float64), bends)


def _labels(axes: "Axes", figure: "Figure", rings: Array, names: list[str], nodes: Array, bends: list[Array]) -> None:
    """Names (K,) beside rings (K, 2), clear of each other and, as far as there is room, of nodes (N, 2) and wires.

    Each takes the best place around its ring, the most crowded first; a thin line leads to one further off.
    """
    figure.draw_without_rendering()  # places are known only once everything is laid out
    points = figure.dpi / 72
    at, dots = (axes.transData.transform(where) / points for where in (rings, nodes))
    wires = [axes.transData.transform(bend) / points for bend in bends]
    along = np.linspace(0, 1, _ALONG)[:, None]
    strokes = np.concatenate([a + along * (b - a) for wire in wires for a, b in pairwise(wire)] or [np.zeros((0, 2))])
    frame = axes.get_window_extent()
    low, high = np.array([[frame.x0, frame.y0], [frame.x1, frame.y1]]) / points
    angle = np.arange(0, 2 * np.pi, np.pi / 12)
    around = np.column_stack([np.cos(angle), np.sin(angle)])
    taken = np.column_stack([at - _RING, at + _RING])  # (B, 4): left, bottom, right, top
    apart = np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1))
    for k in np.argsort(np.sort(apart, axis=1)[:, :3].sum(axis=1)).tolist():
        text = axes.annotate(
            names[k], (rings[k, 0], rings[k, 1]), xytext=(0, 0), textcoords="offset points", fontsize=7.5, color=RED,
            ha="center", va="center", zorder=5,
        )  # fmt: skip
        extent = text.get_window_extent()
        half = np.array([extent.width, extent.height]) / points / 2 + 1
        beside = 1 / np.max(np.abs(around) / half, axis=1)  # from a text's middle to its edge
        middle = (at[k] + around * (beside[:, None] + _GAPS[:, None, None])).reshape(-1, 2)
        box = np.column_stack([middle - half, middle + half])
        shared = np.minimum(box[:, None, 2:], taken[:, 2:]) - np.maximum(box[:, None, :2], taken[:, :2])
        covered = [(np.abs(some - middle[:, None]) < half + 2).all(axis=2).sum(axis=1) for some in (dots, strokes)]
        outside = (np.maximum(low - box[:, :2], 0) + np.maximum(box[:, 2:] - high, 0)).sum(axis=1)
        far = np.repeat(_GAPS - _GAPS[0], len(around))
        cost = 10 * np.clip(shared, 0, None).prod(axis=2).sum(axis=1) + 15 * covered[0] + 4 * covered[1]
        best = int((cost + 100 * outside + far + 4 * (around[:, 0] < 0.5)[np.arange(len(far)) % len(around)]).argmin())
        taken = np.vstack([taken, box[best]])
        move = middle[best] - at[k]
        text.set_position((move[0], move[1]))
        if far[best] or (apart[k] < _CROWDED).sum() > 1:
            edge = at[k] + move / np.hypot(*move) * _RING
            end = np.clip(at[k], box[best, :2], box[best, 2:])
            line = axes.transData.inverted().transform(np.stack([edge, end]) * points)
            axes.plot(*line.T, color=RED, lw=0.6, zorder=4, scalex=False, scaley=False)
