-- Power by hour and by day, per meter and as the meter said it (ratios are applied by whoever asks). Tables that
-- `gridloom work` keeps; TimescaleDB Community keeps the same names itself, as continuous aggregates.

-- Hours and days of power are those of the zone's standard time, all the year round: GRIDLOOM_ZONE when the database
-- was first migrated. TimescaleDB would need to be told the zone otherwise, and then misses late rows at midnight
-- (timescaledb issue 10296).
CREATE TABLE site_zone (zone text PRIMARY KEY, utc_offset interval NOT NULL);
INSERT INTO site_zone
    SELECT zone, least((winter AT TIME ZONE 'UTC') - (winter AT TIME ZONE zone),
                       (summer AT TIME ZONE 'UTC') - (summer AT TIME ZONE zone))
    FROM (VALUES (coalesce(nullif(current_setting('gridloom.zone', true), ''), 'Asia/Shanghai'),
                  timestamp '2026-01-01', timestamp '2026-07-01')) AS site (zone, winter, summer);

-- A reading that came twice counts once. Null where no reading of the hour had the quantity.
CREATE TABLE power_hour (
    meter_id               integer NOT NULL,
    start                  timestamptz NOT NULL,  -- whole hours of the site's standard time
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

-- One hour, or one day, of some meters.
CREATE FUNCTION power_hour_of(hour timestamptz, meter_ids integer[]) RETURNS SETOF power_hour LANGUAGE sql STABLE AS $$
SELECT meter_id, hour AS start,
       count(DISTINCT at)::integer AS marks,
       regr_avgy(DISTINCT active_power_w, extract(epoch FROM at - timestamptz '2000-01-01 00:00Z')) AS active_power_mean_w,
       min(active_power_w) AS active_power_min_w,
       max(active_power_w) AS active_power_max_w,
       regr_avgy(DISTINCT reactive_power_var, extract(epoch FROM at - timestamptz '2000-01-01 00:00Z')) AS reactive_power_mean_var,
       regr_avgy(DISTINCT voltage_l1_v, extract(epoch FROM at - timestamptz '2000-01-01 00:00Z')) AS voltage_l1_mean_v,
       min(voltage_l1_v) AS voltage_l1_min_v,
       max(voltage_l1_v) AS voltage_l1_max_v,
       regr_avgy(DISTINCT voltage_l2_v, extract(epoch FROM at - timestamptz '2000-01-01 00:00Z')) AS voltage_l2_mean_v,
       min(voltage_l2_v) AS voltage_l2_min_v,
       max(voltage_l2_v) AS voltage_l2_max_v,
       regr_avgy(DISTINCT voltage_l3_v, extract(epoch FROM at - timestamptz '2000-01-01 00:00Z')) AS voltage_l3_mean_v,
       min(voltage_l3_v) AS voltage_l3_min_v,
       max(voltage_l3_v) AS voltage_l3_max_v,
       regr_avgy(DISTINCT current_l1_a, extract(epoch FROM at - timestamptz '2000-01-01 00:00Z')) AS current_l1_mean_a,
       max(current_l1_a) AS current_l1_max_a,
       regr_avgy(DISTINCT current_l2_a, extract(epoch FROM at - timestamptz '2000-01-01 00:00Z')) AS current_l2_mean_a,
       max(current_l2_a) AS current_l2_max_a,
       regr_avgy(DISTINCT current_l3_a, extract(epoch FROM at - timestamptz '2000-01-01 00:00Z')) AS current_l3_mean_a,
       max(current_l3_a) AS current_l3_max_a,
       regr_avgy(DISTINCT power_factor, extract(epoch FROM at - timestamptz '2000-01-01 00:00Z')) AS power_factor_mean,
       min(frequency_hz) AS frequency_min_hz,
       max(frequency_hz) AS frequency_max_hz
FROM power_sample
WHERE meter_id = ANY (meter_ids) AND at >= hour AND at < hour + INTERVAL '1 hour'
GROUP BY meter_id
$$;

CREATE FUNCTION power_day_of(day timestamptz, meter_ids integer[]) RETURNS SETOF power_day LANGUAGE sql STABLE AS $$
SELECT meter_id, day AS start,
       sum(marks)::integer AS marks,
       sum(active_power_mean_w * marks) / sum(marks) FILTER (WHERE active_power_mean_w IS NOT NULL) AS active_power_mean_w,
       min(active_power_min_w) AS active_power_min_w,
       max(active_power_max_w) AS active_power_max_w,
       sum(reactive_power_mean_var * marks) / sum(marks) FILTER (WHERE reactive_power_mean_var IS NOT NULL) AS reactive_power_mean_var,
       sum(voltage_l1_mean_v * marks) / sum(marks) FILTER (WHERE voltage_l1_mean_v IS NOT NULL) AS voltage_l1_mean_v,
       min(voltage_l1_min_v) AS voltage_l1_min_v,
       max(voltage_l1_max_v) AS voltage_l1_max_v,
       sum(voltage_l2_mean_v * marks) / sum(marks) FILTER (WHERE voltage_l2_mean_v IS NOT NULL) AS voltage_l2_mean_v,
       min(voltage_l2_min_v) AS voltage_l2_min_v,
       max(voltage_l2_max_v) AS voltage_l2_max_v,
       sum(voltage_l3_mean_v * marks) / sum(marks) FILTER (WHERE voltage_l3_mean_v IS NOT NULL) AS voltage_l3_mean_v,
       min(voltage_l3_min_v) AS voltage_l3_min_v,
       max(voltage_l3_max_v) AS voltage_l3_max_v,
       sum(current_l1_mean_a * marks) / sum(marks) FILTER (WHERE current_l1_mean_a IS NOT NULL) AS current_l1_mean_a,
       max(current_l1_max_a) AS current_l1_max_a,
       sum(current_l2_mean_a * marks) / sum(marks) FILTER (WHERE current_l2_mean_a IS NOT NULL) AS current_l2_mean_a,
       max(current_l2_max_a) AS current_l2_max_a,
       sum(current_l3_mean_a * marks) / sum(marks) FILTER (WHERE current_l3_mean_a IS NOT NULL) AS current_l3_mean_a,
       max(current_l3_max_a) AS current_l3_max_a,
       sum(power_factor_mean * marks) / sum(marks) FILTER (WHERE power_factor_mean IS NOT NULL) AS power_factor_mean,
       min(frequency_min_hz) AS frequency_min_hz,
       max(frequency_max_hz) AS frequency_max_hz
FROM power_hour
WHERE meter_id = ANY (meter_ids) AND start >= day AND start < day + INTERVAL '24 hours'
GROUP BY meter_id
$$;

GRANT SELECT ON site_zone TO gridloom_ingest, gridloom_work, gridloom_api, gridloom_grafana;
GRANT SELECT ON power_hour, power_day TO gridloom_work, gridloom_api, gridloom_grafana;
GRANT INSERT, DELETE ON power_hour, power_day TO gridloom_work;
GRANT INSERT ON dirty_hour TO gridloom_ingest;
GRANT SELECT, DELETE ON dirty_hour TO gridloom_work;
