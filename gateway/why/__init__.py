"""``meterctl why``: from bytes received on a line to the likely cause of the trouble, with the evidence.

The bytes are first taken as they are (``reading``): frames of each protocol, which ``answers`` and ``values`` judge,
and what nearly is one (``fragments``). Where that explains nothing, ``line`` asks through ``gateway.uart`` what could
have been sent that a UART with this setting heard so. A cause is named only with a reading that chance would hardly
give; a healthy frame has none.
"""

from gateway.why.capture import read_capture
from gateway.why.case import CONFIDENCE_MAX, Cause, Expectation, Verdict
from gateway.why.command import why_command
from gateway.why.judge import explain

__all__ = ("CONFIDENCE_MAX", "Cause", "Expectation", "Verdict", "explain", "read_capture", "why_command")
