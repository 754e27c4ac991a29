-- Forecasts with their whole distribution and what they were made from; the calendar and the weather they may use.

ALTER TABLE forecast_run
    ADD COLUMN levels real[] NOT NULL DEFAULT '{}',   -- of the quantiles, ascending; 0.05 … 0.95
    ADD COLUMN inputs jsonb NOT NULL DEFAULT '{}';    -- history and weather: from, until, available until when
ALTER TABLE forecast
    ADD COLUMN quantiles real[];                      -- W, one for each of the run's levels; null before these were kept
ALTER TABLE forecast_accuracy
    ADD COLUMN pinball_wh double precision,           -- mean over the levels 0.1 … 0.9; wQL = 2 · pinball / |actual|
    ADD COLUMN inside_80 integer;                     -- intervals whose load lay within p10 to p90
-- Rows of an earlier version have neither.
CREATE INDEX forecast_accuracy_day ON forecast_accuracy (day);

-- What kind of day it is, where the public calendar of the country is wrong or does not know it. A row wins.
CREATE TABLE calendar_day (
    day   date PRIMARY KEY,
    kind  text NOT NULL CHECK (kind IN ('working', 'saturday', 'sunday', 'holiday', 'worked_weekend')),
    name  text NOT NULL DEFAULT ''                    -- of the holiday; days with one name in a row are one holiday
);

-- Any number of columns (temperature_c, radiation_w_m2 …) from any number of sources. A measurement is available after
-- ``at``, a forecast before; the same ``at`` may come again, later and better.
CREATE TABLE weather (
    source        text NOT NULL,
    "column"      text NOT NULL,
    at            timestamptz NOT NULL,
    available_at  timestamptz NOT NULL,
    value         real NOT NULL,
    PRIMARY KEY (source, "column", at, available_at)
);
CREATE INDEX weather_at ON weather (at);

GRANT SELECT ON calendar_day, weather TO gridloom_work, gridloom_api, gridloom_grafana;
GRANT SELECT, INSERT ON weather TO gridloom_ingest;
