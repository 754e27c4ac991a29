"""The makers' tables: what they hold against the recorded facts, how they decode, and what a wrong one is told."""

import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import templates
from protocols.framing import FrameError
from protocols.quantities import ENERGY_NAMES, QUANTITIES
from protocols.templates import ModbusExtra, ModbusFamily, ModbusRegister, TemplateError

FAMILIES = [name for name in templates.names() if isinstance(templates.load(name), ModbusFamily)]

HEAD = """
name = "x"
protocol = "modbus"
maker = "Nobody"
models = ["X1"]
phases = 3
source = "a test"
function = 3
word_order = "big"
limits = {words_max = 10, forbidden = [[100, 109]]}
probe = [{register = "frequency_hz", min = 45, max = 65}]
"""
HZ = '[[register]]\nquantity = "frequency_hz"\naddress = 0\ntype = "uint16"\nscale = 0.01\n'


def family(name: str) -> ModbusFamily:
    template = templates.load(name)
    assert isinstance(template, ModbusFamily)
    return template


def register(name: str, quantity: str) -> ModbusRegister:
    return next(register for register in family(name).register if register.quantity == quantity)


def test_the_sixteen_families_are_twenty_register_maps() -> None:
    assert len(FAMILIES) == 20


@pytest.mark.parametrize("name", FAMILIES)
def test_registers_of_one_function_do_not_overlap(name: str) -> None:
    it = family(name)
    taken = [
        (it.function_of(value), address)
        for value in it.values
        for address in range(value.address, value.address + value.count)
    ]
    assert len(taken) == len(set(taken))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_measures_a_voltage_and_counts_energy(name: str) -> None:
    quantities = {register.quantity for register in family(name).register}
    assert {"voltage_l1_v", "current_l1_a", "active_power_w", "energy_import_wh", "energy_export_wh"} <= quantities


@pytest.mark.parametrize("name", FAMILIES)
def test_a_verified_register_says_what_verified_it(name: str) -> None:
    it = family(name)
    assert not it.verified  # family-wide trust would need a meter on the table
    for value in it.values:
        assert not value.verified or value.source


@pytest.mark.parametrize(
    ("name", "quantity", "address", "verified"),
    [
        ("carlo-gavazzi-em24-din", "energy_import_wh", 62, True),  # conflict 1: two further sources agree
        ("siemens-pac2200", "frequency_hz", 55, True),  # conflict 2
        ("janitza-umg96", "energy_import_wh", 19068, False),  # conflicts 3 and 6
        ("acrel-dtsd1352", "energy_import_wh", 10, False),  # conflict 4
        ("schneider-pm5xxx", "power_factor", 3191, True),  # conflict 5: 3083 is encoded by quadrant
        ("siemens-pac4200", "active_power_w", 65, False),  # conflict 6
    ],
)
def test_a_recorded_conflict_is_settled_or_marked(name: str, quantity: str, address: int, verified: bool) -> None:
    it = register(name, quantity)
    assert (it.address, family(name).is_verified(it)) == (address, verified)
    assert family(name).notes


def test_a_float_in_kwh_steps_by_two_watt_hours_above_16384_kwh() -> None:
    it = register("eastron-sdm630", "energy_import_wh")
    assert it.step(16_384_000.0) == pytest.approx(1.953125)
    assert it.step(16_383_999.0) == pytest.approx(0.9765625)
    assert register("carlo-gavazzi-em340", "energy_import_wh").step(5e9) == 100  # 0.1 kWh at any reading
    assert register("siemens-pac2200", "energy_import_wh").step(1e9) < 1e-6


@given(st.floats(min_value=2.0**-100, max_value=2.0**100, width=32))
def test_the_step_of_a_float32_is_the_distance_to_the_next_one(raw: float) -> None:
    it = register("eastron-sdm630", "voltage_l1_v")
    (bits,) = struct.unpack(">I", struct.pack(">f", raw))
    (following,) = struct.unpack(">f", struct.pack(">I", bits + 1))
    assert it.step(raw) == following - raw


