"""OpenSTEF 4 on one series of a panel: CPU seconds of a fit and of a day's forecast, and the forecasts for score.py.

Not imported by Gridloom. In a venv of its own, Python 3.12 or later:

    pip install openstef==4.7.0 openstef-models xgboost-cpu pandas pyarrow   # lightgbm for --model lgbm
    OMP_NUM_THREADS=1 python tools/openstef_fit.py --panel DIR --model gblinear --out FILE.parquet

Its own preset (features, lags, scaling, defaults of the model) with quantiles 0.1 … 0.9, a horizon of 24 h and up to a
year of history, fitted once before the last 28 days, as its own default of a new model every week is more than that;
each of those days is forecast from 00:00 with its weather ex-post. Prints one line of JSON.
"""

import argparse
import json
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
from openstef_core.datasets import TimeSeriesDataset
from openstef_core.types import LeadTime, Q
from openstef_models.presets import ForecastingWorkflowConfig, create_forecasting_workflow
from openstef_models.presets.forecasting_workflow import LocationConfig

NAMES = {
    "temperature_c": "temperature",
    "temp": "temperature",
    "humidity": "relative_humidity",
    "APX": "day_ahead_electricity_price",
}
LEVELS = [n / 10 for n in range(1, 10)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panel", type=Path, required=True)
    parser.add_argument("--series", help="default: the panel's first")
    parser.add_argument("--model", default="gblinear", choices=["gblinear", "xgboost", "lgbm", "lgbmlinear"])
    parser.add_argument("--history-days", type=int, default=365)
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    meta = json.loads((asked.panel / "meta.json").read_text())
    load = pd.read_parquet(asked.panel / "load.parquet")
    series = asked.series or load.columns[0]
    frame = load[[series]].rename(columns={series: "load"}).astype(float)
    weather = asked.panel / "weather.parquet"
    if weather.exists():
        frame = frame.join(pd.read_parquet(weather).astype(float).rename(columns=NAMES))
    frame.index = pd.DatetimeIndex(frame.index, name="timestamp").tz_localize("UTC")
    step = timedelta(minutes=meta["step_minutes"])
    config = ForecastingWorkflowConfig(
        model_id="gridloom", model=asked.model, quantiles=[Q(level) for level in LEVELS], sample_interval=step,
        horizons=[LeadTime(timedelta(hours=24))], mlflow_storage=None,
        location=LocationConfig(country_code=meta["country"][:2]),
    )  # fmt: skip
    end = frame.index[-1] + step
    begin = end - timedelta(days=asked.days)
    past = frame[begin - timedelta(days=asked.history_days) : begin - step]
    for _ in range(2):  # the first one's time has imports in it
        workflow = create_forecasting_workflow(config)
        wall, cpu = time.perf_counter(), time.process_time()
        workflow.fit(TimeSeriesDataset(past, sample_interval=step))
        fitted = time.process_time() - cpu, time.perf_counter() - wall
    found, cpu = [], time.process_time()
    for day in range(asked.days):
        origin = begin + timedelta(days=day)
        seen = frame[origin - config.predict_history : origin + timedelta(days=1) - step].copy()
        seen.loc[origin:, "load"] = float("nan")
        found.append(workflow.predict(TimeSeriesDataset(seen, sample_interval=step), forecast_start=origin).data)
    each = (time.process_time() - cpu) / asked.days
    print(json.dumps({
        "panel": asked.panel.name, "series": series, "model": asked.model,
        "history_days": len(past) * step / timedelta(days=1),
        "fit_cpu_s": round(fitted[0], 3), "fit_wall_s": round(fitted[1], 3), "forecast_cpu_s": round(each, 4),
    }))  # fmt: skip
    if asked.out:
        rows = pd.concat(found)
        rows = rows[(rows.index >= begin) & (rows.index < end)]
        levels = {f"q{round(100 * level)}": rows[Q(level).format()] for level in LEVELS}
        told = pd.DataFrame({"mean": rows[Q(0.5).format()], **levels})
        told["time"] = rows.index.tz_localize(None)
        told["origin"] = told["time"].dt.normalize()
        told.assign(series=series).reset_index(drop=True).to_parquet(asked.out)


if __name__ == "__main__":
    main()
