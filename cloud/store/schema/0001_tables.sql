-- One dialect for TimescaleDB Community, TimescaleDB Apache and plain PostgreSQL >= 16.
-- Instants are timestamptz (UTC); intervals are half-open [start, start + 15 min) and labelled by start.

-- ---- registry: what is installed where, dated ------------------------------------------------------------------------

CREATE TABLE feeder (
    feeder_id   text PRIMARY KEY,
    name_en     text NOT NULL,
    name_zh     text NOT NULL,
    capacity_w  double precision NOT NULL
);

CREATE TABLE area (                              -- 台区: what one distribution transformer feeds
    area_id     text PRIMARY KEY,
    feeder_id   text NOT NULL REFERENCES feeder,
    name_en     text NOT NULL,
    name_zh     text NOT NULL,
    gateway     text NOT NULL UNIQUE,            -- MQTT name of the gateway that polls it
    capacity_w  double precision NOT NULL,       -- operating limit the peak rule watches
    loss_low_percent   double precision NOT NULL DEFAULT -1,
    loss_high_percent  double precision NOT NULL DEFAULT 8
);

CREATE TABLE metering_point (
    point_id      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    point         text NOT NULL UNIQUE,          -- what people and billing call it
    area_id       text NOT NULL REFERENCES area,
    role          text NOT NULL CHECK (role IN ('supply', 'customer', 'check', 'generation')),
    phases        text NOT NULL DEFAULT 'abc',
    node_id       text NOT NULL,                 -- where it hangs in the network model
    controllable  boolean NOT NULL DEFAULT false
);

CREATE TABLE meter (
    meter_id  integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    serial    text NOT NULL UNIQUE,
    protocol  text NOT NULL
);

-- The dated map (gateway, wire name) -> meter -> metering point. Ratios are applied once, here in the cloud.
CREATE TABLE installation (
    meter_id    integer NOT NULL REFERENCES meter,
    point_id    integer NOT NULL REFERENCES metering_point,
    gateway     text NOT NULL,
    wire_name   text NOT NULL,
    ct_ratio    integer NOT NULL DEFAULT 1 CHECK (ct_ratio > 0),
    pt_ratio    integer NOT NULL DEFAULT 1 CHECK (pt_ratio > 0),
    valid_from  timestamptz NOT NULL DEFAULT '-infinity',
    valid_to    timestamptz NOT NULL DEFAULT 'infinity',
    PRIMARY KEY (gateway, wire_name, valid_from),
    CHECK (valid_from < valid_to)
);

-- Network model of the areas, as in the line-loss folder layout.
CREATE TABLE network_node (
    node_id  text PRIMARY KEY,
    area_id  text NOT NULL REFERENCES area,
    kind     text NOT NULL CHECK (kind IN ('source', 'bus', 'customer')),
    phases   text NOT NULL DEFAULT 'abc'
);
CREATE TABLE network_line (
    line_id         text PRIMARY KEY,
    from_node       text NOT NULL REFERENCES network_node,
    to_node         text NOT NULL REFERENCES network_node,
    length_m        double precision NOT NULL,
    r_ohm_per_km    double precision NOT NULL,
    x_ohm_per_km    double precision NOT NULL
);
CREATE TABLE network_transformer (
    transformer_id     text PRIMARY KEY,
    hv_node            text NOT NULL REFERENCES network_node,
    lv_node            text NOT NULL REFERENCES network_node,
    rated_kva          double precision NOT NULL,
    hv_v               double precision NOT NULL,
    lv_v               double precision NOT NULL,
    no_load_loss_w     double precision NOT NULL,
    load_loss_w        double precision NOT NULL,
    impedance_percent  double precision NOT NULL
);

-- ---- ingest: the ledger and the append-only samples --------------------------------------------------------------------

CREATE TABLE batch (                              -- (gateway, epoch, seq) names a batch for ever: no row is stored twice
    batch_id     bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    gateway      text NOT NULL,
    epoch        text NOT NULL,
    seq          bigint NOT NULL,
    kind         text NOT NULL,
    rows         integer NOT NULL,                -- stored
    quarantined  integer NOT NULL DEFAULT 0,      -- set aside
    sent_at      timestamptz NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (gateway, epoch, seq)
);

