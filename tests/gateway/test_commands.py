"""What a reply says of a finished command."""

import pytest

from gateway.commands.demand_response import outcome_of
from gateway.commands.journal import RelayState
from protocols.uplink import Outcome, Shed

SHED = Shed(event="e", start=1, end=2, meters=["a", "b"])


@pytest.mark.parametrize(
    ("states", "outcome", "says"),
    [
        ({"a": RelayState.CLOSED, "b": RelayState.CLOSED}, Outcome.DONE, "2 of 2 meters were shed"),
        ({"a": RelayState.CLOSED, "b": RelayState.UNSURE}, Outcome.DONE, "1 never confirmed"),
        ({"a": RelayState.UNSURE, "b": RelayState.REFUSED}, Outcome.FAILED, "0 of 2"),
        ({"a": RelayState.CLOSED, "b": RelayState.OPEN}, Outcome.FAILED, "1 could not be closed yet"),
        ({"a": RelayState.REJECTED, "b": RelayState.REJECTED}, Outcome.REJECTED, "0 of 2"),
        ({}, Outcome.EXPIRED, "away"),
    ],
)
def test_only_a_relay_that_confirmed_it_was_open_counts_as_shed(
    states: dict[str, RelayState], outcome: Outcome, says: str
) -> None:
    told, detail, meters = outcome_of(SHED, {meter: (state, "note") for meter, state in states.items()})
    assert told is outcome
    assert says in detail
    assert meters.keys() == states.keys()
