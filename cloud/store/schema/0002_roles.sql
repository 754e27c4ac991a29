-- What each program may do. Roles cannot log in: a deployer's login is granted one of them.
-- Roles belong to the whole server, so another database may have made them, perhaps at this very moment.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['gridloom_ingest', 'gridloom_work', 'gridloom_api', 'gridloom_grafana'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA public TO gridloom_ingest, gridloom_work, gridloom_api, gridloom_grafana;
GRANT SELECT ON schema_migration, feeder, area, metering_point, meter, installation,
                network_node, network_line, network_transformer
    TO gridloom_ingest, gridloom_work, gridloom_api, gridloom_grafana;

-- Ingest appends; it changes only what it keeps up to date itself.
GRANT SELECT, INSERT, UPDATE ON batch, quarantine, gateway_status, meter_state TO gridloom_ingest;
GRANT INSERT ON energy_sample, power_sample, event, dirty_range TO gridloom_ingest;

-- Work reads what ingest stored and writes what it derives. Intervals are append-only.
GRANT SELECT ON batch, energy_sample, power_sample, event, gateway_status, meter_state TO gridloom_work;
GRANT SELECT, DELETE ON dirty_range TO gridloom_work;
GRANT SELECT, INSERT ON interval, interval_version TO gridloom_work;
GRANT SELECT ON interval_current TO gridloom_work;
GRANT SELECT, INSERT, UPDATE, DELETE
    ON completeness_day, load, forecast_run, forecast, forecast_accuracy, loss_day, alert, dr_event, command
    TO gridloom_work;

-- The API reads. Keys are made by the schema's owner: a server that could make them would be worth breaking into.
GRANT SELECT ON batch, quarantine, energy_sample, power_sample, event, gateway_status, meter_state,
                interval, interval_version, interval_current, completeness_day, load,
                forecast_run, forecast, forecast_accuracy, loss_day, alert, dr_event, command, api_key
    TO gridloom_api;

GRANT SELECT ON power_sample, event, gateway_status, meter_state,
                interval, interval_version, interval_current, completeness_day, load,
                forecast_run, forecast, forecast_accuracy, loss_day, alert, dr_event
    TO gridloom_grafana;
-- What was set aside and why, without the rows themselves.
GRANT SELECT (gateway, reason, rows, recorded_at, replayed_at) ON quarantine TO gridloom_grafana;
