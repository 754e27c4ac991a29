"""Make the extract in this folder from an unpacked dtu-adn wheel: ``python extract.py PATH/dtu_adn``.

Kept so that the extract can be made again; nothing at run time or in the tests runs it. Standard library and numpy.
"""

import csv
import sys
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
# (network file, low-voltage busbar of the 10/0.4 kV transformer): six areas under two 10 kV networks.
AREAS = ((28, 104), (28, 108), (28, 110), (27, 91), (28, 107), (27, 93))
# The source is per unit on 100 MVA; at 0.4 kV that is 0.4² / 100 ohm.
LV_BASE_OHM = 0.4**2 / 100
FIRST, WEEKS = datetime(2014, 12, 15), 39  # noqa: DTZ001 - a Monday, local time as in the source; whole weeks from it


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(name: str, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with (HERE / name).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(source: Path) -> None:
    lines: list[tuple[object, ...]] = []
    loads: list[tuple[object, ...]] = []
    transformers: list[tuple[object, ...]] = []
    categories: dict[int, set[str]] = defaultdict(set)
    for network, busbar in AREAS:
        folder = source / "data/network_10kV_400V"
        low = {int(float(row["BUS_I"])) for row in read(folder / f"bus_{network}.csv") if row["BASE_kV"] == "0.4"}
        neighbours: dict[int, list[tuple[int, float, float]]] = defaultdict(list)
        for row in read(folder / f"line_{network}.csv"):
            a, b = int(float(row["F_BUS"])), int(float(row["T_BUS"]))
            if a in low and b in low:
                neighbours[a].append((b, float(row["BR_R"]), float(row["BR_X"])))
                neighbours[b].append((a, float(row["BR_R"]), float(row["BR_X"])))
        order, seen = [busbar], {busbar}
        for bus in order:  # grows while it is walked: breadth first from the busbar
            for far, r_pu, x_pu in neighbours[bus]:
                if far not in seen:
                    seen.add(far)
                    order.append(far)
                    r_ohm, x_ohm = f"{r_pu * LV_BASE_OHM:.8f}", f"{x_pu * LV_BASE_OHM:.8f}"
                    lines.append((network, busbar, bus, far, r_ohm, x_ohm))
        for row in read(folder / f"load_and_gen_type/load_{network}.csv"):
            if int(row["Node"]) in seen:
                kw, kvar = f"{float(row['mw']) * 1000:.3f}", f"{float(row['mvar']) * 1000:.3f}"
                loads.append((network, busbar, int(row["Node"]), kw, kvar, row["slp"]))
                categories[network].add(row["slp"])
        (unit,) = (r for r in read(folder / f"mvlv_substation{network}.csv") if int(r["lv_bus"]) == busbar)
        kva = float(unit["smva_base"]) * 1000
        r_unit, x_unit = (float(unit[name]) * kva / 1e5 for name in ("r_pu", "x_pu"))
        transformers.append(
            (
                network,
                busbar,
                f"{kva:.0f}",
                f"{float(unit['pfe_kw']) * 1000:.0f}",
                f"{r_unit * kva * 1000:.0f}",
                f"{np.hypot(r_unit, x_unit) * 100:.3f}",
                unit["i0_percent"],
            )
        )
    key = ("network", "busbar")
    write("lines.csv", (*key, "from_bus", "to_bus", "r_ohm", "x_ohm"), lines)
    write("loads.csv", (*key, "bus", "kw", "kvar", "category"), loads)
    columns = ("rated_kva", "no_load_loss_w", "load_loss_w", "impedance_percent", "no_load_current_percent")
    write("transformers.csv", (*key, *columns), transformers)

    arrays: dict[str, Any] = {}
    for network, names in sorted(categories.items()):
        for kind, file in (("load", f"load_profile_{network}.csv"), ("gen", f"gen_profile_{network}.csv")):
            rows = read(source / "data/timeseries_400V" / file)
            first = rows[0]["Unnamed: 0"]
            form = "%Y-%m-%d %H:%M:%S" if len(first) > 14 else "%d-%m-%y %H:%M"
            begin = datetime.strptime(first, form)  # noqa: DTZ007
            skip = int((FIRST - begin).total_seconds()) // 3600
            rows = rows[skip : skip + WEEKS * 168]
            wanted = [f"{c}_pu_{u}" for c in sorted(names) for u in ("MW", "MVAR")] if kind == "load" else ["PV_pu"]
            for column in wanted:
                values = np.array([float(row[column]) for row in rows])
                # 16 bits at 0.0001 per unit: finer than the meters they came from.
                name = f"{network} {column.replace('_pu_MW', ' P').replace('_pu_MVAR', ' Q').replace('_pu', '')}"
                arrays[name] = np.round(values * 1e4).astype(np.int16)
    np.savez_compressed(HERE / "profiles.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
