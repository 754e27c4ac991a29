"""``python -m tests.chaos [--seconds 600] [--seed N] [--keep FILE] [--json]``; exit 1 when something is lost."""

import argparse
import json
import random
import sys
from pathlib import Path

from tests.chaos.report import document, markdown
from tests.chaos.run import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=600, help="of trouble")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--period", type=float, default=2.0, help="seconds between two marks of a gateway")
    parser.add_argument("--keep", type=Path, help="write the report there, too")
    parser.add_argument("--logs", type=Path, help="a folder for what every program wrote")
    parser.add_argument("--json", action="store_true", help="one document instead of the report")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = run(options.seconds, options.seed, period_s=options.period, echo=tell, logs=options.logs)
    report = markdown(result, f"make chaos CHAOS_S={options.seconds:.0f} ARGS='--seed {options.seed}'")
    print(json.dumps(document(result)) if options.json else report)
    if options.keep:
        options.keep.write_text(report, encoding="utf-8")
    sys.exit(1 if result.problems else 0)


if __name__ == "__main__":
    main()
