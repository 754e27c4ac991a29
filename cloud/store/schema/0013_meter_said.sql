-- What meter_state is to learn: one row for a transaction of ingest, as arrays, because an update for each meter costs
-- as much as its sample. Ingest carries it over within seconds; a killed ingestor's is carried over by the next.
CREATE TABLE meter_said (
    meter_id   integer[] NOT NULL,
    energy_at  timestamptz[] NOT NULL,            -- -infinity: nothing of that kind
    power_at   timestamptz[] NOT NULL,
    read_us    bigint[] NOT NULL,                 -- when the meter's clock was read, µs since 1970; the least: it was not
    offset_us  bigint[] NOT NULL                  -- the meter's clock minus the gateway's
);
-- Compressing them would cost more than writing them.
ALTER TABLE meter_said
    ALTER meter_id SET STORAGE EXTERNAL, ALTER energy_at SET STORAGE EXTERNAL, ALTER power_at SET STORAGE EXTERNAL,
    ALTER read_us SET STORAGE EXTERNAL, ALTER offset_us SET STORAGE EXTERNAL;
ALTER TABLE meter_said SET (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
GRANT SELECT, INSERT, UPDATE, DELETE ON meter_said TO gridloom_ingest;
