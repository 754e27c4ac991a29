"""A power cut, which is worse than a kill: only what was fsynced is sure to be on the disk, the rest may be or may not.

A writer works on a real queue under strace. Its writes are replayed on a model of a disk that forgets, the power is cut
between any two of them, and the files of what survived are opened as a queue again. The writer prints what its queue
holds after each call that returned; that, or what the next call makes of it, must be what the rebuilt queue holds.
"""

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import pytest

from gateway.queue import Queue
from protocols.quantities import Kind
from protocols.uplink import Event
from tests.conftest import missing_service
from tests.gateway.test_queue import NOW, energy, open_queue, power

SECTOR_BYTES = 512
# GRIDLOOM_CUTS: how many instants, 0 for every one.
CUTS = int(os.environ.get("GRIDLOOM_CUTS", "160"))
DISKS_PER_CUT = 4  # nothing unsynced survives, all of it does, and random parts, torn at sectors

# ---- a disk that forgets ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class File:
    """``pending``: writes (offset, data) and truncations (length, None) since the last fsync."""

    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        self.synced, self.pending = self.after(lambda: True), []

    def after(self, survives: Callable[[], bool]) -> bytes:
        """The content when each pending sector survived or not."""
        content = bytearray(self.synced)
        for offset, data in self.pending:
            if data is None:
                if survives():
                    content = content[:offset].ljust(offset, b"\0")
                continue
            start = offset
            while start < offset + len(data):
                end = min(start - start % SECTOR_BYTES + SECTOR_BYTES, offset + len(data))
                if survives():
                    content = content.ljust(start, b"\0")
                    content[start:end] = data[start - offset : end - offset]
                start = end
        return bytes(content)


class Folder:
    pass


@dataclass(frozen=True)
class Rename:
    """``old`` is empty for a new name, ``new`` for a removed one."""

    old: str
    new: str
    what: File | Folder | None = None

    @property
    def folders(self) -> set[str]:
        return {str(Path(name).parent) for name in (self.old, self.new) if name}

    def apply(self, names: dict[str, File | Folder]) -> None:
        found = self.what or names.get(self.old)
        names.pop(self.old, None)
        if self.new and found:
            names[self.new] = found


class Disk:
    """What programs see, and what a power cut leaves of it. A name is sure once its folder is fsynced, not before."""

    def __init__(self, base: Path) -> None:
        self.base = str(base)
        self.seen: dict[str, File | Folder] = {self.base: Folder()}
        for path in base.rglob("*"):  # what is there at the beginning is sure
            self.seen[str(path)] = File(path.read_bytes()) if path.is_file() else Folder()
        self._kept = dict(self.seen)
        self._pending: list[Rename] = []

    def rename(self, old: str, new: str, what: File | Folder | None = None) -> None:
        change = Rename(old, new, what)
        change.apply(self.seen)
        self._pending.append(change)

    def sync(self, path: str, what: File | Folder) -> None:
        if isinstance(what, File):
            what.sync()
            return
        for change in [change for change in self._pending if path in change.folders]:
            change.apply(self._kept)
            self._pending.remove(change)

    def is_dirty(self) -> bool:
        return bool(self._pending) or any(isinstance(it, File) and it.pending for it in self._kept.values())

    def leave(self, folder: Path, survives: Callable[[], bool]) -> None:
        """Write to ``folder`` what a power cut leaves."""
        names = dict(self._kept)
        for change in self._pending:
            if survives():
                change.apply(names)
        for path, what in names.items():
            parents = [str(parent) for parent in Path(path).parents if str(parent).startswith(self.base)]
            if isinstance(what, File) and all(parent in names for parent in parents):
                target = folder / Path(path).relative_to(self.base)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(what.after(survives))


# ---- what strace saw -------------------------------------------------------------------------------------------------

# With "?" a system call that a machine does not have is no error. Those not understood below are refused there.
CALLS = (
    "openat,?open,?creat,pwrite64,write,writev,pwritev,?pwritev2,ftruncate,?truncate,fallocate,?copy_file_range,"
    "sendfile,fsync,fdatasync,sync_file_range,msync,?rename,renameat,?renameat2,?link,linkat,?unlink,unlinkat,"
    "?mkdir,mkdirat,?rmdir,?symlink,symlinkat"
)
_CALL = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
Promise: TypeAlias = str
Step: TypeAlias = Callable[[Disk], Promise | None]


