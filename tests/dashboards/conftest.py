"""A migrated database with a few rows of everything the panels read."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from cloud.store.migrations import migrate
from simulators.services import Postgres, new_password

ROWS = """
INSERT INTO feeder VALUES ('F1', 'North', '北', 900000);
INSERT INTO area VALUES ('A1', 'F1', 'Mill', '磨坊', 'gw-a1', 300000, -1, 8),
                        ('A2', 'F1', 'O''Hara', '桥', 'gw-a2', 300000, -1, 8);
INSERT INTO metering_point (point, area_id, role, node_id) VALUES
    ('A1-HEAD', 'A1', 'supply', 'A1-N001'), ('A1-C01', 'A1', 'customer', 'A1-N002'),
    ('A2-HEAD', 'A2', 'supply', 'A2-N001');
INSERT INTO meter (serial, protocol) VALUES ('000000000001', 'modbus-tcp'), ('000000000002', 'dlt645-2007');
INSERT INTO installation (meter_id, point_id, gateway, wire_name) VALUES
    (1, 1, 'gw-a1', 'm001'), (2, 2, 'gw-a1', 'm002');
INSERT INTO meter_state VALUES (1, '2026-03-02 10:00Z', '2026-03-02 10:00Z', -3.5, '2026-03-02 10:00Z'),
                               (2, '2026-03-02 10:00Z', NULL, 95, '2026-03-02 10:00Z');
INSERT INTO gateway_status (gateway, online, at, status) VALUES
    ('gw-a1', true, '2026-03-02 10:00Z',
     '{"meters": 50, "queued_batches": 2, "queued_bytes": 4096, "software": "0.1.0"}');
INSERT INTO power_hour (meter_id, start, marks, active_power_mean_w, active_power_max_w, voltage_l1_min_v,
                        voltage_l1_max_v, current_l1_mean_a, current_l2_mean_a, current_l3_mean_a, power_factor_mean)
    SELECT meter_id, start, 4, 1000, 1200, 205, 231, 3, 2, 1, 0.95
    FROM meter, generate_series(timestamptz '2026-03-01 16:00Z', '2026-03-02 09:00Z', interval '1 hour') AS start;
INSERT INTO power_day (meter_id, start, marks, voltage_l1_min_v, voltage_l1_max_v, current_l1_mean_a, current_l2_mean_a,
                       current_l3_mean_a) VALUES (1, '2026-03-01 16:00Z', 72, 205, 231, 3, 2, 1),
                                                 (2, '2026-03-01 16:00Z', 72, 190, 240, 1, NULL, NULL);
INSERT INTO completeness_day
    SELECT point_id, day, 96, 96 - 4 * (point_id = 2)::int
    FROM metering_point, (VALUES (date '2026-03-01'), ('2026-03-02')) AS d(day);
INSERT INTO completeness_area_day
    SELECT area_id, gateway, day, sum(expected), sum(received)
    FROM completeness_day JOIN metering_point USING (point_id) JOIN area USING (area_id) GROUP BY 1, 2, 3;
INSERT INTO gap VALUES (2, '2026-03-01', '2026-03-01 02:00Z', '2026-03-01 03:00Z', 'meter_silent'),
                       (2, '2026-03-02', '2026-03-02 02:00Z', '2026-03-02 03:00Z', 'unknown');
INSERT INTO missing_area_day VALUES ('A1', 'gw-a1', '2026-03-01', 'meter_silent', 4),
                                    ('A1', 'gw-a1', '2026-03-02', 'unknown', 4);
INSERT INTO load
    SELECT series, start, 10000, 9500, 2, 2
    FROM (VALUES ('substation:S1'), ('feeder:F1'), ('area:A1'), ('area:A2')) AS s(series),
         generate_series(timestamptz '2026-02-28 16:00Z', '2026-03-02 10:00Z', interval '15 min') AS start;
