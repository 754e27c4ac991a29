-- How many batches and rows were ever stored, known without reading the ledger, of which the old part is ranges alone.
-- Each transaction of ingest adds a row, so that none waits for another; compacting the ledger makes one of many.
CREATE TABLE batch_count (
    kind               text NOT NULL,
    batches            bigint NOT NULL,
    rows               bigint NOT NULL,
    first_recorded_at  timestamptz,
    last_recorded_at   timestamptz
);
INSERT INTO batch_count SELECT kind, count(*), sum(rows), min(recorded_at), max(recorded_at) FROM batch GROUP BY kind;

CREATE FUNCTION count_entered() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO batch_count
    SELECT kind, count(*), sum(rows), min(recorded_at), max(recorded_at) FROM entered GROUP BY kind;
    RETURN NULL;
END
$$;
CREATE TRIGGER count_entered AFTER INSERT ON batch REFERENCING NEW TABLE AS entered
    FOR EACH STATEMENT EXECUTE FUNCTION count_entered();
CREATE FUNCTION count_replayed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO batch_count (kind, batches, rows) VALUES (NEW.kind, 0, NEW.rows - OLD.rows);
    RETURN NULL;
END
$$;
CREATE TRIGGER count_replayed AFTER UPDATE OF rows ON batch
    FOR EACH ROW WHEN (OLD.rows <> NEW.rows) EXECUTE FUNCTION count_replayed();

-- As in 0012, and the counts of many transactions become one. The lock is of use here, too: two that added up the same
-- rows at once would each keep the sum.
CREATE OR REPLACE FUNCTION compact_ledger(before timestamptz, batches_max integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    compacted bigint;
BEGIN
    LOCK TABLE batch IN SHARE ROW EXCLUSIVE MODE;
    WITH gone AS (
        DELETE FROM batch WHERE batch_id = ANY (ARRAY(
            SELECT b.batch_id FROM batch b
            WHERE b.recorded_at < before AND NOT EXISTS (
                SELECT FROM quarantine q
                WHERE q.replayed_at IS NULL AND (q.gateway, q.epoch, q.seq) = (b.gateway, b.epoch, b.seq))
            LIMIT batches_max))
        RETURNING gateway, epoch, seq
    ), ranged AS (
        INSERT INTO batch_range AS held
        SELECT gateway, epoch, range_agg(int8range(seq, seq, '[]')) FROM gone GROUP BY gateway, epoch
        ON CONFLICT (gateway, epoch) DO UPDATE SET seqs = held.seqs + excluded.seqs
    )
    SELECT count(*) INTO compacted FROM gone;
    WITH counted AS (DELETE FROM batch_count RETURNING *)
    INSERT INTO batch_count
    SELECT kind, sum(batches), sum(rows), min(first_recorded_at), max(last_recorded_at) FROM counted GROUP BY kind;
    RETURN compacted;
END
$$;

-- What the line of GET /v1/status asks each second, of tables that are kept for ever.
CREATE INDEX loss_day_computed ON loss_day (computed_at);
CREATE INDEX alert_closed ON alert (closed_at);
-- What GET /v1/ingest looks for and never should find: found without looking through all that is right.
CREATE INDEX load_miscounted ON load (start) WHERE meters_received > meters_expected;
CREATE INDEX interval_off_mark ON interval (start)
    WHERE date_bin('15 min', start, timestamptz '2000-01-01 00:00Z') <> start;

GRANT INSERT ON batch_count TO gridloom_ingest;
GRANT SELECT ON batch_count TO gridloom_api;