CREATE TABLE energy_sample (                      -- registers at marks, as the meter said them
    meter_id              integer NOT NULL,
    at                    timestamptz NOT NULL,   -- the intended mark
    gateway_at            timestamptz NOT NULL,   -- when the gateway read it
    meter_at              timestamptz,            -- the meter's own clock
    quality               smallint NOT NULL,
    energy_import_wh      bigint,
    energy_export_wh      bigint,
    reactive_import_varh  bigint,
    reactive_export_varh  bigint,
    batch_id              bigint NOT NULL
);
CREATE INDEX energy_sample_meter_at ON energy_sample (meter_id, at);

CREATE TABLE power_sample (
    meter_id            integer NOT NULL,
    at                  timestamptz NOT NULL,
    gateway_at          timestamptz NOT NULL,
    meter_at            timestamptz,
    quality             smallint NOT NULL,
    active_power_w      real,
    reactive_power_var  real,
    voltage_l1_v        real,
    voltage_l2_v        real,
    voltage_l3_v        real,
    current_l1_a        real,
    current_l2_a        real,
    current_l3_a        real,
    power_factor        real,
    frequency_hz        real,
    batch_id            bigint NOT NULL
);
CREATE INDEX power_sample_meter_at ON power_sample (meter_id, at);

CREATE TABLE event (                              -- what gateways and meters report about themselves
    gateway   text NOT NULL,
    meter_id  integer,
    meter     text,                               -- wire name, as reported
    at        timestamptz NOT NULL,
    kind      text NOT NULL,
    detail    jsonb NOT NULL DEFAULT '{}',
    batch_id  bigint NOT NULL
);
CREATE INDEX event_at ON event (at);

CREATE TABLE quarantine (                         -- nothing is dropped silently: whole batches, or single rows of one
    quarantine_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gateway        text,
    topic          text NOT NULL,
    content_type   text,
    epoch          text,
    seq            bigint,
    reason         text NOT NULL,                 -- snake_case, e.g. undecodable, unknown_meter, impossible_value
    detail         text NOT NULL,                 -- what, where, what to do
    rows           integer NOT NULL,
    payload        bytea,                         -- the whole message, when it could not be taken apart
    row_values     jsonb,                         -- the rows, when only they were set aside
    recorded_at    timestamptz NOT NULL DEFAULT now(),
    replayed_at    timestamptz
);

