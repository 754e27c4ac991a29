"""A small registry on disk: one feeder, one area, a head meter and two customers of gateway gw-1."""

from pathlib import Path

FILES = {
    "feeders.csv": "feeder_id,name_en,name_zh,capacity_w\nF1,Feeder 1,一号馈线,1000000\n",
    "areas.csv": (
        "area_id,feeder_id,name_en,name_zh,gateway,capacity_w,loss_low_percent,loss_high_percent\n"
        "A1,F1,Area 1,一号台区,gw-1,100000,-1,8\n"
    ),
    "nodes.csv": (
        "node_id,area_id,kind,phases\nA1-HV,A1,source,abc\nA1-LV,A1,bus,abc\nA1-N1,A1,customer,a\nA1-N2,A1,customer,b\n"
    ),
    "lines.csv": (
        "line_id,from_node,to_node,length_m,r_ohm_per_km,x_ohm_per_km\n"
        "A1-L1,A1-LV,A1-N1,50,0.3,0.08\nA1-L2,A1-LV,A1-N2,80,0.3,0.08\n"
    ),
    "transformers.csv": (
        "transformer_id,hv_node,lv_node,rated_kva,hv_v,lv_v,no_load_loss_w,load_loss_w,impedance_percent\n"
        "A1-T,A1-HV,A1-LV,200,10000,400,240,2100,4\n"
    ),
    "meters.csv": (
        "serial,protocol,gateway,wire_name,point,area_id,role,phases,node_id,controllable,ct_ratio,pt_ratio\n"
        "000000000001,dlt645-2007,gw-1,m001,A1-HEAD,A1,supply,abc,A1-HV,false,1,1\n"
        "000000000002,dlt645-2007,gw-1,m002,A1-C01,A1,customer,a,A1-N1,true,1,1\n"
        "000000000003,modbus-tcp,gw-1,m003,A1-C02,A1,customer,b,A1-N2,false,30,1\n"
    ),
}


def write_registry(folder: Path, **changed: str) -> Path:
    """``changed``: file stem → content in place of the usual one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_text(changed.get(Path(name).stem, content), encoding="utf-8")
    return folder