@pytest.mark.parametrize(
    ("name", "quantity", "raw", "value"),
    [
        ("eastron-sdm630", "voltage_l1_v", struct.pack(">f", 230.5), 230.5),
        ("eastron-sdm630", "energy_import_wh", struct.pack(">f", 1234.5), 1_234_500),
        ("eastron-sdm630", "energy_import_wh", struct.pack(">f", math.nan), None),
        ("carlo-gavazzi-em24-din", "active_power_w", bytes.fromhex("86a0 0001"), 10_000.0),  # low word first
        ("carlo-gavazzi-em24-din", "active_power_w", bytes.fromhex("ff9c ffff"), -10.0),
        ("abb-b23-a43", "energy_import_wh", bytes(7) + b"\x64", 1000),
        ("abb-b23-a43", "energy_import_wh", b"\xff" * 8, None),
        ("abb-b23-a43", "active_power_w", bytes.fromhex("7fffffff"), None),
        ("schneider-pm5xxx", "energy_import_wh", struct.pack(">q", 2**60 + 1), 2**60 + 1),  # exact, past a float
        ("siemens-pac2200", "energy_import_wh", struct.pack(">d", 12_345.0), 12_345),
    ],
)
def test_registers_decode_by_type_order_scale_and_sentinel(
    name: str, quantity: str, raw: bytes, value: float | int | None
) -> None:
    decoded = family(name).decode(register(name, quantity), raw)
    assert decoded == (pytest.approx(value) if isinstance(value, float) else value)
    if quantity in ENERGY_NAMES and value is not None:
        assert isinstance(decoded, int)


@pytest.mark.parametrize(
    ("type", "order", "raw", "value"),
    [
        ("bcd16", "big", "1234", 1234),
        ("bcd32", "big", "1234 5678", 12_345_678),
        ("bcd32", "little", "5678 1234", 12_345_678),
        ("bcd32", "big", "ffff ffff", None),
        ("ascii", "big", "5344 4d36 3330 2000", "SDM630"),
    ],
)
def test_decimal_digits_and_text_decode(type: str, order: str, raw: str, value: object) -> None:
    words = len(bytes.fromhex(raw)) // 2 if type == "ascii" else None
    extra = ModbusExtra(name="it", address=0, type=type, word_order=order, words=words)  # type: ignore[arg-type]
    assert family("eastron-sdm630").decode(extra, bytes.fromhex(raw)) == value


def test_a_digit_above_nine_is_no_number() -> None:
    with pytest.raises(FrameError):
        family("eastron-sdm630").decode(ModbusExtra(name="it", address=0, type="bcd16"), b"\x12\xa4")


def test_every_problem_is_told_with_its_file_and_key() -> None:
    text = HEAD + HZ
    text += '[[register]]\nquantity = "mood"\naddress = 1\ntype = "uint128"\n'
    text += '[[register]]\nquantity = "energy_import_wh"\naddress = 108\ntype = "uint32"\nscale = 0.5\n'
    text += '[[extra]]\nname = "frequency_hz"\naddress = 65535\ntype = "float32"\nnull = 7\n'
    text += '[[extra]]\nname = "label"\naddress = 20\ntype = "ascii"\nwords = 20\nscale_register = "gone"\n'
    with pytest.raises(TemplateError) as caught:
        templates.parse(text, where="x.toml")
    told = str(caught.value).splitlines()
    assert all(line.startswith("x.toml: ") for line in told)
    for start in (
        'register[1].quantity: "mood"',
        "register[1].type: one of",
        "register[2].scale: a whole number",
        "register[2].address: 108 lies in the forbidden 100 to 109",
        'extra[0].name: "frequency_hz" is a quantity',
        "extra[0].address: 65535 and 2 registers",
        "extra[0].null: only with an integer",
        "extra[1].address: 20 registers, but limits.words_max is 10",
        'extra[1].scale_register: "gone"',
    ):
        assert sum(line.startswith(f"x.toml: {start}") for line in told) == 1, start


def test_wrong_types_are_all_told_too() -> None:
    text = HEAD + HZ + '[[register]]\nquantity = 5\naddress = 1\ntype = "uint16"\n'
    text += '[[extra]]\nname = "a"\naddress = -1\ntype = "uint16"\n[[extra]]\nname = "b"\ncolour = 1\naddress = 1\n'
    with pytest.raises(TemplateError) as caught:
        templates.parse(text, where="x.toml")
    told = [line.removeprefix("x.toml: ") for line in str(caught.value).splitlines()]
    assert [line.split(":")[0] for line in told] == ["register[1].quantity", "extra[0].address", "extra[1]"]


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.toml").write_text(text.replace('"x"', f'"{name}"'), encoding="utf-8")


