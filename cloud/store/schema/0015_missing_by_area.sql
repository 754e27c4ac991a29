-- Missing intervals by area, gateway, day and reason: what pages of a month or a year read. Beside completeness_area_day,
-- of the same points: one counts where it stood at the end of the day.
CREATE TABLE missing_area_day (
    area_id    text NOT NULL,
    gateway    text NOT NULL,                     -- that polled the points on that day
    day        date NOT NULL,
    reason     text NOT NULL,
    intervals  bigint NOT NULL,
    PRIMARY KEY (area_id, day, gateway, reason)
);
CREATE INDEX missing_area_day_day ON missing_area_day (day);

-- A day belongs to the row whose (after, until] its end is in. Looked up for many points at once, these can be hashed.
CREATE VIEW area_of_point AS
    SELECT point_id, area_id, valid_from AS after,
           coalesce(lead(valid_from) OVER (PARTITION BY point_id ORDER BY valid_from), 'infinity') AS until
    FROM point_in_area;
CREATE VIEW gateway_of_point AS                   -- if the meter was still there when the day began; else the area's
    SELECT point_id, gateway, valid_to, valid_from AS after,
           coalesce(lead(valid_from) OVER (PARTITION BY point_id ORDER BY valid_from), 'infinity') AS until
    FROM installation;

INSERT INTO missing_area_day
    SELECT a.area_id, coalesce(i.gateway, area.gateway), day, reason,
           sum(extract(epoch FROM end_at - start_at)) / 900
    FROM gap g CROSS JOIN site_zone
    JOIN area_of_point a ON a.point_id = g.point_id AND a.after < (day + 1)::timestamp AT TIME ZONE zone
     AND a.until >= (day + 1)::timestamp AT TIME ZONE zone
    JOIN area USING (area_id)
    LEFT JOIN gateway_of_point i ON i.point_id = g.point_id AND i.after < (day + 1)::timestamp AT TIME ZONE zone
     AND i.until >= (day + 1)::timestamp AT TIME ZONE zone AND i.valid_to > day::timestamp AT TIME ZONE zone
    GROUP BY 1, 2, 3, 4;

GRANT SELECT, INSERT, UPDATE, DELETE ON missing_area_day TO gridloom_work;
GRANT SELECT ON missing_area_day, area_of_point, gateway_of_point TO gridloom_work, gridloom_api, gridloom_grafana;
