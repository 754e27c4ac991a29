"""How long an RTU frame's PDU is, told from its first bytes, for every function of V1.1b3 with a fixed rule.

Functions without a codec here are measured too, so that a listener stays in step and a meter can refuse them.
"""

from typing import Final

from protocols.modbus.pdu import EXCEPTION, PDU_BYTES_MAX

NOT_YET: Final = -1  # more bytes are needed to tell
NEVER: Final = 0  # no PDU begins like this

# FC 8 has a variable data field only in subfunction 0; all others, and the usual loopback, carry one word.
_REQUEST_FIXED = {1: 5, 2: 5, 3: 5, 4: 5, 5: 5, 6: 5, 7: 1, 8: 5, 0x0B: 1, 0x0C: 1, 0x11: 1, 0x16: 7, 0x18: 3}
_REPLY_FIXED = {5: 5, 6: 5, 7: 2, 8: 5, 0x0B: 5, 0x0F: 5, 0x10: 5, 0x16: 7}
# Where the byte that counts the rest stands, and what it must be a multiple of.
_REQUEST_COUNTED = {0x0F: (5, 1), 0x10: (5, 2), 0x14: (1, 7), 0x15: (1, 1), 0x17: (9, 2)}
_REPLY_COUNTED = {1: (1, 1), 2: (1, 1), 3: (1, 2), 4: (1, 2), 0x0C: (1, 1), 0x11: (1, 1), 0x14: (1, 2), 0x15: (1, 1),
                  0x17: (1, 2)}  # fmt: skip
_KNOWN = _REQUEST_FIXED.keys() | _REQUEST_COUNTED.keys() | {0x2B}


def request_bytes(head: bytes) -> int:
    """Bytes of the request PDU that begins with ``head`` (1 or more bytes), or NOT_YET, or NEVER."""
    function = head[0]
    if function == 0x2B:
        return NEVER if head[1:2] not in (b"", b"\x0e") else 4
    return _REQUEST_FIXED.get(function) or _counted(head, _REQUEST_COUNTED.get(function))


def reply_bytes(head: bytes) -> int:
    """The same of a reply. An exception is two bytes long."""
    function = head[0]
    if function & EXCEPTION:
        return 2 if function ^ EXCEPTION in _KNOWN else NEVER
    if function == 0x2B:
        return _identification_bytes(head)
    if function == 0x18:  # a FIFO queue: its bytes are counted in two
        return 3 + int.from_bytes(head[1:3], "big") if len(head) > 2 else NOT_YET
    return _REPLY_FIXED.get(function) or _counted(head, _REPLY_COUNTED.get(function))


def _counted(head: bytes, rule: tuple[int, int] | None) -> int:
    if rule is None:
        return NEVER
    at, multiple = rule
    if len(head) <= at:
        return NOT_YET
    count = head[at]
    return at + 1 + count if count and count % multiple == 0 and at + 1 + count <= PDU_BYTES_MAX else NEVER


def _identification_bytes(head: bytes) -> int:
    """V1.1b3 §6.21: the number of objects stands in the seventh byte, the length of each before it."""
    if head[1:2] not in (b"", b"\x0e"):
        return NEVER
    if len(head) < 7:
        return NOT_YET
    at = 7
    for _ in range(head[6]):
        if len(head) < at + 2:
            return NOT_YET if at + 2 <= PDU_BYTES_MAX else NEVER
        at += 2 + head[at + 1]
    return at if at <= PDU_BYTES_MAX else NEVER
