"""``python -m tests.fuzz [--seconds 60] [TARGET]...``: atheris on the fuzz targets, each in a process of its own.

What covers new ground is kept in ``.fuzz/<target>``, and a crash beside it; ``python -m tests.fuzz --again FILE
TARGET`` runs that once more.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2] / ".fuzz"
SLOW_S = 5  # for one input
RSS_MB_MAX = 1_024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--again", type=Path, help="run this input once")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("targets", nargs="*", help="all without any")
    options = parser.parse_args()
    if options.inside:
        fuzz(options.targets[0], options.seconds)
        return
    from tests.fuzz.targets import TARGETS

    names = options.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"{', '.join(unknown)}: one of {', '.join(TARGETS)} expected")
    if options.again:
        TARGETS[names[0]].run(options.again.read_bytes())
        return
    findings = [name for name in names if not is_clean(name, options.seconds)]
    sys.exit(1 if findings else 0)


def is_clean(name: str, seconds: int) -> bool:
    """Fuzz one target and print how it went; False for a finding."""
    command = [sys.executable, "-m", "tests.fuzz", "--inside", "--seconds", str(seconds), name]
    done = subprocess.run(command, cwd=HOME.parent, capture_output=True, text=True, errors="replace", check=False)
    numbers = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr)
    blocks, features, corpus = covered[-1] if covered else ("?", "?", "?")
    runs, speed = numbers.get("number_of_executed_units", "?"), numbers.get("average_exec_per_sec", "?")
    verdict = "nothing found" if done.returncode == 0 else "FOUND SOMETHING"
    print(
        f"{name:<20} {runs:>9} runs  {speed:>6}/s  {blocks:>5} blocks  {features:>6} features  {corpus:>4} inputs kept"
        f"  slowest {numbers.get('slowest_unit_time_sec', '?')} s  rss {numbers.get('peak_rss_mb', '?')} MB  {verdict}",
        flush=True,
    )
    if done.returncode:
        print(done.stderr[-4_000:])
    return done.returncode == 0


def fuzz(name: str, seconds: int) -> None:
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]  # make fuzz installs it

    with atheris.instrument_imports(include=["protocols", "edge", "gateway"], enable_loader_override=False):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    corpus, begin = HOME / name, HOME / f"{name}.seeds"
    for folder in (corpus, begin):
        folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(target.seeds()):
        (begin / f"{i:04}").write_bytes(seed)
    options = {
        "max_total_time": seconds,
        "max_len": target.bytes_max,
        "timeout": SLOW_S,
        "rss_limit_mb": RSS_MB_MAX,
        "artifact_prefix": f"{HOME}/{name}.crash-",
        "print_final_stats": 1,
    }
    atheris.Setup(
        [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus), str(begin)], target.run
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
