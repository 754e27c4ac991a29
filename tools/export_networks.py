"""Public networks and their loads as folders that the loss engine and its bench read.

Runs in a venv of its own, since none of these packages is needed by Gridloom:
  pip install simbench pandapower dtu-adn RL-ADN
  python tools/export_networks.py /tmp/networks

Writes OUT/NAME/{nodes,lines,transformers}.csv and loads.npz: node_id (L,), phases (L,), active_w and reactive_var
(L, T) float32, step_minutes. SimBench: ODbL 1.0 (data); pandapower's European LV feeder: IEEE PES; DTU, RL-ADN: MIT.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import pandas as pd

NODES = ["node_id", "kind", "phases"]
LINES = [
    "line_id",
    "from_node",
    "to_node",
    "length_m",
    "r_ohm_per_km",
    "x_ohm_per_km",
    "r0_ohm_per_km",
    "x0_ohm_per_km",
    "rated_current_a",
    "phases",
]
TRANSFORMERS = [
    "transformer_id",
    "hv_node",
    "lv_node",
    "rated_kva",
    "hv_v",
    "lv_v",
    "no_load_loss_w",
    "load_loss_w",
    "impedance_percent",
    "tap",
    "vector_group",
]


def write(folder, nodes, lines, transformers, loads):
    folder.mkdir(parents=True, exist_ok=True)
    for name, head, rows in (
        ("nodes", NODES, nodes),
        ("lines", LINES, lines),
        ("transformers", TRANSFORMERS, transformers),
    ):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(head)
            out.writerows(rows)
    np.savez_compressed(folder / "loads.npz", **loads)
    print(
        folder.name,
        len(nodes),
        "nodes",
        len(lines),
        "lines",
        len(transformers),
        "transformers",
        loads["active_w"].shape,
    )


def pandapower_tables(net):
    """Nodes, lines, transformers; zero sequence r0 = 4 r, x0 = 4 x where the network has none (a usual LV cable)."""
    source = net.ext_grid.bus.iloc[0]
    loads = set(net.load.bus) | set(net.asymmetric_load.bus)
    nodes = [(f"n{b}", "source" if b == source else "customer" if b in loads else "bus", "abc") for b in net.bus.index]
    lines = [
        (
            f"l{i}",
            f"n{r.from_bus}",
            f"n{r.to_bus}",
            r.length_km * 1000,
            r.r_ohm_per_km,
            r.x_ohm_per_km,
            getattr(r, "r0_ohm_per_km", 4 * r.r_ohm_per_km),
            getattr(r, "x0_ohm_per_km", 4 * r.x_ohm_per_km),
            r.max_i_ka * 1000,
            "abc",
        )
        for i, r in enumerate(net.line.itertuples())
    ]
    transformers = [
        (
            f"t{i}",
            f"n{r.hv_bus}",
            f"n{r.lv_bus}",
            r.sn_mva * 1000,
            r.vn_hv_kv * 1000,
            r.vn_lv_kv * 1000,
            r.pfe_kw * 1000,
            r.vkr_percent / 100 * r.sn_mva * 1e6,
            r.vk_percent,
            1.0,
            f"Dyn{round(r.shift_degree / 30)}",
        )
        for i, r in enumerate(net.trafo.itertuples())
    ]
    return nodes, lines, transformers


def simbench(out, name, code):
    import simbench as sb

    net = sb.get_simbench_net(code)
    values = sb.get_absolute_values(net, profiles_instead_of_study_cases=True)
    buses = sorted(set(net.load.bus))
    p, q = (np.zeros((len(buses), len(values["load", "p_mw"]))) for _ in range(2))
    row = {bus: i for i, bus in enumerate(buses)}
    for i, bus in net.load.bus.items():
        p[row[bus]] += values["load", "p_mw"][i].to_numpy()
        q[row[bus]] += values["load", "q_mvar"][i].to_numpy()
    for i, bus in net.sgen.bus.items():
        if bus in row:
            p[row[bus]] -= values["sgen", "p_mw"][i].to_numpy()
    # SimBench has few distinct profiles: shift each node by minutes to days, so that neighbours are not copies.
    rng = np.random.default_rng(5)
    for i in range(len(buses)):
        days = 96 * rng.integers(-3, 4) + rng.integers(-3, 4)
        p[i], q[i] = np.roll(p[i], days), np.roll(q[i], days)
    phases = rng.choice(["abc", "a", "b", "c"], len(buses), p=[0.4, 0.2, 0.2, 0.2])
    nodes, lines, transformers = pandapower_tables(net)
    write(
        out / name,
        nodes,
        lines,
        transformers,
        {
            "node_id": np.array([f"n{b}" for b in buses]),
            "phases": phases,
            "active_w": (p * 1e6)[:, :35_040].astype(np.float32),
            "reactive_var": (q * 1e6)[:, :35_040].astype(np.float32),
            "step_minutes": 15,
        },
    )
    return (p * 1e6)[:, :35_040]


def european(out, shapes):
    import pandapower.networks as pn

    net = pn.ieee_european_lv_asymmetric()
    rng = np.random.default_rng(5)
    table = net.asymmetric_load
    p = np.array([table[f"p_{c}_mw"] for c in "abc"]).T * 1e6
    phases = np.array(list("abc"))[p.argmax(axis=1)]
    # The package has one moment of 55 loads; give each a household's year from SimBench, 1.2 kW on average.
    year = shapes[rng.permutation(len(shapes))[:55]]
    year = 1200 * np.abs(year) / np.abs(year).mean(axis=1, keepdims=True)
    nodes, lines, transformers = pandapower_tables(net)
    # The package leaves out the magnetising branch; 0 stays 0.
    write(
        out / "european-lv",
        nodes,
        lines,
        transformers,
        {
            "node_id": np.array([f"n{b}" for b in table.bus]),
            "phases": phases,
            "active_w": year.astype(np.float32),
            "reactive_var": (year * 0.3287).astype(np.float32),
            "step_minutes": 15,
        },
    )


def dtu(out):
    import dtu_adn

    data = Path(dtu_adn.__file__).parent / "data"
    for path in sorted((data / "network_10kV_400V").glob("bus_*.csv")):
        number = path.stem[-2:]
        bus = pd.read_csv(path)
        line = pd.read_csv(path.with_name(f"line_{number}.csv"))
        station = pd.read_csv(path.with_name(f"mvlv_substation{number}.csv")).set_index(["hv_bus", "lv_bus"])
        kv = {int(b): v for b, v in zip(bus.BUS_I, bus.BASE_kV, strict=True)} | {int(number): 10.0}
        loads = pd.read_csv(path.parent / "load_and_gen_type" / f"load_{number}.csv")
        profile = pd.read_csv(data / "timeseries_400V" / f"load_profile_{number}.csv")
        customers = set(loads.Node)
        nodes = [
            (f"n{b}", "source" if b == int(number) else "customer" if b in customers else "bus", "abc") for b in kv
        ]
        lines, transformers = [], []
        for i, r in enumerate(line.itertuples()):
            one, two = int(r.F_BUS), int(r.T_BUS)
            if kv[one] == kv[two]:
                ohm = kv[one] ** 2 / 100  # on 100 MVA
                lines.append(
                    (
                        f"l{i}",
                        f"n{one}",
                        f"n{two}",
                        1000,
                        r.BR_R * ohm,
                        r.BR_X * ohm,
                        4 * r.BR_R * ohm,
                        4 * r.BR_X * ohm,
                        "",
                        "abc",
                    )
                )
            else:
                hv, lv = (one, two) if kv[one] > kv[two] else (two, one)
                t = station.loc[(hv, lv)]
                va = t.smva_base * 1e6
                transformers.append(
                    (
                        f"t{i}",
                        f"n{hv}",
                        f"n{lv}",
                        va / 1000,
                        10_000,
                        400,
                        t.pfe_kw * 1000,
                        r.BR_R / 100e6 * va * va,
                        100 * abs(complex(r.BR_R, r.BR_X)) / 100e6 * va,
                        1.0,
                        "Dyn11",
                    )
                )
        p, q = np.zeros((len(loads), len(profile))), np.zeros((len(loads), len(profile)))
        for i, r in enumerate(loads.itertuples()):
            if r.slp != "residual" and f"{r.slp}_pu_MW" in profile:
                p[i], q[i] = profile[f"{r.slp}_pu_MW"] * r.mw, profile[f"{r.slp}_pu_MVAR"] * r.mvar
        # Taken as they are, two of the networks would carry several times their transformers' ratings.
        rated_w = sum(row[3] for row in transformers) * 1000
        scale = min(1.0, 0.6 * rated_w / (p.sum(axis=0).max() * 1e6))
        p, q = p * scale, q * scale
        # The package has no phases; SimBench's mix, so that by phase is not balanced, but below 14 kW (63 A) only:
        # one phase cannot carry its largest loads.
        phases = np.random.default_rng(int(number)).choice(["abc", "a", "b", "c"], len(loads), p=[0.4, 0.2, 0.2, 0.2])
        phases = np.where(np.abs(p).max(axis=1) < 0.014, phases, "abc")
        write(
            out / f"dtu-{number}",
            nodes,
            lines,
            transformers,
            {
                "node_id": np.array([f"n{n}" for n in loads.Node]),
                "phases": phases,
                "active_w": (p * 1e6).astype(np.float32),
                "reactive_var": (q * 1e6).astype(np.float32),
                "step_minutes": 60,
            },
        )


def rladn(out):
    import power_network_rl

    data = Path(power_network_rl.__file__).parent / "data_sources"
    for count in (25, 34, 69, 123):
        table = pd.read_csv(data / "network_data" / f"node_{count}" / f"Lines_{count}.csv")
        table = table[table.STATUS == 1]
        # 69 and 123 come without loads: they get the 34's, shifted by days, at a quarter.
        own = min(count, 34)
        series = pd.read_csv(data / "time_series_data" / f"{own}_node_time_series.csv").fillna(0)
        kw = np.array([series[f"active_power_node_{i % own + 1}"] for i in range(1, count)])
        if "renewable_active_power_node_1" in series:
            kw -= [series[f"renewable_active_power_node_{i % own + 1}"] for i in range(1, count)]
        if own < count:
            kw = 0.25 * np.array([np.roll(row, 96 * (i // own)) for i, row in enumerate(kw)])
        # Ohms at 11 kV; the folder has no volts where there is no transformer, so at 400 V: the same per unit.
        at_400 = (0.4 / 11) ** 2
        lines = [
            (
                f"l{i}",
                f"n{r.FROM:.0f}",
                f"n{r.TO:.0f}",
                1000,
                *(z * at_400 for z in (r.R, r.X, 4 * r.R, 4 * r.X)),
                "",
                "abc",
            )
            for i, r in enumerate(table.itertuples())
        ]
        if len(lines) != count - 1:
            print(f"rladn-{count}: {len(lines)} lines of {count} nodes are no tree, left out")
            continue
        phases = np.random.default_rng(count).choice(["abc", "a", "b", "c"], count - 1, p=[0.4, 0.2, 0.2, 0.2])
        write(
            out / f"rladn-{count}",
            [(f"n{i}", "source" if i == 1 else "customer", "abc") for i in range(1, count + 1)],
            lines,
            [],
            {
                "node_id": np.array([f"n{i}" for i in range(2, count + 1)]),
                "phases": phases,
                "active_w": (kw * 1e3).astype(np.float32)[:, :35_040],
                "reactive_var": (kw * 328.7).astype(np.float32)[:, :35_040],
                "step_minutes": 15,
            },
        )


if __name__ == "__main__":
    root = Path(sys.argv[1])
    homes = simbench(root, "rural1", "1-LV-rural1--0-no_sw")
    for short in ("rural2", "rural3", "urban6"):
        homes = max(homes, simbench(root, short, f"1-LV-{short}--0-no_sw"), key=len)
    european(root, homes)
    dtu(root)
    rladn(root)
