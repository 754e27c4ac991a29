"""After an event people are left in peace; after one that switched nobody off, there is nobody to rest."""

from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb

from cloud.jobs.alerts import PEAK
from cloud.jobs.response import REST, Terms, plan
from tests.jobs.conftest import START, Store

TERMS = Terms(lead=timedelta(minutes=5), duration=timedelta(minutes=30))
ENDED = START - timedelta(hours=1)


@pytest.mark.parametrize(
    ("state", "sent", "meters", "free"),
    [
        ("measured", True, {"m1": "opened and closed"}, False),
        ("failed", False, None, True),  # never left the cloud
        ("failed", True, None, False),  # no reply: who knows
        ("failed", True, {}, True),  # the gateway was away from start to end, and says so
        ("failed", True, {"m1": "refused: no password", "m2": "rejected: not controllable"}, True),
        ("failed", True, {"m1": "refused: no password", "m2": "opened and closed"}, False),
        ("failed", True, {"m1": "opening unsure (silent), closed"}, False),
        ("failed", True, {"m1": "not closed yet: link_down"}, False),
    ],
)
def test_who_may_have_been_switched_off_rests(
    store: Store, state: str, sent: bool, meters: dict[str, str] | None, free: bool
) -> None:
    db = store.connection
    (area,) = db.execute("SELECT area_id FROM metering_point WHERE controllable LIMIT 1").fetchone() or ("",)
    db.execute(
        "INSERT INTO alert (rule, subject, severity, opened_at, message_en, message_zh, evidence)"
        " VALUES (%s, %s, 'critical', %s, 'x', 'x', %s)",
        (PEAK, f"area:{area}", START, Jsonb({"above_from": START.isoformat()})),
    )
    db.execute(
        "INSERT INTO dr_event (event_id, area_id, start_at, end_at, points, state) VALUES ('e', %s, %s, %s, '{}', %s)",
        (area, ENDED - timedelta(minutes=30), ENDED, state),
    )
    db.execute(
        "INSERT INTO command (command_id, gateway, event_id, body, issued_at, expires_at, sent_at, replied_at, reply)"
        " VALUES ('c', 'gw', 'e', '{}', %(at)s, %(at)s, %(sent)s, %(replied)s, %(reply)s)",
        {
            "at": ENDED,
            "sent": ENDED if sent else None,
            "replied": None if meters is None else ENDED,
            "reply": None if meters is None else Jsonb({"meters": meters} if meters else {}),
        },
    )
    plan(db, TERMS, START)
    planned = db.execute("SELECT count(*) FROM dr_event WHERE state = 'planned'").fetchone()
    assert planned == (1 if free else 0,)
    plan(db, TERMS, START + REST)
    assert db.execute("SELECT count(*) FROM dr_event WHERE state = 'planned'").fetchone() == (1,)
