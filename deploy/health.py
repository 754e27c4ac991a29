"""Is a program of this container well? Exit 0 or 1, for Docker's health checks.

health.py http://127.0.0.1:8080/healthz               answers with 200
health.py http://127.0.0.1:9101/metrics NAME …        every gauge NAME is 1
health.py /site/site.json                             every line of the simulated meters takes connections
"""

import json
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_S = 3.0


def gauges_are_up(url: str, names: list[str]) -> bool:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 an address of our own compose file
        lines = answer.read().decode().splitlines()
    return all(f"{name} 1.0" in lines for name in names)


def lines_answer(site: Path) -> bool:
    for line in json.loads(site.read_text())["lines"]:
        socket.create_connection(("127.0.0.1", line["port"]), TIMEOUT_S).close()
    return True


def main(target: str, *names: str) -> int:
    try:
        well = gauges_are_up(target, list(names)) if target.startswith("http:") else lines_answer(Path(target))
    except (OSError, urllib.error.URLError, ValueError, KeyError) as error:
        print(f"{target}: {error}", file=sys.stderr)
        return 1
    return 0 if well else 1


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
