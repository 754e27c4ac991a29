"""A clock that was wrong is put right: the gateway waits for the marks that come, not for those of the future."""

import asyncio
import time
from datetime import datetime, timedelta
from pathlib import Path

from protocols.clock import Anchor, write_anchor
from protocols.quantities import Quality
from simulators.services import Broker
from tests.edge.endpoint import registers_wh
from tests.gateway.cloud import cloud, until
from tests.gateway.test_agent import START, box, energies, kinds

RATE = 600.0


def test_sweeps_go_on_when_the_clock_is_set_back_by_months(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=RATE) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=1, days=1)
            process = it.start()

            def live() -> set[datetime]:
                """Marks that were read at their time, not from memory."""
                return {at for (_, at), (_, quality) in energies(there)[1].items() if not quality & Quality.BACKFILLED}

            await until(lambda: len(live()) >= 2, 60)
            back = START - timedelta(days=90)
            write_anchor(it.folder / "clock.json", Anchor(time.time(), back.timestamp(), RATE))
            await until(lambda: len([at for at in live() if at < START]) >= 2, 60)
            counted, values = energies(there)
            assert set(counted.values()) == {1}
            assert all(wh == registers_wh(int(meter[1:]), at)[0] for (meter, at), (wh, _) in values.items())
            assert ("clock_set_back", None) in kinds(there)
            assert process.poll() is None
            assert len({batch.epoch for batch in there.batches}) == 1

    asyncio.run(scenario())
