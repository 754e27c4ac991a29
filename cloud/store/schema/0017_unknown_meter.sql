-- Meters that gateways speak of and the registry does not know, while rows of them wait in quarantine. A gateway that
-- invents names without end fills its bound here long before it fills the disk.

CREATE TABLE unknown_meter (
    gateway    text NOT NULL,
    wire_name  text NOT NULL,
    first_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (gateway, wire_name)
);
INSERT INTO unknown_meter (gateway, wire_name, first_at)
SELECT gateway, wire_name, min(recorded_at)
FROM quarantine CROSS JOIN LATERAL jsonb_array_elements_text(row_values -> 'meters') AS meters (wire_name)
WHERE reason = 'unknown_meter' AND replayed_at IS NULL AND gateway IS NOT NULL AND row_values IS NOT NULL
GROUP BY gateway, wire_name;

GRANT SELECT, INSERT, DELETE ON unknown_meter TO gridloom_ingest;
GRANT SELECT ON unknown_meter TO gridloom_api, gridloom_grafana;
