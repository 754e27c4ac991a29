"""Addresses and secrets of the cloud's programs, from the environment; a missing one is one clear error."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import click


class MissingSetting(click.UsageError):
    """An environment variable is unset or malformed: the person who starts the program acts on it (exit 2)."""


def required(name: str, example: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise MissingSetting(f"{name} is not set; for example: export {name}={example}")
    return value


def dsn() -> str:
    return required("GRIDLOOM_DSN", "postgresql://user:password@127.0.0.1:5432/gridloom")


def zone() -> ZoneInfo:
    """The site's zone: business days, tariffs and bills use it."""
    name = os.environ.get("GRIDLOOM_ZONE", "Asia/Shanghai")
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise MissingSetting(f'GRIDLOOM_ZONE: "{name}" is not a time zone; for example Asia/Shanghai') from error


def country() -> str | None:
    """Whose public holidays the site keeps, like CN or AU-VIC; None: those of its zone, where that is plain."""
    return os.environ.get("GRIDLOOM_COUNTRY") or None


@dataclass(frozen=True, slots=True)
class Mqtt:
    """Where the broker is and who we are there."""

    host: str
    port: int
    tls: bool
    username: str
    password: str = field(repr=False)
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    @classmethod
    def from_environment(cls) -> "Mqtt":
        text = required("GRIDLOOM_MQTT_URL", "mqtt://127.0.0.1:1883")
        try:
            url = urlsplit(text)
            port = url.port
        except ValueError as error:
            raise MissingSetting(f'GRIDLOOM_MQTT_URL: "{text}": {error}') from error
        if url.scheme not in ("mqtt", "mqtts") or not url.hostname:
            raise MissingSetting(f'GRIDLOOM_MQTT_URL: mqtt://host:port or mqtts://host:port expected, got "{text}"')
        return cls(
            host=url.hostname,
            port=port or (8883 if url.scheme == "mqtts" else 1883),
            tls=url.scheme == "mqtts",
            username=required("GRIDLOOM_MQTT_USERNAME", "cloud"),
            password=required("GRIDLOOM_MQTT_PASSWORD", "..."),
            ca=os.environ.get("GRIDLOOM_MQTT_CA"),
            certificate=os.environ.get("GRIDLOOM_MQTT_CERT"),
            key=os.environ.get("GRIDLOOM_MQTT_KEY"),
        )
