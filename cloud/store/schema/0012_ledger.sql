-- The ledger stays small: batches that were entered long ago live on as ranges of seqs, one row for each epoch.
CREATE TABLE batch_range (
    gateway  text NOT NULL,
    epoch    text NOT NULL,
    seqs     int8multirange NOT NULL,
    PRIMARY KEY (gateway, epoch)
);
CREATE INDEX batch_recorded_at ON batch USING brin (recorded_at) WITH (autosummarize = on);

-- Takes at most ``batches_max`` of the oldest batches, entered before ``before``, out of ``batch``; returns how many.
-- The lock is what keeps a batch from being stored twice: an ingestor that looked before would wait for the deleted
-- row, find it gone, and enter it again. What waits in quarantine needs its batch's number, so it stays.
CREATE FUNCTION compact_ledger(before timestamptz, batches_max integer) RETURNS bigint
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
    RETURN compacted;
END
$$;
REVOKE ALL ON FUNCTION compact_ledger(timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION compact_ledger(timestamptz, integer) TO gridloom_ingest, gridloom_work;
GRANT SELECT ON batch_range TO gridloom_ingest, gridloom_work, gridloom_api;

-- Quarantine: who gave something up, why, and how much of the disk waits for somebody.
-- replayed_at says when an entry was settled: replayed, or dropped, and then ``dropped_because`` says why.
ALTER TABLE quarantine ADD COLUMN dropped_because text;
ALTER TABLE quarantine ADD COLUMN dropped_by text;
ALTER TABLE quarantine ADD COLUMN size_bytes bigint NOT NULL
    GENERATED ALWAYS AS (300 + coalesce(octet_length(payload), 0) + coalesce(octet_length(row_values::text), 0)) STORED;
CREATE INDEX quarantine_waiting_size ON quarantine (gateway, size_bytes) WHERE replayed_at IS NULL;

-- Every transaction of ingest updates it: room in each page lets an update stay off the index.
ALTER TABLE meter_state SET (fillfactor = 50);
