"""docs/asyncapi.yaml says what protocols/uplink.py does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml

from protocols import uplink
from protocols.quantities import ENERGY_NAMES, POWER_NAMES, Kind
from protocols.uplink import Topic, topic

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]
UP = {Topic.ENERGY, Topic.POWER, Topic.EVENTS, Topic.STATUS}
DOWN = {Topic.COMMAND, Topic.RECEIPT}


def resolve(reference: str) -> Any:
    found: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_it_is_asyncapi_3_and_every_reference_leads_somewhere() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert set(DOCUMENT) == {
        "asyncapi",
        "info",
        "defaultContentType",
        "servers",
        "channels",
        "operations",
        "components",
    }
    for reference in references(DOCUMENT):
        assert resolve(reference)


def test_channels_are_the_topics() -> None:
    addresses = {name: channel["address"] for name, channel in DOCUMENT["channels"].items()}
    assert addresses == {last.value: topic("{gateway}", last) for last in Topic}


def test_operations_go_the_way_the_access_list_allows() -> None:
    sent: set[Topic] = set()
    received: set[Topic] = set()
    for operation in DOCUMENT["operations"].values():
        last = Topic(operation["channel"]["$ref"].rpartition("/")[2])
        (sent if operation["action"] == "send" else received).add(last)
        assert operation["bindings"]["mqtt"]["qos"] == 1
        assert operation["bindings"]["mqtt"]["retain"] == (last is Topic.STATUS)
        if "reply" in operation:
            sent.add(Topic(operation["reply"]["channel"]["$ref"].rpartition("/")[2]))
    assert sent == UP | {Topic.REPLY}
    assert received == DOWN


def test_the_access_list_names_every_topic_once_for_either_side() -> None:
    lines = (ROOT / "deploy" / "mosquitto" / "acl").read_text().splitlines()
    rules = {line for line in lines if line and not line.startswith(("#", "user"))}
    up, down = UP | {Topic.REPLY}, DOWN
    assert rules == {
        *(f"topic read {topic('+', last)}" for last in up),
        *(f"topic write {topic('+', last)}" for last in down),
        *(f"pattern write {topic('%u', last)}" for last in up),
        *(f"pattern read {topic('%u', last)}" for last in down),
    }


@pytest.mark.parametrize("kind", list(Kind))
def test_batches_travel_as_messagepack_and_as_json(kind: Kind) -> None:
    message = DOCUMENT["components"]["messages"][kind.value]
    assert message["contentType"] == uplink.MSGPACK
    assert uplink.JSON in message["description"]


@pytest.mark.parametrize(("kind", "quantities"), [(Kind.ENERGY, ENERGY_NAMES), (Kind.POWER, POWER_NAMES)])
def test_columns_have_the_names_types_and_nulls_of_the_code(kind: Kind, quantities: tuple[str, ...]) -> None:
    own = SCHEMAS[f"{kind.value}Batch"]["allOf"][1]["properties"]
    assert own["kind"] == {"const": kind.value}
    columns = own["columns"]["properties"]
    assert list(columns) == [name for name in uplink.COLUMN_TYPES if name not in set(_other(quantities))]
    assert tuple(own["columns"]["required"]) == uplink.REQUIRED
    for name, reference in columns.items():
        column = resolve(reference["$ref"])
        assert column["x-typecode"] == uplink.COLUMN_TYPES[name], name
        assert column.get("x-nullable", False) == (name in uplink.NULLABLE_INTEGERS), name


def _other(quantities: tuple[str, ...]) -> tuple[str, ...]:
    return POWER_NAMES if quantities is ENERGY_NAMES else ENERGY_NAMES


def fields(struct: type[msgspec.Struct]) -> dict[str, bool]:
    """Field name → required."""
    return {field.encode_name: field.required for field in msgspec.structs.fields(struct)}


# A schema is named as its struct, the first letter small.
BODIES = {one.__name__[0].lower() + one.__name__[1:]: one for one in get_args(uplink.Body)}


def test_a_command_carries_one_of_the_bodies_of_the_code() -> None:
    listed = [reference.rpartition("/")[2] for reference in references(SCHEMAS["command"]["properties"]["body"])]
    assert listed == list(BODIES)


@pytest.mark.parametrize(
    ("schema", "struct"),
    [
        ("batchHeader", uplink._WireBatch),
        ("event", uplink.Event),
        ("status", uplink.Status),
        ("receipt", uplink.Receipt),
        ("command", uplink.Command),
        ("reply", uplink.Reply),
        ("itemResult", uplink.ItemResult),
        ("value", uplink.Value),
        ("prepared", uplink.Prepared),
        *BODIES.items(),
    ],
)
def test_fields_are_those_of_the_code(schema: str, struct: type[msgspec.Struct]) -> None:
    expected = fields(struct)
    if struct.__struct_config__.tag_field:
        expected = {struct.__struct_config__.tag_field: True, **expected}
        assert SCHEMAS[schema]["properties"]["kind"] == {"const": struct.__struct_config__.tag}
    assert set(SCHEMAS[schema]["properties"]) == set(expected)
    if schema != "batchHeader":  # its allOf are told apart by their columns; the description says the rest
        assert SCHEMAS[schema].get("additionalProperties", True) != struct.__struct_config__.forbid_unknown_fields
    assert set(SCHEMAS[schema]["required"]) == {name for name, required in expected.items() if required}


def test_bounds_are_those_of_the_code() -> None:
    header = SCHEMAS["batchHeader"]
    assert header["properties"]["version"] == {"const": uplink.VERSION}
    assert header["properties"]["meters"]["maxItems"] == uplink.METERS_MAX
    assert header["properties"]["events"]["maxItems"] == uplink.ROWS_MAX
    assert f"{uplink.ROWS_MAX:,} rows" in header["properties"]["columns"]["description"]
    assert f"{uplink.BYTES_MAX:,} bytes" in header["description"]
    assert header["properties"]["gateway"]["pattern"] == f"^{uplink._NAME.pattern}$"
    assert header["properties"]["epoch"]["pattern"] == f"^{uplink._EPOCH.pattern}$"
    assert header["properties"]["kind"]["enum"] == [kind.value for kind in Kind]
    assert SCHEMAS["read"]["properties"]["items"]["maxItems"] == uplink.ITEMS_MAX
    assert f"{uplink.SITE_BYTES_MAX:,} bytes" in SCHEMAS["configure"]["properties"]["site"]["description"]
    assert f"{uplink.REPLY_BYTES_MAX:,} bytes" in SCHEMAS["reply"]["description"]
    assert SCHEMAS["reply"]["properties"]["outcome"]["enum"] == [outcome.value for outcome in uplink.Outcome]


def test_a_batch_written_as_the_document_says_is_accepted() -> None:
    """Each column in the JSON form, with a null where the document allows one."""
    for kind in (Kind.ENERGY, Kind.POWER):
        columns: dict[str, list[float | None]] = {}
        for name, reference in SCHEMAS[f"{kind.value}Batch"]["allOf"][1]["properties"]["columns"]["properties"].items():
            column = resolve(reference["$ref"])
            null = column.get("x-nullable") or column["x-typecode"] == "f"
            columns[name] = [0, None if null else 0]
        document = {
            "version": 1,
            "gateway": "gw-a1",
            "epoch": "0" * 32,
            "seq": 1,
            "kind": kind.value,
            "sent_at": 0,
            "meters": ["m001"],
            "columns": columns,
        }
        assert uplink.decode_batch(msgspec.json.encode(document), uplink.JSON).rows == 2
