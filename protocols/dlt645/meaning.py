"""What a frame says, as a document for people and programs: the form of ``meaning`` in the shared corpus."""

from typing import Final, TypeAlias

from protocols.dlt645.edition1997 import decode_password
from protocols.dlt645.frame import Frame, Function, Function1997, fault_names
from protocols.dlt645.load_record import LoadBlock, decode_load_blocks
from protocols.dlt645.services import RelayAction, decode_address, decode_credentials, decode_speed
from protocols.dlt645.table import Item, Kind, items
from protocols.dlt645.values import Decoded, Digits, MeterTime, Raw, Rejected, Value, Word, decode_data
from protocols.framing import FrameError

Json: TypeAlias = "str | int | bool | list[Json] | dict[str, Json] | None"
Meaning: TypeAlias = dict[str, Json]

_TIME: Final = ("YY", "MM", "DD", "hh", "mm", "ss")
_COMMANDS: Final = {
    RelayAction.TRIP: "trip",
    RelayAction.CLOSE_PERMITTED: "close_permitted",
    RelayAction.CLOSE: "close_direct",
    RelayAction.ALARM_ON: "alarm_on",
    RelayAction.ALARM_OFF: "alarm_off",
    RelayAction.POWER_KEEP_ON: "power_keep_on",
    RelayAction.POWER_KEEP_OFF: "power_keep_off",
}


def explain(frame: Frame) -> Meaning:
    """Never raises: what cannot be decoded is under ``raw``, and where it contradicts the table there is a ``flag``."""
    meaning: Meaning = {
        "direction": "response" if frame.is_reply else "request",
        "abnormal": frame.is_abnormal,
        "follow_up": frame.has_more,
    }
    if frame.is_abnormal:
        meaning |= _refusal(frame)
        return meaning
    di = frame.di
    rest = frame.data[frame.di_bytes :]
    if di is not None:
        meaning["name"] = item.name if (item := items(frame.edition).get(di)) else None
    if frame.edition == "1997":
        return meaning | _explain_1997(frame, rest)
    return meaning | _explain_2007(frame, rest)


def _hex(raw: bytes) -> str:
    return raw.hex().upper()


def _raw(data: bytes) -> Meaning:
    return {"raw": _hex(data)} if data else {}


def _refusal(frame: Frame) -> Meaning:
    is_known = frame.function in list(Function1997 if frame.edition == "1997" else Function)
    if not is_known or len(frame.data) != 1:
        return _raw(frame.data)
    return {"errors": list(fault_names(frame)), "err_byte": _hex(frame.data)}


# ---- 2007 ------------------------------------------------------------------------------------------------------------


def _explain_2007(frame: Frame, rest: bytes) -> Meaning:
    match frame.function, frame.is_reply:
        case Function.READ, True:
            return {"fragment": _hex(rest)} if frame.has_more else _value(frame, rest)
        case Function.READ, False:
            return _read_request(frame, rest)
        case Function.READ_FOLLOW_UP, True if rest:
            return {"seq": rest[-1], "fragment": _hex(rest[:-1])}
        case Function.READ_FOLLOW_UP, False if len(rest) == 1:
            return {"seq": rest[0]}
        case Function.READ_ADDRESS, True if len(rest) == 6:
            return {"address": decode_address(rest)}
        case Function.WRITE, False if len(rest) >= 8:
            return _credentials(rest) | _value(frame, rest[8:])
        case Function.WRITE_ADDRESS, False if len(rest) == 6:
            return {"new_address": decode_address(rest)}
        case Function.BROADCAST_TIME, False if len(rest) == 6:
            return {"time": _time(_TIME, rest)}
        case Function.FREEZE, False if len(rest) == 4:
            return {"freeze": _time(_TIME[1:5], rest)}
        case Function.CHANGE_SPEED, _ if rest:
            return {"baud_word": _hex(rest), "baud": decode_speed(rest)}
        case (Function.DEMAND_RESET | Function.METER_CLEAR, False) if len(rest) == 8:
            return _credentials(rest)
        case Function.EVENT_CLEAR, False if len(rest) == 12:
            return _credentials(rest) | {"event_di": _hex(rest[8:][::-1])}
        case Function.RELAY, False if len(rest) == 16:
            return _relay(rest)
        case Function.CHANGE_PASSWORD, False if len(rest) == 12:
            return {"di": _hex(rest[:4][::-1]), "old": decode_password(rest[4:8]), "new": decode_password(rest[8:])}
        case Function.SECURITY, False if frame.di_bytes and len(rest) >= 4:
            return {"operator": rest[3::-1].hex()} | _raw(rest[4:])
    return _raw(rest)


