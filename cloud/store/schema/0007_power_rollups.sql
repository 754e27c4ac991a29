-- Power by hour and by day, per meter and as the meter said it (ratios are applied by whoever asks). Tables that
-- `gridloom work` keeps; TimescaleDB Community keeps the same names itself, as continuous aggregates.

-- Business days of power_day begin at midnight here: GRIDLOOM_ZONE when the database was first migrated.
CREATE TABLE site_zone (zone text PRIMARY KEY);
INSERT INTO site_zone SELECT coalesce(nullif(current_setting('gridloom.zone', true), ''), 'Asia/Shanghai');

-- A reading that came twice counts once. Null where no reading of the hour had the quantity.
CREATE TABLE power_hour (
    meter_id               integer NOT NULL,
    start                  timestamptz NOT NULL,  -- whole hours of UTC
    marks                  integer NOT NULL,      -- instants with a reading
    active_power_mean_w    double precision,
    active_power_min_w     real,
    active_power_max_w     real,
    reactive_power_mean_var double precision,
    voltage_l1_mean_v      double precision,
    voltage_l1_min_v       real,
    voltage_l1_max_v       real,
    voltage_l2_mean_v      double precision,
    voltage_l2_min_v       real,
    voltage_l2_max_v       real,
    voltage_l3_mean_v      double precision,
    voltage_l3_min_v       real,
    voltage_l3_max_v       real,
    current_l1_mean_a      double precision,
    current_l1_max_a       real,
    current_l2_mean_a      double precision,
    current_l2_max_a       real,
    current_l3_mean_a      double precision,
    current_l3_max_a       real,
    power_factor_mean      double precision,
    frequency_min_hz       real,
    frequency_max_hz       real,
    PRIMARY KEY (meter_id, start)
);

-- Of the hours that begin in the day: a mean is theirs, each weighted with its marks.
CREATE TABLE power_day (LIKE power_hour INCLUDING ALL);

-- What power_hour lacks: one row for an hour and all meters of one transaction, written by ingest with the samples.
CREATE TABLE dirty_hour (start timestamptz NOT NULL, meter_ids integer[] NOT NULL);

GRANT SELECT ON site_zone TO gridloom_ingest, gridloom_work, gridloom_api, gridloom_grafana;
GRANT SELECT ON power_hour, power_day TO gridloom_work, gridloom_api, gridloom_grafana;
GRANT INSERT, UPDATE ON power_hour, power_day TO gridloom_work;
GRANT INSERT ON dirty_hour TO gridloom_ingest;
GRANT SELECT, DELETE ON dirty_hour TO gridloom_work;