INSERT INTO forecast_run (origin, made_at, model, model_version, horizon_h, inputs_until) VALUES
    ('2026-03-02 10:00Z', '2026-03-02 10:01Z', 'ridge', '1', 24, '2026-03-02 10:00Z'),
    ('2026-03-01 10:00Z', '2026-03-02 10:02Z', 'backtest', '1', 24, '2026-03-01 10:00Z');
INSERT INTO forecast
    SELECT run_id, series, start, 30000 + run_id, 40000 + run_id, 50000 + run_id
    FROM forecast_run, (VALUES ('feeder:F1'), ('area:A1')) AS s(series),
         generate_series(origin, origin + interval '6 hours', interval '15 min') AS start;
INSERT INTO forecast_accuracy VALUES ('area:A1', '2026-03-01', 'ridge', 5000, 960000, 96),
                                     ('area:A1', '2026-03-01', 'seasonal_naive', 9000, 960000, 96);
INSERT INTO loss_day VALUES
    ('A1', '2026-03-01', 960000, 900000, 20000, 40000, 96, 96, 'normal', '', '2026-03-02 00:10Z'),
    ('A2', '2026-03-01', NULL, NULL, NULL, NULL, 0, 96, 'not_computable', 'no head reading', '2026-03-02 00:10Z'),
    ('A1', '2026-03-02', 400000, 300000, 9000, 91000, 40, 40, 'high', '', '2026-03-02 10:00Z');
UPDATE loss_day SET fed_in_wh = supplied_wh, unexplained_lo_wh = unexplained_wh - 5000,
                    unexplained_hi_wh = unexplained_wh + 5000 WHERE day = '2026-03-01';
INSERT INTO loss_search VALUES
    ('A1', '2026-02-28', '2026-02-01', 1, '', '2026-03-01 00:10Z'),
    ('A1', '2026-03-01', '2026-02-01', 1, '', '2026-03-02 00:10Z'),
    ('A2', '2026-03-01', '2026-02-01', 0, 'no head meter on record', '2026-03-02 00:10Z');
INSERT INTO loss_suspect VALUES
    ('A1', '2026-02-28', 2, 1, 11, 'night', true, 90000, 70000, 110000, '2026-02-20 16:00Z', 'nights', '夜间'),
    ('A1', '2026-03-01', 2, 1, 12, 'scaled', true, 99000, 80000, 120000, NULL, 'a constant share', '');
INSERT INTO alert (rule, subject, severity, opened_at, closed_at, message_en, message_zh) VALUES
    ('meter_silent', 'meter:A1-C01', 'warning', '2026-03-02 08:00Z', NULL, 'silent', '失联'),
    ('forecast_above_capacity', 'area:A1', 'critical', '2026-03-02 09:00Z', NULL, 'peak', '高峰'),
    ('clock_drift', 'meter:A1-C01', 'info', '2026-03-01 09:00Z', '2026-03-01 12:00Z', 'drift', '偏差');
INSERT INTO dr_event VALUES ('dr-1', 'A1', 2, '2026-03-02 09:30Z', '2026-03-02 10:00Z', '{2}', 'measured',
                             5000, 3000, 2000, 'mean of five days', '2026-03-02 10:05Z');
INSERT INTO quarantine (gateway, topic, reason, detail, rows) VALUES
    ('gw-a1', 'gridloom/v1/gw-a1/energy', 'unknown_meter', 'm009', 7);
"""


@pytest.fixture(scope="session")
def filled(postgres: Postgres) -> Iterator[str]:
    """DSN, as the owner, of a database with the schema and a few rows."""
    name = f"t_{uuid4().hex}"
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        dsn = psycopg.conninfo.make_conninfo(postgres.dsn, dbname=name)
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(ROWS)
        yield dsn
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def as_grafana(postgres: Postgres, filled: str) -> Iterator[str]:
    """DSN of a login that may do what ``gridloom_grafana`` may, and no more."""
    name, password = f"g_{uuid4().hex}", new_password()
    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE gridloom_grafana")
        yield psycopg.conninfo.make_conninfo(filled, user=name, password=password)
        admin.execute(f"DROP ROLE {name}")
