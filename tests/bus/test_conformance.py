"""What Gridloom relies on in a broker, tried on both it runs on."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from protocols.uplink import BYTES_MAX, Topic, topic
from tests.bus.conftest import Peer

ENERGY = topic("gw-1", Topic.ENERGY)
STATUS = topic("gw-1", Topic.STATUS)


@pytest.fixture
def name() -> str:
    """A client id nobody has used: sessions outlive tests."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def gateway(port: int, name: str) -> Iterator[Peer]:
    peer = Peer(port, "gw-1", f"{name}-gw-1")
    assert peer.outcome == "Success"
    yield peer
    peer.leave()


def test_a_wrong_password_is_refused(port: int, name: str) -> None:
    assert Peer(port, "gw-1", name, password="wrong").outcome != "Success"


def test_anonymous_is_refused(port: int, name: str) -> None:
    assert Peer(port, None, name).outcome != "Success"


def test_what_was_not_acknowledged_comes_again(port: int, name: str, gateway: Peer) -> None:
    """The ingestor acknowledges after its commit: killed before, it gets the batch once more."""
    first = Peer(port, "cloud", name, keep=True, manual=True)
    first.subscribe("gridloom/v1/+/energy")
    gateway.publish(ENERGY, b"committed")
    gateway.publish(ENERGY, b"not committed")
    committed, lost = first.take(2)
    first.acknowledge(committed)
    assert lost.payload == b"not committed"
    gateway.publish(ENERGY, b"later")
    first.take(1)
    first.subscribe("gridloom/v1/+/energy")  # answered, so that the acknowledgement before it was read as well
    first.vanish()

    second = Peer(port, "cloud", name, keep=True, manual=True)
    assert second.session_present
    again = second.take(2)
    assert [message.payload for message in again] == [b"not committed", b"later"]
    for message in again:
        second.acknowledge(message)
    assert second.rest() == []
    second.leave()

    third = Peer(port, "cloud", name, keep=True, manual=True)
    assert third.rest() == []
    third.leave()


def test_a_session_keeps_what_comes_while_its_owner_is_away(port: int, name: str, gateway: Peer) -> None:
    """More than 1,000: mosquitto's default drops silently past that."""
    away = Peer(port, "cloud", name, keep=True)
    away.subscribe("gridloom/v1/+/energy")
    away.leave()
    payloads = [str(i).encode() for i in range(1_200)]
    gateway.publish_many(ENERGY, payloads)
    back = Peer(port, "cloud", name, keep=True)
    assert [message.payload for message in back.take(len(payloads), timeout_s=30)] == payloads
    back.leave()


def test_a_shared_subscription_shares(port: int, name: str, gateway: Peer) -> None:
    workers = [Peer(port, "cloud", f"{name}-{i}") for i in range(2)]
    for worker in workers:
        worker.subscribe("$share/ingest/gridloom/v1/+/energy")
    payloads = {str(i).encode() for i in range(60)}
    gateway.publish_many(ENERGY, sorted(payloads))
    shares = [worker.rest(1.0) for worker in workers]
    assert all(shares), "one worker got nothing"
    assert sorted(shares[0] + shares[1]) == sorted(payloads), "each message reaches exactly one worker"
    for worker in workers:
        worker.leave()


def test_retained_status_reaches_a_later_unshared_subscription(port: int, name: str, gateway: Peer) -> None:
    gateway.publish(STATUS, b"online", retain=True)
    plain = Peer(port, "cloud", f"{name}-plain")
    plain.subscribe("gridloom/v1/+/status")
    [status] = plain.take(1)
    assert (status.topic, status.payload, status.retain) == (STATUS, b"online", True)
    plain.leave()


def test_a_vanished_gateway_leaves_its_will(port: int, name: str) -> None:
    cloud = Peer(port, "cloud", name)
    cloud.subscribe("gridloom/v1/+/status")
    cloud.rest(0.2)  # retained by other tests
    status = topic("gw-2", Topic.STATUS)
    gateway = Peer(port, "gw-2", f"{name}-gw-2", will=(status, b"offline"))
    gateway.publish(status, b"online", retain=True)
    assert cloud.take(1)[0].payload == b"online"
    gateway.vanish()
    assert cloud.take(1, timeout_s=30)[0].payload == b"offline"
    cloud.leave()
    late = Peer(port, "cloud", f"{name}-late")
    late.subscribe(status)
    assert late.take(1)[0].payload == b"offline"
    late.leave()


def test_a_batch_of_the_largest_size_passes(port: int, name: str, gateway: Peer) -> None:
    cloud = Peer(port, "cloud", name)
    cloud.subscribe("gridloom/v1/+/energy")
    gateway.publish(ENERGY, b"x" * BYTES_MAX)
    assert len(cloud.take(1)[0].payload) == BYTES_MAX
    cloud.leave()
