"""A chaos run as Markdown, and as one JSON document."""

import platform
from typing import Any

from tests.chaos.content import KINDS
from tests.chaos.run import Result
from tests.chaos.stage import GATEWAYS
from tests.chaos.trouble import TROUBLES

ABOUT = """\
Twenty gateways (the product's queue and uplink, in three processes) collect rows that are known beforehand: energy,
power and events, with nulls, a mark of all meters every {period_s:g} s on average. They publish to mosquitto; two
`gridloom ingest` processes store in PostgreSQL, with a login that may only do what ingest may. Random troubles overlap:
SIGKILL of any of them; connections cut, stalled (also longer than the keepalive) and refused by proxies between
gateways, broker, ingestors and database. Old batches are published again all the time. Set pieces come in every run:
the database's disk full, four queues' disk full, one ingestor away for half of the time, the broker's memory deleted
twice. The ledger compacts batches into ranges when they are as old as a tenth of the time, and not 63 days.

Each gateway writes down what its queue committed, and what receipts promised before the queue deletes it. Every five
seconds, and after each kill as soon as the database answers, the rows of every batch that had a receipt must be there,
and the batch in the ledger. In the end, when every queue is empty, old batches of all gateways are sent once more and
awaited; then the hashes of all rows are compared. SIGKILL is no power cut: what a disk loses is not tried here.

A database that is away for an hour, with nothing else wrong, is in [outage.md](outage.md).
"""


def markdown(result: Result, command: str) -> str:
    told = result.timeline.told
    checks = result.checks
    lines = [
        "# The chaos run",
        "",
        f"    {command}",
        "",
        f"{result.at:%Y-%m-%d %H:%M} UTC, seed {result.seed}, {result.duration_s:.0f} s of trouble, "
        f"Python {platform.python_version()}.",
        "",
        f"**{'; '.join(result.problems) if result.problems else '0 lost, 0 double, no promise broken'}.**",
        "",
        ABOUT.format(period_s=result.period_s),
        "| | |",
        "|---|---|",
        f"| gateways; batches; rows collected | {len(GATEWAYS)}; {result.batches:,}; {result.rows:,} |",
        f"| rows stored | {sum(count for count, _ in result.stored.values()):,} |",
        f"| lost; double | {result.lost}; {result.double} |",
        f"| checks of what receipts had promised; of those right after a kill | {checks.made}; {checks.after_kills} |",
        f"| batches promised at the last check; ever missing | {checks.batches:,}; {len(checks.missing)} |",
        f"| old batches sent again on purpose | {result.sent_again:,} |",
        f"| batches the ledger has compacted into ranges | {result.in_ranges:,} |",
        f"| appends a full queue disk refused | {result.refused:,} |",
        f"| until everything had its receipt, after the trouble | {result.settled_s:.0f} s |",
        *(f"| {what} | {count} × |" for what, count in result.said.items()),
        *(f"| {what} | {count} × |" for what, count in sorted(told.items()) if what in TROUBLES),
        *(f"| starts of {name} | {count} |" for name, count in result.starts.items()),
        "",
        "## Row for row",
        "",
        "Rows, and SHA-256 over the sorted hashes of all rows; left what the gateways collected, right what the "
        "database holds.",
        "",
        "| gateway | kind | collected | stored | |",
        "|---|---|---|---|---|",
    ]
    for name in GATEWAYS:
        for kind in KINDS:
            meant, there = result.collected[name, kind], result.stored.get((name, kind), (0, ""))
            lines.append(
                f"| {name} | {kind.value} | {meant[0]:,} `{meant[1][:16]}` | {there[0]:,} `{there[1][:16]}` "
                f"| {'equal' if meant == there else '**differ**'} |"
            )
    lines += ["", "## What happened", "", "```", *result.timeline.lines, "```", ""]
    return "\n".join(lines)


def document(result: Result) -> dict[str, Any]:
    return {
        "seed": result.seed,
        "duration_s": result.duration_s,
        "batches": result.batches,
        "rows": result.rows,
        "lost": result.lost,
        "double": result.double,
        "promises_checked": result.checks.made,
        "promises_checked_after_kills": result.checks.after_kills,
        "promises_missing": len(result.checks.missing),
        "sent_again": result.sent_again,
        "in_ranges": result.in_ranges,
        "refused_by_full_disk": result.refused,
        "settled_s": round(result.settled_s, 1),
        "troubles": dict(result.timeline.told),
        "problems": result.problems,
    }
