-- Rows of `load` and `interval` lie as they were written, mark by mark, so each row of one series or point is in another
-- block. Their keys carry the values, so that a month or a year is read in the index alone, where its rows are side by
-- side. Building the two holds up `gridloom work` and the API, not ingest: some minutes for 100 million intervals.
ALTER TABLE load DROP CONSTRAINT load_pkey,
    ADD PRIMARY KEY (series, start) INCLUDE (supplied_wh, delivered_wh, meters_expected, meters_received);
ALTER TABLE interval DROP CONSTRAINT interval_pkey,
    ADD PRIMARY KEY (point_id, start, version)
    INCLUDE (energy_import_wh, energy_export_wh, reactive_import_varh, reactive_export_varh, quality);

-- The index alone will do only where VACUUM has been. By default it comes after a fifth of the table has changed, which
-- is 20 days of 100 and 200 of 1,000; here after so many rows, however old the table is.
ALTER TABLE interval SET (
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_freeze_min_age = 0);              -- written once: whoever looks at a page need not look again
-- A load is updated with each reading that adds to it; what that leaves behind is cleared however little it is.
ALTER TABLE load SET (
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, vacuum_index_cleanup = on);
