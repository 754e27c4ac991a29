-- Losses with their uncertainty, and whose records explain what an area loses beyond its technical loss.

ALTER TABLE loss_day
    ADD COLUMN unexplained_lo_wh double precision,   -- 80 % interval; null where unexplained_wh is, and of older rows
    ADD COLUMN unexplained_hi_wh double precision,
    ADD COLUMN fed_in_wh double precision,           -- by the head meters and by generation: what a loss is a share of
    ADD COLUMN filled integer NOT NULL DEFAULT 0;    -- customers' intervals that were missing and put in from around
COMMENT ON COLUMN loss_day.aligned IS 'intervals in which the head and most customers were measured; only these count';

-- That an area was searched, through which day, and what came of it: no suspects is an answer, too.
CREATE TABLE loss_search (
    area_id      text NOT NULL REFERENCES area,
    day          date NOT NULL,                      -- last whole business day looked at
    from_day     date NOT NULL,                      -- first one
    customers    integer NOT NULL,
    reason       text NOT NULL DEFAULT '',           -- why it could not be searched; '' where it was
    searched_at  timestamptz NOT NULL,
    PRIMARY KEY (area_id, day)
);
CREATE INDEX loss_search_at ON loss_search (searched_at);

CREATE TABLE loss_suspect (
    area_id       text NOT NULL,
    day           date NOT NULL,
    point_id      integer NOT NULL REFERENCES metering_point,
    rank          smallint NOT NULL,                 -- 1: whom to visit first
    score         double precision NOT NULL,         -- log odds of a fault
    kind          text NOT NULL,                     -- scaled, night, wrong_area …
    named         boolean NOT NULL,                  -- the evidence is strong enough for a visit
    stolen_wh     double precision NOT NULL,         -- missing from its record since then; negative: too much in it
    stolen_lo_wh  double precision NOT NULL,         -- 80 % interval
    stolen_hi_wh  double precision NOT NULL,
    since         timestamptz,                       -- null: before from_day
    evidence_en   text NOT NULL,
    evidence_zh   text NOT NULL DEFAULT '',
    PRIMARY KEY (area_id, day, point_id),
    FOREIGN KEY (area_id, day) REFERENCES loss_search ON DELETE CASCADE
);
INSERT INTO retention VALUES ('loss_search', 'searched_at', '400 days');  -- its suspects go with it

GRANT SELECT, INSERT, UPDATE, DELETE ON loss_search, loss_suspect TO gridloom_work;
GRANT SELECT ON loss_search, loss_suspect TO gridloom_api, gridloom_grafana;
