-- edition: community
-- The same names and columns, kept by TimescaleDB: what is in chunks answers for the newest hours, what is kept for the
-- others, and a late row, also into a compressed chunk, makes its hour and its day anew within minutes.
DROP FUNCTION power_hour_of(timestamptz, integer[]), power_day_of(timestamptz, integer[]);
DROP TABLE power_day, power_hour;

-- A bucket's offset must be a constant.
DO $create$
DECLARE
    east text := (SELECT (- utc_offset)::text FROM site_zone);
BEGIN
    EXECUTE format($view$
CREATE MATERIALIZED VIEW power_hour WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT meter_id, time_bucket(INTERVAL '1 hour', at, INTERVAL %L) AS start,
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
FROM power_sample GROUP BY 1, 2 WITH NO DATA
    $view$, east);
    EXECUTE format($view$
CREATE MATERIALIZED VIEW power_day WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT meter_id, time_bucket(INTERVAL '1 day', start, INTERVAL %L) AS start,
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
FROM power_hour GROUP BY 1, 2 WITH NO DATA
    $view$, east);
END
$create$;

-- Nobody takes dirty hours here: TimescaleDB keeps its own record of what changed.
CREATE RULE dirty_hour_ignored AS ON INSERT TO dirty_hour DO INSTEAD NOTHING;
DELETE FROM dirty_hour;

-- A refresh over hours whose samples were dropped would remove the hours, so it ends two chunks before retention begins.
CREATE FUNCTION power_follows_retention() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM remove_continuous_aggregate_policy('power_hour', if_exists => true);
    PERFORM remove_continuous_aggregate_policy('power_day', if_exists => true);
    PERFORM add_continuous_aggregate_policy('power_hour', start_offset => NEW.keep - INTERVAL '14 days',
                                            end_offset => INTERVAL '1 hour', schedule_interval => INTERVAL '5 minutes');
    PERFORM add_continuous_aggregate_policy('power_day', start_offset => NEW.keep - INTERVAL '16 days',
                                            end_offset => INTERVAL '1 day', schedule_interval => INTERVAL '15 minutes');
    RETURN NULL;
END
$$;
CREATE TRIGGER power_follows_retention AFTER UPDATE ON retention
    FOR EACH ROW WHEN (NEW.data = 'power_sample') EXECUTE FUNCTION power_follows_retention();
UPDATE retention SET keep = keep WHERE data = 'power_sample';

GRANT SELECT ON power_hour, power_day TO gridloom_work, gridloom_api, gridloom_grafana;