CREATE TABLE gateway_status (
    gateway      text PRIMARY KEY,
    online       boolean NOT NULL,
    at           timestamptz NOT NULL,
    status       jsonb NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE meter_state (                        -- last word of each meter, kept by ingest
    meter_id        integer PRIMARY KEY,
    last_energy_at  timestamptz,
    last_power_at   timestamptz,
    clock_offset_s  double precision,             -- meter's clock minus gateway's; positive: the meter is fast
    clock_read_at   timestamptz
);

CREATE TABLE dirty_range (                        -- what ingest changed and work has not derived yet, [from_at, to_at]
    meter_id  integer NOT NULL,
    from_at   timestamptz NOT NULL,
    to_at     timestamptz NOT NULL
);

-- ---- derived: intervals, loads, forecasts, losses ----------------------------------------------------------------------

CREATE TABLE interval_version (                   -- numbered in commit order under one lock; as_of asks for these
    version    bigint PRIMARY KEY,
    closed_at  timestamptz NOT NULL,              -- the site's clock
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- Billing grade, append-only: a correction is a new version. All quantities of one interval come from the same pair of
-- readings and share their quality, so they share the row.
CREATE TABLE interval (
    point_id              integer NOT NULL,
    start                 timestamptz NOT NULL,
    version               bigint NOT NULL,
    energy_import_wh      bigint,
    energy_export_wh      bigint,
    reactive_import_varh  bigint,
    reactive_export_varh  bigint,
    quality               smallint NOT NULL,
    PRIMARY KEY (point_id, start, version)
);

CREATE VIEW interval_current AS
    SELECT DISTINCT ON (point_id, start) *
    FROM interval ORDER BY point_id, start, version DESC;

CREATE TABLE completeness_day (                   -- 采集成功率; day is the business day in the site's zone
    point_id  integer NOT NULL,
    day       date NOT NULL,
    expected  integer NOT NULL,                   -- intervals that are over
    received  integer NOT NULL,
    PRIMARY KEY (point_id, day)
);

-- series: substation:S1, feeder:F1, area:A1. Net energy drawn; missing where no head reading is there.
CREATE TABLE load (
    series          text NOT NULL,
    start           timestamptz NOT NULL,
    supplied_wh     bigint,                       -- head meters, import less export
    delivered_wh    bigint,                       -- customers, import less export, of the meters that are there
    meters_expected integer NOT NULL,
    meters_received integer NOT NULL,
    PRIMARY KEY (series, start)
);

CREATE TABLE forecast_run (
    run_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin     timestamptz NOT NULL,              -- nothing later was used
    made_at    timestamptz NOT NULL,
    model      text NOT NULL,
    model_version text NOT NULL,
    horizon_h  integer NOT NULL,
    inputs_until timestamptz NOT NULL             -- newest input's availability
);
CREATE TABLE forecast (
    run_id  bigint NOT NULL REFERENCES forecast_run ON DELETE CASCADE,
    series  text NOT NULL,
    start   timestamptz NOT NULL,
    p10_w   double precision NOT NULL,
    p50_w   double precision NOT NULL,
    p90_w   double precision NOT NULL,
    PRIMARY KEY (series, start, run_id)
);
CREATE TABLE forecast_accuracy (                  -- day-ahead, rolling origin, by business day
    series      text NOT NULL,
    day         date NOT NULL,
    model       text NOT NULL,
    abs_error_wh double precision NOT NULL,
    actual_wh   double precision NOT NULL,
    intervals   integer NOT NULL,
    PRIMARY KEY (series, day, model)
);

CREATE TABLE loss_day (
    area_id       text NOT NULL REFERENCES area,
    day           date NOT NULL,
    supplied_wh   double precision,
    delivered_wh  double precision,
    technical_wh  double precision,
    unexplained_wh double precision,              -- supplied - delivered - technical
    aligned       integer NOT NULL,               -- intervals in which every meter was there; only these count
    expected      integer NOT NULL,
    state         text NOT NULL CHECK (state IN ('normal', 'high', 'negative', 'not_computable')),
    reason        text NOT NULL DEFAULT '',
    computed_at   timestamptz NOT NULL,
    PRIMARY KEY (area_id, day)
);

-- ---- acting: alerts, demand response, commands -------------------------------------------------------------------------

CREATE TABLE alert (
    alert_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rule        text NOT NULL,                    -- forecast_above_capacity, loss_out_of_range, meter_silent, clock_drift
    subject     text NOT NULL,                    -- area:A1, meter:… (metering point)
    severity    text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    opened_at   timestamptz NOT NULL,
    closed_at   timestamptz,
    message_en  text NOT NULL,
    message_zh  text NOT NULL,
    evidence    jsonb NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX alert_open ON alert (rule, subject) WHERE closed_at IS NULL;

CREATE TABLE dr_event (
    event_id      text PRIMARY KEY,
    area_id       text NOT NULL REFERENCES area,
    alert_id      bigint REFERENCES alert,
    start_at      timestamptz NOT NULL,
    end_at        timestamptz NOT NULL,
    points        integer[] NOT NULL,             -- metering points whose load is shed
    state         text NOT NULL CHECK (state IN ('planned', 'sent', 'done', 'failed', 'measured')),
    baseline_wh   double precision,
    actual_wh     double precision,
    reduction_wh  double precision,
    method        text,
    measured_at   timestamptz
);

CREATE TABLE command (
    command_id  text PRIMARY KEY,
    gateway     text NOT NULL,
    event_id    text REFERENCES dr_event,
    body        jsonb NOT NULL,
    issued_at   timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    sent_at     timestamptz,
    replied_at  timestamptz,
    outcome     text,
    reply       jsonb
);

CREATE TABLE api_key (
    name        text PRIMARY KEY,
    hash        bytea NOT NULL UNIQUE,            -- SHA-256 of a 256-bit random key; the key itself is kept nowhere
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz
);