def steps(trace: Path, base: Path) -> Iterator[Step]:
    """The system calls that touch ``base``, and the lines the writer printed, each as a change of a ``Disk``."""
    opened: dict[int, str] = {}  # file descriptor → path under base
    with trace.open() as lines:
        for line in lines:
            call = _CALL.match(line)
            if call is None:
                assert "unfinished" not in line and "resumed" not in line, "one thread expected"
                continue
            name, arguments, result = call[1], call[2], int(call[3])
            if result < 0:
                continue
            texts = [bytes.fromhex(text.replace("\\x", "")) for text, _ in _TEXT.findall(arguments)]
            assert not any(cut for _, cut in _TEXT.findall(arguments)), "a longer -s for strace expected"
            number = int(arguments.split("<")[0]) if arguments[:1].isdigit() else -1
            if name in ("openat", "open", "creat"):
                path = texts[-1].decode()
                opened.pop(result, None)
                if path.startswith(str(base)):
                    opened[result] = path
                    yield _open(path, truncated="O_TRUNC" in arguments or name == "creat")
            elif name == "write" and number == 1:
                for printed in texts[0].decode().splitlines():
                    yield lambda disk, printed=printed: printed  # type: ignore[misc]
            elif name.startswith(("mkdir", "unlink", "rename")):
                paths = [text.decode() for text in texts]
                if paths[0].startswith(str(base)):
                    yield _name(name, paths)
            elif number in opened:
                yield _change(name, opened[number], texts, arguments)
            else:
                assert not any(text.startswith(str(base).encode()) for text in texts), line


def _open(path: str, *, truncated: bool) -> Step:
    def step(disk: Disk) -> None:
        if path not in disk.seen:
            disk.rename("", path, File())
        found = disk.seen[path]
        if truncated and isinstance(found, File):
            found.pending.append((0, None))

    return step


def _name(call: str, paths: list[str]) -> Step:
    if call.startswith("rename"):
        return lambda disk: disk.rename(paths[0], paths[1])
    if call.startswith("mkdir"):
        return lambda disk: disk.rename("", paths[0], Folder())
    return lambda disk: disk.rename(paths[0], "")


def _change(call: str, path: str, texts: list[bytes], arguments: str) -> Step:
    last = int(arguments.rsplit(", ", 1)[-1]) if call in ("pwrite64", "ftruncate") else 0

    def step(disk: Disk) -> None:
        what = disk.seen[path]
        if call in ("fsync", "fdatasync"):
            disk.sync(path, what)
            return
        assert isinstance(what, File)
        if call == "pwrite64":
            what.pending.append((last, texts[0]))
        elif call == "ftruncate":
            what.pending.append((last, None))
        elif call != "fallocate":  # which only takes room
            raise AssertionError(f"{call} on {path}: teach the disk what that does")

    return step


# ---- the writer, and what it was promised ----------------------------------------------------------------------------


def state_of(queue: Queue) -> Promise:
    """Everything the queue holds, in one line."""
    digest = hashlib.sha256(queue.epoch.encode())
    with queue.transaction() as db:
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1").fetchall()
        for (table,) in tables:
            for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2"):  # noqa: S608
                digest.update(repr(row).encode())
    runs = sum(len(marks) for marks in queue._collected.values())
    return f"epoch={queue.epoch} seq={queue._seq} collected={runs} {digest.hexdigest()}"


def work(path: Path, seed: int, calls: int, synchronous: str) -> None:
    """The writer: every way to change a queue, and closing and opening it. A small bound, so that it evicts."""
    chance = random.Random(seed)

    def opened() -> Queue:
        queue = Queue(path, gateway="gw-1", interval_s=900, bytes_max=150_000)
        # So that a short trace crosses many checkpoints.
        queue._db.execute("PRAGMA wal_autocheckpoint=60")
        queue._db.execute(f"PRAGMA synchronous={synchronous}")
        return queue

    def note(queue: Queue) -> None:
        """What others keep in the queue's file, in transactions of their own."""
        with queue.transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (f"note {chance.randrange(9)}", "n" * 300))

    queue = opened()
    for number in range(calls):
        sys.stdout.write(f"{state_of(queue)}\n")
        sys.stdout.flush()
        meters = [f"m{chance.randrange(20)}" for _ in range(chance.choice((1, 3, 10)))]
        match chance.choice(("energy", "energy", "energy", "power", "events", "take", "settle", "note", "open")):
            case "energy":
                first = chance.randrange(3_000)
                queue.append_rows(Kind.ENERGY, [energy(m, first + i) for m in meters for i in range(24)], NOW)
            case "power":
                queue.append_rows(Kind.POWER, [power(meter, number) for meter in meters], NOW)
            case "events":
                queue.append_events([Event(at=number, kind="meter_silent", meter=meters[0])], NOW)
            case "take":
                queue.take(4, NOW)
            case "settle":
                queue.settle(queue.epoch, [(queue._seq - 12, queue._seq - 6)])
            case "note":
                note(queue)
            case "open" if number % 3 == 0:
                queue.close()
                queue = opened()
    sys.stdout.write(f"{state_of(queue)}\n")
    sys.stdout.flush()
    os._exit(0)  # no close: the journal stays, as after any kill


@dataclass
class Recording:
    begin: Disk
    steps: list[Step]
    log: str


