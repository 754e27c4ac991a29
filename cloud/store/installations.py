"""The registry's dated map from what a gateway calls a meter to the meter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from cloud.store.migrations import Connection

UNKNOWN: Final = 0  # identities start at 1
_CACHED_MAX: Final = 10_000
_ALWAYS_US: Final = 2**62  # beyond any instant of the wire


class Installed(NamedTuple):
    """``meter_id`` answers to a wire name during [from_us, to_us), µs since 1970 UTC."""

    meter_id: int
    from_us: int
    to_us: int


@dataclass(frozen=True, slots=True)
class _Names:
    """Installations of a batch's M wire names, padded to K each: (K, M)."""

    meter_id: NDArray[np.int32]
    from_us: NDArray[np.int64]
    to_us: NDArray[np.int64]
    all_known: bool


class Installations:
    """The map at one moment. Two maps are equal when they say the same."""

    def __init__(self, installed: Mapping[tuple[str, str], Sequence[Installed]]) -> None:
        self._installed = installed
        self._names: dict[tuple[str, tuple[str, ...]], _Names] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Installations) and self._installed == other._installed

    __hash__ = None  # type: ignore[assignment]

    def meter_ids(
        self, gateway: str, wire_names: tuple[str, ...], index: NDArray[np.uint16], at_us: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """(N,) meter of each row, UNKNOWN where no meter is installed under its name at its time.

        index: (N,) into wire_names.  at_us: (N,) µs since 1970 UTC.
        """
        names = self._look_up(gateway, wire_names)
        found = np.zeros(len(index), np.int32)
        for meter_id, from_us, to_us in zip(names.meter_id, names.from_us, names.to_us, strict=True):
            there = (at_us >= from_us[index]) & (at_us < to_us[index])
            found = np.where(there, meter_id[index], found)
        return found

    def knows_all(self, gateway: str, wire_names: tuple[str, ...]) -> bool:
        """Whether every name has been in the registry at some time."""
        return self._look_up(gateway, wire_names).all_known

    def _look_up(self, gateway: str, wire_names: tuple[str, ...]) -> _Names:
        key = (gateway, wire_names)
        names = self._names.get(key)
        if names is None:
            if len(self._names) >= _CACHED_MAX:
                self._names.clear()
            each = [self._installed.get((gateway, name), ()) for name in wire_names]
            depth = max(map(len, each), default=0)
            never = Installed(UNKNOWN, 0, 0)
            table = np.array(
                [[(*one, *[never] * (depth - len(one)))[k] for one in each] for k in range(depth)], np.int64
            ).reshape(depth, len(wire_names), 3)
            names = _Names(table[..., 0].astype(np.int32), table[..., 1].copy(), table[..., 2].copy(), all(each))
            self._names[key] = names
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
