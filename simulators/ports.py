"""Free ports on loopback for what a demo or a test starts."""

import os
import random
import socket

LOOPBACK = "127.0.0.1"
# Below the range that outgoing connections draw from: a listener that is started again finds its port free.
PORTS = range(15_000, 32_000)
# "20000-20999" in it narrows them: programs side by side draw from shares of their own, or one takes another's.
NARROWED = "GRIDLOOM_PORTS"


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on just now, held open together so that they differ. Raises OSError."""
    first, _, last = os.environ.get(NARROWED, f"{PORTS.start}-{PORTS.stop - 1}").partition("-")
    ports = range(int(first), int(last) + 1)
    held: list[socket.socket] = []
    try:
        for port in random.sample(ports, len(ports)):
            if len(held) == count:
                break
            held.append(one := socket.socket())
            try:
                one.bind((LOOPBACK, port))
            except OSError:
                held.pop().close()
        if len(held) < count:
            raise OSError(f"{count} free ports from {first} to {last} expected, {len(held)} found")
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def free_port() -> int:
    return free_ports(1)[0]
