"""Load forecasts of folders: read a panel, run ``cloud.engines.forecast`` over it, score, draw."""