def _read_request(frame: Frame, rest: bytes) -> Meaning:
    item = items("2007").get(frame.di or 0) if frame.di_bytes else None
    is_load = item is not None and item.group[0].kind is Kind.LOAD
    if not is_load or len(rest) not in (1, 6) or not rest[:1].hex().isdecimal():
        return _raw(rest)
    meaning: Meaning = {"blocks": int(rest[:1].hex())}
    if len(rest) == 6:
        meaning["from"] = _time(_TIME[:5], rest[1:])
    return meaning


def _credentials(rest: bytes) -> Meaning:
    """Shown in full: whoever has the frame has them."""
    who = decode_credentials(rest[:8])
    return {"level": who.level, "password": who.password[2:], "operator": who.operator}


def _relay(rest: bytes) -> Meaning:
    return _credentials(rest) | {
        "n1": _hex(rest[8:9]),
        "command": next((name for action, name in _COMMANDS.items() if action == rest[8]), None),
        "n2": _hex(rest[9:10]),
        "valid_until": _time(_TIME, rest[10:]),
    }


def _time(names: tuple[str, ...], raw: bytes) -> Json:
    digits = raw[::-1].hex()
    if not digits.isdecimal():
        return _rejected(Rejected(raw, "not BCD"))
    return str(MeterTime(names, tuple(digits[i : i + 2] for i in range(0, len(digits), 2))))


# ---- 1997 ------------------------------------------------------------------------------------------------------------


def _explain_1997(frame: Frame, rest: bytes) -> Meaning:
    match frame.function, frame.is_reply:
        case Function1997.READ, True if frame.has_more:
            return {"fragment": _hex(rest)}
        case Function1997.READ_FOLLOW_UP, True:
            return {"fragment": _hex(rest)}
        case ((Function1997.READ | Function1997.READ_AGAIN), True):
            return _value(frame, rest)
        case Function1997.WRITE, False if len(rest) > 4 and frame.di in items("1997"):
            secret = decode_password(rest[:4])
            return {"level": secret[:2], "password": secret[2:]} | _value(frame, rest[4:])
        case Function1997.WRITE_ADDRESS, False if len(rest) == 6:
            return {"new_address": decode_address(rest)}
        case Function1997.CHANGE_SPEED, _ if rest:
            return {"baud_word": _hex(rest)}
        case Function1997.CHANGE_PASSWORD, False if len(rest) == 8:
            return {"old": decode_password(rest[:4]), "new": decode_password(rest[4:])}
        case Function1997.DEMAND_RESET, False if len(rest) == 4:
            secret = decode_password(rest)
            return {"level": secret[:2], "password": secret[2:]}
    return _raw(rest)


# ---- values ----------------------------------------------------------------------------------------------------------


def _value(frame: Frame, data: bytes) -> Meaning:
    if frame.di is None:
        return _raw(data)
    found = decode_data(frame.edition, frame.di, data)
    item = found.item
    if item is None or not data:
        return _raw(data)
    if found.flag:
        return {"raw": _hex(data), "flag": found.flag}
    if item.group[0].kind is Kind.LOAD:
        return _load_records(frame.di, data)
    return _values(found, item)


