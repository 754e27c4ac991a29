"""Meter templates: every table loads, and a wrong one says what and where."""

import pytest

from protocols import dlt645, modbus, templates
from protocols.quantities import ENERGY_NAMES, POWER_NAMES
from protocols.templates import Dlt645Template, ModbusFamily, ModbusTemplate, TemplateError


@pytest.mark.parametrize("name", templates.names())
def test_every_template_loads_and_names_its_source(name: str) -> None:
    template = templates.load(name)
    assert template.name == name
    assert template.source


@pytest.mark.parametrize("name", ["dlt645-2007", "dlt645-2007-three-phase", "gridloom-demo-modbus"])
def test_a_meter_with_a_load_profile_has_every_quantity(name: str) -> None:
    template = templates.load(name)
    assert not isinstance(template, ModbusFamily)
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
    ],
)
def test_a_wrong_template_says_what_and_where(text: str, complaint: str) -> None:
    with pytest.raises(TemplateError) as caught:
        templates.parse(text, where="x.toml")
    assert complaint in str(caught.value)


def test_an_unknown_template_lists_the_known_ones() -> None:
    with pytest.raises(TemplateError, match=r"one of abb-b23-a43, .*dlt645-2007, .*gridloom-demo-modbus, .* expected"):
        templates.load("none")
