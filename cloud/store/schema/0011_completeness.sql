-- Completeness (采集成功率): what is expected, what is missing since when and why, and what was asked for again.

-- When the intervals of a point are expected: whole ones during which a meter is installed, from the site's first mark
-- on. completeness_day is right for exactly this, up to `until`.
CREATE TABLE point_expected (
    point_id  integer PRIMARY KEY,
    during    tstzmultirange NOT NULL,
    until     timestamptz NOT NULL
);

-- The counts at which a day's gaps were last listed: where they differ, its gaps are looked for again.
ALTER TABLE completeness_day ADD COLUMN listed_missing integer NOT NULL DEFAULT 0;
ALTER TABLE completeness_day ADD COLUMN listed_received integer NOT NULL DEFAULT 0;
CREATE INDEX completeness_day_unlisted ON completeness_day (day)
    WHERE (expected - received <> listed_missing OR received <> listed_received)
      AND (received < expected OR listed_missing > 0);

-- Pages and panels read this: 10,000 points × 400 days are 4 million rows above and some 10,000 here.
CREATE TABLE completeness_area_day (
    area_id   text NOT NULL,
    gateway   text NOT NULL,                      -- that polled the points on that day
    day       date NOT NULL,
    expected  bigint NOT NULL,
    received  bigint NOT NULL,
    PRIMARY KEY (area_id, day, gateway)
);
CREATE INDEX completeness_area_day_day ON completeness_area_day (day);
INSERT INTO completeness_area_day
    SELECT area_id, gateway, day, sum(expected), sum(received)
    FROM completeness_day JOIN metering_point USING (point_id) JOIN area USING (area_id)
    GROUP BY area_id, gateway, day;

-- Missing intervals, [start_at, end_at), at most a business day each, with the one reason that explains them best.
CREATE TABLE gap (
    point_id  integer NOT NULL,
    day       date NOT NULL,
    start_at  timestamptz NOT NULL,
    end_at    timestamptz NOT NULL,
    reason    text NOT NULL,
    PRIMARY KEY (point_id, start_at)
);
CREATE INDEX gap_day ON gap (day);

-- Gaps the gateway was asked to fill. Asked once; a person may ask again with `gridloom command`.
CREATE TABLE backfill_asked (
    point_id    integer NOT NULL,
    start_at    timestamptz NOT NULL,
    end_at      timestamptz NOT NULL,
    asked_at    timestamptz NOT NULL,
    command_id  text REFERENCES command,          -- none: every mark is stored already, there was nothing to ask for
    PRIMARY KEY (point_id, start_at, end_at, asked_at)
);

-- When gateways were away, [from_at, to_at) on their own clocks; gateway_status keeps only the last word. A trigger, so
-- that whoever writes a status writes its history.
CREATE TABLE gateway_outage (
    gateway  text NOT NULL,
    from_at  timestamptz NOT NULL,                -- the last time it said it was there; -infinity: never before
    to_at    timestamptz NOT NULL,                -- infinity: still away
    PRIMARY KEY (gateway, from_at)
);
INSERT INTO gateway_outage SELECT gateway, at, 'infinity' FROM gateway_status WHERE NOT online;

CREATE FUNCTION note_gateway_outage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO gateway_outage VALUES (NEW.gateway, '-infinity', CASE WHEN NEW.online THEN NEW.at ELSE 'infinity' END)
        ON CONFLICT DO NOTHING;
    ELSIF NEW.online THEN
        UPDATE gateway_outage SET to_at = greatest(from_at, NEW.at)
        WHERE gateway = NEW.gateway AND to_at = 'infinity';
    ELSE
        INSERT INTO gateway_outage VALUES (NEW.gateway, NEW.at, 'infinity')
        ON CONFLICT (gateway, from_at) DO UPDATE SET to_at = 'infinity';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER gateway_status_first AFTER INSERT ON gateway_status
    FOR EACH ROW EXECUTE FUNCTION note_gateway_outage();
CREATE TRIGGER gateway_status_turns AFTER UPDATE ON gateway_status
    FOR EACH ROW WHEN (OLD.online <> NEW.online) EXECUTE FUNCTION note_gateway_outage();

-- What explains a gap is looked up among few events of all.
CREATE INDEX event_of_meter_trouble ON event (meter_id, at)
    WHERE kind IN ('meter_silent', 'meter_back', 'clock_corrected');
CREATE INDEX event_of_gateway_trouble ON event (gateway, at) WHERE kind IN ('queue_evicted', 'clock_set_back');

GRANT SELECT, INSERT, UPDATE ON gateway_outage TO gridloom_ingest;
GRANT SELECT, INSERT, UPDATE, DELETE ON point_expected, completeness_area_day, gap, backfill_asked TO gridloom_work;
GRANT SELECT ON gateway_outage, quarantine TO gridloom_work;
GRANT SELECT ON completeness_area_day, gap, backfill_asked, gateway_outage TO gridloom_api;
GRANT SELECT ON completeness_area_day, gap, gateway_outage TO gridloom_grafana;
