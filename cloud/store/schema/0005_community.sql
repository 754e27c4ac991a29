-- edition: community
-- Chunks older than 14 days become columns: a meter's rows side by side, in order of time. Rows that come later than
-- that (gateways hold 30 days, meters remember 35) are written beside the columns and sorted in by the policy's next run.
ALTER TABLE energy_sample SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'meter_id', timescaledb.orderby = 'at');
ALTER TABLE power_sample SET (
    timescaledb.enable_columnstore, timescaledb.segmentby = 'meter_id', timescaledb.orderby = 'at');
CALL add_columnstore_policy('energy_sample', after => INTERVAL '14 days');
CALL add_columnstore_policy('power_sample', after => INTERVAL '14 days');
