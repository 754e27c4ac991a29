"""``python -m tests.chaos [--seconds 600 | --outage 3600] [--seed N] [--keep FILE] [--json]``; exit 1 when something is
lost."""

import argparse
import json
import random
import sys
from pathlib import Path

from tests.chaos import outage, report
from tests.chaos.run import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--seconds", type=float, default=600, help="of trouble")
    what.add_argument("--outage", type=float, metavar="SECONDS", help="nothing but a database that is away for so long")
    parser.add_argument("--broker-bytes", type=int, help="in an outage: what the broker may queue for an ingestor")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--period", type=float, default=2.0, help="seconds between two marks of a gateway")
    parser.add_argument("--keep", type=Path, help="write the report there, too")
    parser.add_argument("--logs", type=Path, help="a folder for what every program wrote")
    parser.add_argument("--json", action="store_true", help="one document instead of the report")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    seed, period_s, logs = options.seed, options.period, options.logs
    if options.outage:
        found = outage.run_outage(
            options.outage, seed, period_s=period_s, broker_bytes=options.broker_bytes, echo=tell, logs=logs
        )
        result, document = found.result, outage.document(found)
        bound = f" --broker-bytes {options.broker_bytes}" if options.broker_bytes else ""
        command = f"python -m tests.chaos --outage {options.outage:.0f} --period {period_s:g}{bound} --seed {seed}"
        text = outage.markdown(found, command)
    else:
        result = run(options.seconds, seed, period_s=period_s, echo=tell, logs=logs)
        document = report.document(result)
        text = report.markdown(result, f"make chaos CHAOS_S={options.seconds:.0f} ARGS='--seed {seed}'")
    print(json.dumps(document) if options.json else text)
    if options.keep:
        options.keep.write_text(text, encoding="utf-8")
    sys.exit(1 if result.problems else 0)


if __name__ == "__main__":
    main()
