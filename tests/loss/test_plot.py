"""Suspects on the map of an area can be read, however near to each other they live."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from cloud import pictures
from cloud.loss.plot import Found, draw

pytest.importorskip("matplotlib", reason='pip install "gridloom[report]"')

POLES, EACH = 8, 6


def area(suspects: list[int]) -> Found:
    """A row of poles with six customers each; the suspects' numbers."""
    nodes = [("head", None), *((f"p{i}", f"p{i - 1}" if i else "head") for i in range(POLES))]
    customers = [(f"c{i}", f"p{i // EACH}") for i in range(POLES * EACH)]
    names = [name for name, _ in customers]
    day = pa.array([datetime(2026, 3, 2 + i, tzinfo=UTC) for i in range(5)])
    order = suspects + [i for i in range(len(names)) if i not in suspects]
    return Found(
        "area1",
        pa.table({
            "time": day, "supplied_wh": [1e5] * 5, "delivered_wh": [9e4] * 5, "technical_wh": [3e3] * 5,
            "unexplained_wh": [7e3] * 5, "unexplained_lo_wh": [6e3] * 5, "unexplained_hi_wh": [8e3] * 5,
        }),
        pa.table({
            "meter_id": [f"area1-m{i:04d}" for i in order], "rank": range(1, len(order) + 1),
            "named": [i in suspects for i in order], "kind": ["phase_missing" if i in suspects else "" for i in order],
            "since": [datetime(2026, 3, 3, tzinfo=UTC)] * len(order),
        }),
        pa.table({"node_id": names, "predicted_min_v": np.linspace(220, 230, len(names))}),
        pa.table({
            "node_id": [n for n, _ in nodes + customers], "parent_id": [p for _, p in nodes + customers],
            "x": pa.nulls(len(nodes + customers)), "y": pa.nulls(len(nodes + customers)),
        }),
        pa.table({
            "meter_id": [f"area1-m{i:04d}" for i in range(len(names))] * 5, "node_id": names * 5,
            "time": np.repeat(day.to_numpy(zero_copy_only=False), len(names)), "wh": [1e3] * len(names) * 5,
        }),
    )  # fmt: skip


@pytest.mark.parametrize("suspects", [[], [47], [20, 21], [12, 13, 14, 15, 16, 17], [0, 9, 18, 27, 36, 47]])
@pytest.mark.parametrize("both", [True, False])
def test_labels_of_suspects_do_not_overlap(suspects: list[int], both: bool) -> None:
    with pictures.style() as label:
        figure = draw(area(suspects), label if both else lambda zh, en: en)
        figure.draw_without_rendering()
    (chart,) = (axes for axes in figure.axes if "suspects" in axes.get_title(loc="left"))
    texts = [text for text in chart.texts if "area1-m" in text.get_text()]
    assert len(texts) == len(suspects)
    frame = chart.get_window_extent()
    boxes = np.array([text.get_window_extent().extents for text in texts]).reshape(-1, 4)
    shared = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
    over = (shared > 0).all(axis=2) & ~np.eye(len(boxes), dtype=bool)
    assert not over.any()
    assert (boxes[:, 0] >= frame.x0 - 1).all() and (boxes[:, 2] <= frame.x1 + 1).all()
    assert bool(suspects) != any("nobody is named" in text.get_text() for text in chart.texts)
