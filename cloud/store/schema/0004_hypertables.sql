-- edition: timescaledb
-- Chunks of a week: at 300 meters a chunk is small, at 100,000 meters its index still fits in memory.
-- No default index on time: the one on (meter_id, at) serves, and each index costs half of the ingest.
SELECT create_hypertable('energy_sample', by_range('at', INTERVAL '7 days'),
                         create_default_indexes => false, migrate_data => true);
SELECT create_hypertable('power_sample', by_range('at', INTERVAL '7 days'),
                         create_default_indexes => false, migrate_data => true);