def test_a_folder_adds_a_family_without_python(tmp_path: Path) -> None:
    write(tmp_path, "mine", HEAD + HZ)
    assert "mine" in templates.names(tmp_path)
    assert "mine" not in templates.names()
    assert templates.load("mine", tmp_path).name == "mine"
    assert templates.load("eastron-sdm630", tmp_path) is templates.load("eastron-sdm630")


def test_the_folders_table_goes_before_ours(tmp_path: Path) -> None:
    write(tmp_path, "eastron-sdm630", HEAD + HZ)
    template = templates.load("eastron-sdm630", tmp_path)
    assert isinstance(template, ModbusFamily)
    assert template.maker == "Nobody"


@pytest.mark.parametrize(
    ("prepare", "complaint"),
    [
        (lambda folder: write(folder, "mine", HEAD + HZ.replace("frequency_hz", "voltage_l1_v")), "probe[0].register"),
        (lambda folder: (folder / "mine.toml").write_bytes(b"\xff"), "cannot be read"),
        (lambda folder: (folder / "mine.toml").write_text(HEAD + HZ, encoding="utf-8"), 'name: "mine" expected'),
    ],
)
def test_a_wrong_file_in_the_folder_is_named(tmp_path: Path, prepare: Callable[[Path], object], complaint: str) -> None:
    prepare(tmp_path)
    with pytest.raises(TemplateError) as caught:
        templates.load("mine", tmp_path)
    assert str(caught.value).startswith("mine.toml: ")
    assert complaint in str(caught.value)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="cannot be listed"):
        templates.names(tmp_path / "none")


def test_extras_take_no_quantitys_name() -> None:
    for name in FAMILIES:
        assert not {extra.name for extra in family(name).extra} & set(QUANTITIES)


FROZEN = """
[[freeze]]
every = "day"
address = 200
words = 8
count = 10
side = "secondary"
register = [{quantity = "energy_import_wh", address = 202, type = "uint32", scale = 10}]
"""
IMPORT = '[[register]]\nquantity = "energy_import_wh"\naddress = 4\ntype = "uint32"\nscale = 10\n'


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("count = 10", "count = 10_000", "freeze[0].count: 10000 blocks of 8 registers pass 65535"),
        ("address = 202", "address = 201", "freeze[0].register[0].address: 201 lies outside the first block"),
        ("address = 202", "address = 207", "freeze[0].register[0].address: 207 lies outside the first block"),
        ('"energy_import_wh"', '"voltage_l1_v"', "freeze[0].register[0].quantity: an energy register expected"),
        ("words = 8", 'words = 8\nratios = ["pt"]', 'freeze[0].ratios: "pt" is not an [[extra]]'),
        ("words = 8", "words = 8\ncolour = 1", "freeze[0]: Object contains unknown field `colour`"),
        ('"day"', '"year"', "freeze[0].every: Invalid enum value 'year'"),
    ],
)
def test_a_wrong_frozen_block_is_told(old: str, new: str, complaint: str) -> None:
    assert isinstance(templates.parse(HEAD + HZ + FROZEN, where="x.toml"), ModbusFamily)
    with pytest.raises(TemplateError) as caught:
        templates.parse(HEAD + HZ + FROZEN.replace(old, new), where="x.toml")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("register", "freeze", "usable"),
    [
        (IMPORT + 'side = "secondary"\n', FROZEN, True),
        (IMPORT + 'side = "primary"\n', FROZEN, False),
        (IMPORT, FROZEN, False),  # the registers' side is not documented
        (IMPORT + 'side = "secondary"\n', FROZEN.replace('side = "secondary"\n', ""), False),
        (IMPORT + 'side = "secondary"\n', FROZEN.replace('"day"', '"month"'), False),
    ],
)
def test_blocks_are_booked_only_beside_registers_of_their_own_side(register: str, freeze: str, usable: bool) -> None:
    template = templates.parse(HEAD + HZ + register + freeze, where="x.toml")
    assert templates.remembers(template) is usable
    assert not templates.has_profile(template)