def record(folder: Path, base: Path, *, seed: int = 1, calls: int = 120, synchronous: str = "FULL") -> Recording:
    """Let a writer work on a queue under ``base``, which is a folder in ``folder``."""
    begin = Disk(base)
    if not shutil.which("strace"):
        missing_service("strace")
    trace = folder / "trace"
    queue = base / "box" / "data" / "queue.sqlite"
    run = (
        "from pathlib import Path; from tests.gateway.test_power_cut import work;"
        f"work(Path({str(queue)!r}), {seed}, {calls}, {synchronous!r})"
    )
    command = ["strace", "-f", "-y", "-xx", "-s", "200000", "-e", f"trace={CALLS}", "-e", "signal=none"]
    done = subprocess.run(
        [*command, "-o", str(trace), sys.executable, "-c", run],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "PTRACE" in done.stderr or "Operation not permitted" in done.stderr:
        missing_service(f"strace ({done.stderr.splitlines()[0]})")
    assert done.returncode == 0, done.stderr
    return Recording(begin, list(steps(trace, base)), done.stderr)


@dataclass
class Told:
    cuts: int = 0
    disks: int = 0
    in_flight: int = 0  # the queue held what the call that the cut interrupted was making
    wrong: list[str] = field(default_factory=list)
    unpromised: set[Promise] = field(default_factory=set)  # what it held before the writer said anything

    def __str__(self) -> str:
        return (
            f"{self.cuts} cuts, {self.disks} disks, {self.in_flight} with the call in flight, {len(self.wrong)} wrong"
        )


def cut_everywhere(recording: Recording, *, cuts: int = CUTS, seed: int = 7) -> Told:
    """Cut the power after chosen steps (at the beginning after each), open what is left, compare with the promise."""
    chance = random.Random(seed)
    disk, replay = recording.begin, recording.steps
    later = range(min(80, len(replay)), len(replay))
    chosen = {*range(later.start), *(chance.sample(later, min(cuts, len(later))) if cuts else later)}
    told = Told()
    states: list[Promise] = []
    checks: list[tuple[int, int, Promise]] = []  # step, states promised by then, what the rebuilt queue held
    for number, step in enumerate(replay):
        promise = step(disk)
        if promise is not None:
            states.append(promise)
        if number not in chosen:
            continue
        told.cuts += 1
        ways: list[Callable[[], bool]] = [lambda: False, lambda: True]
        while len(ways) < DISKS_PER_CUT:
            share = chance.choice((0.1, 0.5, 0.9))
            ways.append(lambda share=share: chance.random() < share)  # type: ignore[misc]
        for way in ways if disk.is_dirty() else ways[:1]:
            told.disks += 1
            checks.append((number, len(states), rebuilt(disk, way)))
    for number, promised, held in checks:
        if not promised:
            told.unpromised.add(held)
        elif promised < len(states) and held == states[promised] != states[promised - 1]:
            told.in_flight += 1
        elif held != states[promised - 1]:
            told.wrong.append(f"step {number}: promised {states[promised - 1]}, held {held}")
    return told


def rebuilt(disk: Disk, survives: Callable[[], bool]) -> Promise:
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="gridloom-", dir=memory if memory.is_dir() else None) as name:
        disk.leave(Path(name), survives)
        path = Path(name) / "box" / "data" / "queue.sqlite"
        queue = Queue(path, gateway="gw-1", interval_s=900, bytes_max=150_000, reserve_bytes=4_096)
        try:
            return state_of(queue)
        finally:
            queue.close()


# ---- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.mkdir()
    return path


def test_what_was_promised_survives_a_power_cut(tmp_path: Path, base: Path) -> None:
    recording = record(tmp_path, base)
    assert "queue is full, evicted kind=energy" in recording.log
    told = cut_everywhere(recording)
    print(f"power cut: {told}")
    assert not told.wrong, told.wrong[0]
    assert told.in_flight, "no cut hit a call"


def test_the_replay_finds_a_promise_that_was_not_kept(tmp_path: Path, base: Path) -> None:
    """Without an fsync at each commit the same replay must tell, or it tells nothing."""
    told = cut_everywhere(record(tmp_path, base, synchronous="NORMAL", calls=40), cuts=60)
    print(f"power cut, synchronous=NORMAL: {told}")
    assert told.wrong


def test_a_power_cut_while_a_torn_queue_is_set_aside_never_brings_its_epoch_back(tmp_path: Path, base: Path) -> None:
    """An older state under the old epoch would give seqs again that name other batches in the cloud."""
    queue = open_queue(tmp_path)
    for mark in range(0, 4_000, 40):
        queue.append_rows(Kind.ENERGY, [energy("m1", mark + i) for i in range(40)], NOW)
        if mark == 3_000:
            queue._db.execute("PRAGMA wal_checkpoint")
    folder = base / "box" / "data"
    folder.mkdir(parents=True)
    whole = queue.path.read_bytes()
    (folder / "queue.sqlite").write_bytes(whole[: len(whole) // 2])
    shutil.copy(f"{queue.path}-wal", folder)  # of a process that was killed
    recording = record(tmp_path, base, calls=5)
    assert "set aside" in recording.log
    told = cut_everywhere(recording, cuts=20)
    print(f"power cut at a torn queue: {told}")
    assert not told.wrong, told.wrong[0]
    assert told.unpromised
    assert not any(queue.epoch in held for held in told.unpromised)
