-- edition: community
-- Compress what the 35 days of backfill no longer touch. Registers are kept for years, instantaneous values for months.
ALTER TABLE energy_sample SET (
    timescaledb.compress, timescaledb.compress_segmentby = 'meter_id', timescaledb.compress_orderby = 'at');
ALTER TABLE power_sample SET (
    timescaledb.compress, timescaledb.compress_segmentby = 'meter_id', timescaledb.compress_orderby = 'at');
SELECT add_compression_policy('energy_sample', INTERVAL '63 days');
SELECT add_compression_policy('power_sample', INTERVAL '63 days');
SELECT add_retention_policy('power_sample', INTERVAL '400 days');
