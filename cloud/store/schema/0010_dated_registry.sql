-- The registry is dated: where a point belongs, what hangs on a feeder, which meter stands where at which ratios.
-- metering_point and area hold what is in force now; the tables here hold all of it, [valid_from, valid_to).

-- GiST takes ranges as they are; plain integers and text would need btree_gist, which not every server has.
CREATE TYPE textrange AS RANGE (subtype = text, collation = "C");

ALTER TABLE meter ADD COLUMN template text;              -- its table in protocols/meters, where known
ALTER TABLE meter ADD COLUMN counter_modulus_wh bigint CHECK (counter_modulus_wh > 0);  -- registers return to 0 here
UPDATE meter SET counter_modulus_wh = CASE protocol WHEN 'dlt645-2007' THEN 1000000000 ELSE 42949672960 END;

-- Registers the meter showed at valid_from and at valid_to, where somebody noted them: an exchange between two marks is
-- then exact.
ALTER TABLE installation
    ADD COLUMN opening_energy_import_wh      bigint,
    ADD COLUMN opening_energy_export_wh      bigint,
    ADD COLUMN opening_reactive_import_varh  bigint,
    ADD COLUMN opening_reactive_export_varh  bigint,
    ADD COLUMN closing_energy_import_wh      bigint,
    ADD COLUMN closing_energy_export_wh      bigint,
    ADD COLUMN closing_reactive_import_varh  bigint,
    ADD COLUMN closing_reactive_export_varh  bigint;
CREATE INDEX installation_point ON installation (point_id, valid_from);
CREATE INDEX installation_meter ON installation (meter_id, valid_from);
ALTER TABLE installation
    ADD CONSTRAINT one_meter_of_a_point EXCLUDE USING gist (
        int4range(point_id, point_id, '[]') WITH &&, tstzrange(valid_from, valid_to) WITH &&) DEFERRABLE,
    ADD CONSTRAINT one_place_of_a_meter EXCLUDE USING gist (
        int4range(meter_id, meter_id, '[]') WITH &&, tstzrange(valid_from, valid_to) WITH &&) DEFERRABLE,
    ADD CONSTRAINT one_meter_of_a_wire_name EXCLUDE USING gist (
        textrange(gateway || '/' || wire_name, gateway || '/' || wire_name, '[]') WITH &&,
        tstzrange(valid_from, valid_to) WITH &&) DEFERRABLE;

CREATE TABLE point_in_area (                             -- 户变关系
    point_id      integer NOT NULL REFERENCES metering_point,
    area_id       text NOT NULL REFERENCES area,
    role          text NOT NULL CHECK (role IN ('supply', 'customer', 'check', 'generation')),
    phases        text NOT NULL,
    node_id       text NOT NULL,
    controllable  boolean NOT NULL,
    valid_from    timestamptz NOT NULL DEFAULT '-infinity',
    valid_to      timestamptz NOT NULL DEFAULT 'infinity',
    PRIMARY KEY (point_id, valid_from),
    CHECK (valid_from < valid_to),
    CONSTRAINT one_area_of_a_point EXCLUDE USING gist (
        int4range(point_id, point_id, '[]') WITH &&, tstzrange(valid_from, valid_to) WITH &&) DEFERRABLE
);
CREATE INDEX point_in_area_area ON point_in_area (area_id);

CREATE TABLE area_on_feeder (
    area_id     text NOT NULL REFERENCES area,
    feeder_id   text NOT NULL REFERENCES feeder,
    valid_from  timestamptz NOT NULL DEFAULT '-infinity',
    valid_to    timestamptz NOT NULL DEFAULT 'infinity',
    PRIMARY KEY (area_id, valid_from),
    CHECK (valid_from < valid_to),
    CONSTRAINT one_feeder_of_an_area EXCLUDE USING gist (
        textrange(area_id, area_id, '[]') WITH &&, tstzrange(valid_from, valid_to) WITH &&) DEFERRABLE
);
CREATE INDEX area_on_feeder_feeder ON area_on_feeder (feeder_id);

-- A new point or area belongs where it says, always, until something else is put on record.
CREATE FUNCTION put_point_in_area() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO point_in_area (point_id, area_id, role, phases, node_id, controllable)
    VALUES (NEW.point_id, NEW.area_id, NEW.role, NEW.phases, NEW.node_id, NEW.controllable);
    RETURN NULL;
END
$$;
CREATE TRIGGER put_point_in_area AFTER INSERT ON metering_point FOR EACH ROW EXECUTE FUNCTION put_point_in_area();
CREATE FUNCTION put_area_on_feeder() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO area_on_feeder (area_id, feeder_id) VALUES (NEW.area_id, NEW.feeder_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER put_area_on_feeder AFTER INSERT ON area FOR EACH ROW EXECUTE FUNCTION put_area_on_feeder();
INSERT INTO point_in_area (point_id, area_id, role, phases, node_id, controllable)
    SELECT point_id, area_id, role, phases, node_id, controllable FROM metering_point;
INSERT INTO area_on_feeder (area_id, feeder_id) SELECT area_id, feeder_id FROM area;

-- What must be derived again: a meter's samples (from ingest), a point's intervals or a series' loads (the registry).
ALTER TABLE dirty_range ALTER COLUMN meter_id DROP NOT NULL;
ALTER TABLE dirty_range ADD COLUMN point_id integer, ADD COLUMN series text;
ALTER TABLE dirty_range ADD CHECK (num_nonnulls(meter_id, point_id, series) = 1);

GRANT SELECT ON point_in_area, area_on_feeder
    TO gridloom_ingest, gridloom_work, gridloom_api, gridloom_grafana;
-- Work puts a change in force when its date has come, and hands over rows that came under a meter's old name.
GRANT UPDATE (area_id, role, phases, node_id, controllable) ON metering_point TO gridloom_work;
GRANT UPDATE (feeder_id) ON area TO gridloom_work;
GRANT UPDATE (meter_id) ON energy_sample TO gridloom_work;
