"""The registry's dated map from what a gateway calls a meter to the meter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from cloud.store.migrations import Connection

UNKNOWN: Final = 0  # identities start at 1
_CACHED_NAMES_MAX: Final = 1_000_000  # wire names in the cache, about 100 bytes each; beyond it starts anew
_ALWAYS_US: Final = 2**62  # beyond any instant of the wire


class Installed(NamedTuple):
    """``meter_id`` answers to a wire name during [from_us, to_us), µs since 1970 UTC."""

    meter_id: int
    from_us: int
    to_us: int


@dataclass(frozen=True, slots=True)
class _Names:
    """Installations of a batch's M wire names, padded to K each: (K, M, 3) of meter_id, from_us, to_us."""

    table: NDArray[np.int64]
    all_known: bool


class Installations:
    """The map at one moment. Two maps are equal when they say the same."""

    def __init__(self, installed: Mapping[tuple[str, str], Sequence[Installed]]) -> None:
        self._installed = installed
        self._names: dict[tuple[str, tuple[str, ...]], _Names] = {}
        self._cached = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Installations) and self._installed == other._installed

    __hash__ = None  # type: ignore[assignment]

    def meter_ids(
        self,
        named: Sequence[tuple[str, tuple[str, ...]]],
        which: NDArray[np.int64],
        index: NDArray[np.uint16],
        at_us: NDArray[np.int64],
    ) -> NDArray[np.int32]:
        """(N,) meter of each row, UNKNOWN where no meter is installed under its name at its time.

        named: gateway and wire names of each of B batches.  which: (N,) into named.  index: (N,) into those names.
        at_us: (N,) µs since 1970 UTC.
        """
        found = np.zeros(len(index), np.int32)
        tables: list[NDArray[np.int64]] = []
        first: dict[tuple[str, tuple[str, ...]], int] = {}
        total = 0
        offsets = []
        for key in named:
            offset = first.get(key)
            if offset is None:
                offset = first[key] = total
                tables.append(self._look_up(*key).table)
                total += len(key[1])
            offsets.append(offset)
        place = np.array(offsets, np.int64)[which] + index
        for k in range(max((len(table) for table in tables), default=0)):
            never = np.zeros((1, 1, 3), np.int64)
            layer = np.concatenate(
                [table[k] if k < len(table) else np.broadcast_to(never, (1, table.shape[1], 3))[0] for table in tables]
            )
            meter_id, from_us, to_us = layer[place].T
            found = np.where((at_us >= from_us) & (at_us < to_us), meter_id.astype(np.int32), found)
        return found

    def knows_all(self, gateway: str, wire_names: tuple[str, ...]) -> bool:
        """Whether every name has been in the registry at some time."""
        return self._look_up(gateway, wire_names).all_known

    def _look_up(self, gateway: str, wire_names: tuple[str, ...]) -> _Names:
        key = (gateway, wire_names)
        names = self._names.get(key)
        if names is None:
            if self._cached + len(wire_names) + 10 > _CACHED_NAMES_MAX:
                self._names = {}
                self._cached = 0
            each = [self._installed.get((gateway, name), ()) for name in wire_names]
            depth = max(map(len, each), default=0)
            never = Installed(UNKNOWN, 0, 0)
            table = np.array(
                [[(*one, *[never] * (depth - len(one)))[k] for one in each] for k in range(depth)], np.int64
            ).reshape(depth, len(wire_names), 3)
            names = self._names[key] = _Names(table, all(each))
            self._cached += len(wire_names) + 10  # what an entry itself weighs, in names
        return names


def load_installations(connection: Connection) -> Installations:
    installed: dict[tuple[str, str], list[Installed]] = {}
    for gateway, wire_name, meter_id, from_us, to_us in connection.execute(
        """
        SELECT gateway, wire_name, meter_id,
               CASE WHEN isfinite(valid_from) THEN (extract(epoch FROM valid_from) * 1000000)::bigint END,
               CASE WHEN isfinite(valid_to) THEN (extract(epoch FROM valid_to) * 1000000)::bigint END
        FROM installation ORDER BY gateway, wire_name, valid_from
        """
    ):
        installed.setdefault((cast(str, gateway), cast(str, wire_name)), []).append(
            Installed(
                cast(int, meter_id),
                -_ALWAYS_US if from_us is None else cast(int, from_us),
                _ALWAYS_US if to_us is None else cast(int, to_us),
            )
        )
    return Installations(installed)