def _values(found: Decoded, item: Item) -> Meaning:
    """One value as ``value``, ``time``, ``word_hex`` or ``text``; of several, lists of the same in the plural."""
    meaning: Meaning = {"block_end_AA": True} if found.ends_with_aa else {}
    keys = {Kind.TIME: "time", Kind.WORD: "word_hex", Kind.TEXT: "text", Kind.RAW: "raw"}
    lists: dict[str, list[Json]] = {}
    for i, value in enumerate(found.values):
        key = keys.get(item.group[i % len(item.group)].kind, "value")
        lists.setdefault(key, []).append(_json(value))
    for key, shown in lists.items():
        alone = not item.is_block and len(shown) == 1
        meaning[key if alone or key == "raw" else _plural(key)] = shown[0] if alone else shown
    if ("value" in meaning or "values" in meaning) and item.has_unit:
        meaning["unit"] = item.unit
    return meaning


def _plural(key: str) -> str:
    return "words_hex" if key == "word_hex" else f"{key}s"


def _json(value: Value) -> Json:
    match value:
        case None:
            return None
        case Rejected():
            return _rejected(value)
        case Word(digits) | Digits(digits):
            return digits
        case Raw(raw):
            return _hex(raw)
        case _:
            return str(value)


def _rejected(value: Rejected) -> Json:
    return {"raw": _hex(value.raw), "error": value.reason}


def _load_records(di: int, data: bytes) -> Meaning:
    try:
        blocks = decode_load_blocks(data, class_asked=di >> 16 & 0xFF)
    except FrameError as error:
        return {"raw": _hex(data), "flag": str(error).split(" in ")[0]}
    return {"records": [_load_record(block) for block in blocks]}


def _load_record(block: LoadBlock) -> Meaning:
    return {
        "len": block.length,
        "time": _rejected(block.at) if isinstance(block.at, Rejected) else str(block.at),
        "cs_ok": True,
        "end_ok": True,
        "bad_block": block.is_bad,
        "classes": [None if numbers is None else [_json(number) for number in numbers] for numbers in block.classes],
    }


# ---- names -----------------------------------------------------------------------------------------------------------

_ZH: Final[dict[int, str]] = {
    Function.SECURITY: "安全认证",
    Function.BROADCAST_TIME: "广播校时",
    Function.READ: "读数据",
    Function.READ_FOLLOW_UP: "读后续数据",
    Function.READ_ADDRESS: "读通信地址",
    Function.WRITE: "写数据",
    Function.WRITE_ADDRESS: "写通信地址",
    Function.FREEZE: "冻结命令",
    Function.CHANGE_SPEED: "更改通信速率",
    Function.CHANGE_PASSWORD: "修改密码",
    Function.DEMAND_RESET: "最大需量清零",
    Function.METER_CLEAR: "电表清零",
    Function.EVENT_CLEAR: "事件清零",
    Function.RELAY: "跳合闸、报警、保电",
    Function.MULTIFUNCTION_OUTPUT: "多功能端子输出控制",
}
_ZH_1997: Final[dict[int, str]] = {
    Function1997.READ: "读数据",
    Function1997.READ_FOLLOW_UP: "读后续数据",
    Function1997.READ_AGAIN: "重读数据",
    Function1997.WRITE: "写数据",
    Function1997.BROADCAST_TIME: "广播校时",
    Function1997.WRITE_ADDRESS: "写设备地址",
    Function1997.CHANGE_SPEED: "更改通信速率",
    Function1997.CHANGE_PASSWORD: "修改密码",
    Function1997.DEMAND_RESET: "最大需量清零",
}


def function_name(frame: Frame) -> tuple[str, str]:
    """(English, Chinese) of the frame's function; ``("function 05", "")`` for one no edition defines."""
    try:
        name = (Function1997 if frame.edition == "1997" else Function)(frame.function).name
    except ValueError:
        return f"function {frame.function:02X}", ""
    chinese = _ZH_1997 if frame.edition == "1997" else _ZH
    return name.lower().replace("_", " "), chinese.get(frame.function, "")
