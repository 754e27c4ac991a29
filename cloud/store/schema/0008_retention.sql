-- What goes when, in one place: SELECT * FROM retention; UPDATE retention SET keep = '200 days' WHERE data = '…'.
-- What is not listed is kept for ever: intervals and their versions, loads, losses, completeness, the ledger, alerts,
-- commands, events of demand response. Columns say what a row's age is; quarantine's says that only replayed rows go.
CREATE TABLE retention (
    data  text PRIMARY KEY,                       -- a table
    age   text NOT NULL,                          -- its column that tells a row's age
    keep  interval,                               -- null: for ever
    -- Rows may come 35 days late, and are needed again for what is derived from them.
    CHECK (data NOT IN ('energy_sample', 'power_sample') OR keep >= interval '60 days'),
    CHECK (keep >= interval '1 day')
);
INSERT INTO retention VALUES
    ('energy_sample', 'at', '5 years'),
    ('power_sample', 'at', '400 days'),
    ('power_hour', 'start', '5 years'),
    ('power_day', 'start', NULL),
    ('event', 'at', '3 years'),
    ('quarantine', 'replayed_at', '90 days'),
    ('forecast_run', 'origin', '400 days');       -- its forecasts go with it

-- Removes what is too old at ``moment``: whole chunks where TimescaleDB has them, elsewhere at most ``rows_max`` rows of
-- each table. Who may call it can remove nothing that the table above does not say.
CREATE FUNCTION retain(moment timestamptz, rows_max integer)
RETURNS TABLE (data text, older_than timestamptz, removed bigint, unit text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    rule retention;
    chunked boolean;
BEGIN
    FOR rule IN SELECT * FROM retention r WHERE keep IS NOT NULL ORDER BY r.data LOOP
        data := rule.data;
        older_than := date_trunc('day', moment - rule.keep, 'UTC');
        -- A view is a continuous aggregate.
        SELECT relkind = 'v' INTO chunked FROM pg_class WHERE oid = rule.data::regclass;
        IF NOT chunked AND EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') THEN
            EXECUTE 'SELECT EXISTS (SELECT FROM timescaledb_information.hypertables WHERE hypertable_name = $1)'
                INTO chunked USING rule.data;
        END IF;
        IF chunked THEN
            unit := 'chunks';
            EXECUTE format('SELECT count(*) FROM drop_chunks(%L::regclass, older_than => $1)', rule.data)
                INTO removed USING older_than;
        ELSE
            unit := 'rows';
            IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = rule.data::regclass AND attname = 'meter_id')
               AND rule.data <> 'event' THEN
                -- Their one index is by meter and time.
                EXECUTE format(
                    'DELETE FROM %1$I WHERE ctid = ANY (ARRAY('
                    'SELECT old.ctid FROM meter m CROSS JOIN LATERAL (SELECT s.ctid FROM %1$I s'
                    ' WHERE s.meter_id = m.meter_id AND s.%2$I < $1 ORDER BY s.%2$I LIMIT $2) old LIMIT $2))',
                    rule.data, rule.age) USING older_than, rows_max;
            ELSE
                EXECUTE format('DELETE FROM %1$I WHERE ctid = ANY (ARRAY('
                               'SELECT ctid FROM %1$I WHERE %2$I < $1 LIMIT $2))', rule.data, rule.age)
                    USING older_than, rows_max;
            END IF;
            GET DIAGNOSTICS removed = ROW_COUNT;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION retain(timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION retain(timestamptz, integer) TO gridloom_work;
GRANT SELECT ON retention TO gridloom_ingest, gridloom_work, gridloom_api, gridloom_grafana;

CREATE INDEX forecast_run_origin ON forecast_run (origin);
CREATE INDEX forecast_of_run ON forecast (run_id);  -- for the cascade
CREATE INDEX quarantine_replayed ON quarantine (replayed_at) WHERE replayed_at IS NOT NULL;

-- What pages ask of tables that are kept for ever: one day of all points, the newest interval with a load.
CREATE INDEX completeness_day_of_day ON completeness_day (day);
CREATE INDEX load_start ON load (start);
