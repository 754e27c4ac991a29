"""Meter templates: every table loads, and a wrong one says what and where."""

import pytest

from protocols import dlt645, modbus, templates
from protocols.quantities import ENERGY_NAMES, POWER_NAMES
from protocols.templates import Dlt645Template, ModbusTemplate, TemplateError


@pytest.mark.parametrize("name", templates.names())
def test_every_template_loads_and_names_its_source(name: str) -> None:
    template = templates.load(name)
    assert template.name == name
    assert template.source


@pytest.mark.parametrize("name", ["dlt645-2007", "dlt645-2007-three-phase", "gridloom-demo-modbus"])
def test_a_meter_with_a_load_profile_has_every_quantity(name: str) -> None:
    template = templates.load(name)
    assert isinstance(template, Dlt645Template | ModbusTemplate)
    assert template.profile is not None
    assert template.profile.interval_s == 900
    assert {register.quantity for register in template.register} == {*ENERGY_NAMES, *POWER_NAMES}


def test_the_demo_meters_registers_do_not_overlap() -> None:
    template = templates.load("gridloom-demo-modbus")
    assert isinstance(template, ModbusTemplate)
    spans = [(register.address, modbus.TYPES[register.type][1]) for register in template.register]
    spans += [(template.clock.address, 2), (template.relay.address, 3)]
    taken = [address for start, words in spans for address in range(start, start + words)]
    assert len(taken) == len(set(taken))
    assert template.profile.marks_max * templates.MARK_WORDS * 2 + 2 <= modbus.FILE_DATA_BYTES_MAX


def test_a_645_register_counts_ten_watt_hours_a_step() -> None:
    template = templates.load("dlt645-2007")
    assert isinstance(template, Dlt645Template)
    assert {r.scale for r in template.register if r.quantity in ENERGY_NAMES} == {dlt645.WH_PER_STEP}


HEAD = 'name = "x"\nprotocol = "dlt645-2007"\nsource = "a test"\nprofile = {interval_s = 900, marks_max = 6}\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("protocol = ", "x.toml: Invalid value"),
        ('protocol = "morse"', "x.toml: Invalid value 'morse' - at `$.protocol`"),
        (HEAD + "colour = 1", "x.toml: Object contains unknown field `colour`"),
        (HEAD + '[[register]]\nquantity = "mood"\ndi = 0x00010000\nscale = 10', '"mood" is not a quantity'),
        (HEAD + '[[register]]\nquantity = "frequency_hz"\ndi = 0x02010000\nscale = 1', "02010000 is not a known"),
        (HEAD + '[[register]]\nquantity = "voltage_l1_v"\ndi = 0x0201FF00\nmember = 3\nscale = 1', "has 3 members"),
        (HEAD + '[[register]]\nquantity = "energy_import_wh"\ndi = 0x00010000\nscale = 0.5', "a whole number"),
        (HEAD + '[[register]]\nquantity = "voltage_l1_v"\ndi = 0x02010100\nscale = nan', "a finite number"),
        ("a = " + "9" * 5_000, "x.toml: "),
        ("a = " + "[" * 5_000, "x.toml: "),
    ],
)
def test_a_wrong_template_says_what_and_where(text: str, complaint: str) -> None:
    with pytest.raises(TemplateError) as caught:
        templates.parse(text, where="x.toml")
    assert complaint in str(caught.value)


def test_an_unknown_template_lists_the_known_ones() -> None:
    with pytest.raises(TemplateError, match=r"one of abb-b23-a43, .*dlt645-2007, .*gridloom-demo-modbus, .* expected"):
        templates.load("none")


FREEZE = """
[freeze]
count = 62
time = 0x05060001
register = [{quantity = "energy_import_wh", di = 0x05060101, scale = 10}]
"""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("time = 0x05060001", "time = 0x05060002", "freeze.time: the last freeze expected"),
        ("time = 0x05060001", "time = 0x05060101", "freeze.time: 05060101 is not the time of a freeze"),
        ("di = 0x05060101", "di = 0x05060102", "freeze.register[0].di: the last freeze expected"),
        ('"energy_import_wh"', '"frequency_hz"', "freeze.register[0].quantity: an energy register expected"),
        ("count = 62", "count = 0", "Expected `int` >= 1"),
    ],
)
def test_a_wrong_daily_freeze_is_told(old: str, new: str, complaint: str) -> None:
    head = HEAD.replace("profile = {interval_s = 900, marks_max = 6}\n", "register = []\n")
    template = templates.parse(head + FREEZE, where="x.toml")
    assert templates.remembers(template)
    assert not templates.has_profile(template)
    with pytest.raises(TemplateError) as caught:
        templates.parse(head + FREEZE.replace(old, new), where="x.toml")
    assert complaint in str(caught.value)


def test_a_1997_table_names_two_byte_identifiers() -> None:
    head = HEAD.replace("2007", "1997").replace("profile = {interval_s = 900, marks_max = 6}\n", "")
    good = head + '[[register]]\nquantity = "energy_import_wh"\ndi = 0x9010\nscale = 10'
    assert templates.protocol(templates.parse(good, where="x.toml")) == "dlt645-1997"
    with pytest.raises(TemplateError, match="10000 is not a known data identifier"):
        templates.parse(good.replace("0x9010", "0x00010000"), where="x.toml")
