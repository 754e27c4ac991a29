"""What only mosquitto does for us: the access list, TLS, and a memory that survives a restart."""

import ssl
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from protocols.uplink import Topic, topic
from simulators.ports import free_port
from tests.bus.conftest import Peer
from tests.conftest import wait_for_port
from tests.mosquitto import Mosquitto, new_mosquitto

UP = (Topic.ENERGY, Topic.POWER, Topic.EVENTS, Topic.STATUS, Topic.REPLY)
DOWN = (Topic.COMMAND, Topic.RECEIPT)


def peer(broker: Mosquitto, user: str) -> Peer:
    return Peer(broker.port, user, f"{user}-{uuid4().hex[:12]}")


def refuses(broker: Mosquitto, user: str, target: str) -> bool:
    """A connection of its own each time: mosquitto 2.0.11 closes it after it refused, later ones do not."""
    forger = peer(broker, user)
    refused = forger.publish(target, b"forged").is_failure
    forger.leave()
    return refused


@pytest.mark.parametrize("last", UP)
def test_a_gateway_writes_its_own_topics_and_no_other_gateways(mosquitto: Mosquitto, last: Topic) -> None:
    cloud, gateway = peer(mosquitto, "cloud"), peer(mosquitto, "gw-1")
    cloud.subscribe(f"gridloom/v1/+/{last}")
    cloud.rest(0.1)
    assert refuses(mosquitto, "gw-1", topic("gw-2", last))
    assert not gateway.publish(topic("gw-1", last), b"own").is_failure
    assert cloud.rest() == [b"own"]
    cloud.leave()
    gateway.leave()


@pytest.mark.parametrize("last", DOWN)
def test_no_gateway_writes_a_command_or_a_receipt(mosquitto: Mosquitto, last: Topic) -> None:
    """A receipt deletes data in the field: only the cloud may say it."""
    gateway, other, cloud = peer(mosquitto, "gw-1"), peer(mosquitto, "gw-2"), peer(mosquitto, "cloud")
    gateway.subscribe(topic("gw-1", last))
    other.subscribe("gridloom/v1/#")  # granted, but nothing of another's is delivered
    for target in ("gw-1", "gw-2"):
        assert refuses(mosquitto, "gw-1", topic(target, last))
    assert not cloud.publish(topic("gw-1", last), b"right").is_failure
    assert gateway.rest() == [b"right"]
    assert other.rest(0.1) == []
    for one in (gateway, other, cloud):
        one.leave()


def test_the_cloud_writes_no_batches(mosquitto: Mosquitto) -> None:
    assert refuses(mosquitto, "cloud", topic("gw-1", Topic.ENERGY))


def test_sessions_and_retained_messages_survive_a_restart(tmp_path: Path) -> None:
    broker = new_mosquitto(tmp_path)
    broker.start()
    try:
        away = Peer(broker.port, "cloud", "worker-1", keep=True)
        away.subscribe("gridloom/v1/+/energy")
        away.leave()
        gateway = peer(broker, "gw-1")
        gateway.publish(topic("gw-1", Topic.ENERGY), b"kept")
        gateway.publish(topic("gw-1", Topic.STATUS), b"online", retain=True)
        gateway.leave()
        broker.stop()
        broker.start()
        back = Peer(broker.port, "cloud", "worker-1", keep=True)
        assert back.session_present
        assert back.take(1)[0].payload == b"kept"
        back.subscribe("gridloom/v1/+/status")
        assert back.take(1)[0].payload == b"online"
        back.leave()
    finally:
        broker.stop()


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


def certify(folder: Path, name: str) -> None:
    """A key and a certificate signed by the CA in ``folder``."""
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
    openssl("req", "-new", *key, "-subj", f"/CN={name}", "-out", f"{name}.csr", cwd=folder)
    openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1",
            "-extfile", "san", "-out", f"{name}.crt", cwd=folder)  # fmt: skip


def test_the_tls_listener_opens_with_certificates_and_wants_the_clients(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    certs.mkdir()
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "ca.key",
            "-subj", "/CN=test CA", "-days", "1", "-out", "ca.crt", cwd=certs)  # fmt: skip
    for name in ("server", "gw-1"):
        certify(certs, name)
    broker = new_mosquitto(tmp_path)
    tls_port = free_port()
    broker.environment = {"MQTT_TLS_PORT": str(tls_port), "MQTT_TLS_BIND": "127.0.0.1"}
    broker.start()
    try:
        wait_for_port(tls_port)
        ours = ssl.create_default_context(cafile=str(certs / "ca.crt"))
        ours.load_cert_chain(certs / "gw-1.crt", certs / "gw-1.key")
        gateway = Peer(tls_port, "gw-1", "gw-1", tls=ours)
        assert gateway.outcome == "Success"
        assert not gateway.publish(topic("gw-1", Topic.STATUS), b"online").is_failure
        gateway.leave()
        stranger = ssl.create_default_context(cafile=str(certs / "ca.crt"))
        try:
            refused = Peer(tls_port, "gw-1", "gw-1", tls=stranger).outcome
        except OSError:
            refused = None
        assert refused != "Success"
    finally:
        broker.stop()


def test_a_user_without_a_password_is_told_and_nothing_starts(tmp_path: Path) -> None:
    broker = new_mosquitto(tmp_path)
    broker.environment = {"MQTT_USERS": "cloud:"}
    assert broker.launch().wait(10) == 2
    assert "name:password expected" in broker.log


def test_passwords_are_kept_hashed(mosquitto: Mosquitto) -> None:
    kept = (mosquitto.directory / "run" / "passwords").read_text()
    assert all(line.split(":")[1].startswith("$7$") for line in kept.split())
