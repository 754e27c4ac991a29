"""Power flow of many scenarios at once: voltages, and what lines and transformers lose.

Constant-power loads, I = conj(S / V), on the linear network of ``pieces``: a fixed point that gains one to two digits
a step at distribution voltages. Scenarios are the last, contiguous axis and go through in chunks that stay in cache.
The first steps are in single precision, which is as good there and half the work; the last ones, most often one or
two, in double precision, until what is left of a voltage's error, by how fast it shrinks, is below ``TOLERANCE_PU``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.loss.pieces import Piece, Placed, place

__all__ = ["Flow", "NoSolutionError", "Placed", "place", "solve"]

Array = NDArray[np.float64]
Reals = NDArray[np.floating[Any]]

TOLERANCE_PU: Final = 1e-8
STEPS_MAX: Final = 100
# Scenarios at once: small networks lose by calls when there are fewer, large ones by memory when there are more.
CHUNK, CHUNK_LEAST, CHUNK_CELLS = 1024, 512, 1 << 18
_ROUGH_MAX: Final = 12  # steps in single precision
_NOISE_PU: Final = 1.5e-7  # what they leave, at least
_EXPECTED_MAX: Final = 3  # steps in double precision
# How much of an error a step leaves grows with the load: as measured on the first chunk, and a quarter more, since the
# loads of others may lie farther out. Not less than this, nor, where it is measured beside noise, than that:
_FARTHER: Final = 1.25
_SHRINKS_TO, _SHRINKS_TO_AT_LEAST = 0.02, 0.1
_SHRINKS_MEASURED: Final = 0.15  # more than that is worth to be measured on each chunk
_MEASURED_PU: Final = 1e-13  # a change that tells
_NAMED_MAX: Final = 5


class NoSolutionError(ArithmeticError):
    """Some scenarios have no solution: more load than the network can carry, or a wrong model. ``scenarios``: which."""

    def __init__(self, scenarios: NDArray[np.intp], total: int) -> None:
        self.scenarios, self._total = scenarios, total
        more = f" and {len(scenarios) - _NAMED_MAX} more" if len(scenarios) > _NAMED_MAX else ""
        named = ", ".join(map(str, scenarios[:_NAMED_MAX]))
        super().__init__(
            f"no solution within {STEPS_MAX} steps in {len(scenarios)} of {total} scenarios ({named}{more}); "
            "check loads, lengths and ratings"
        )

    def __reduce__(self) -> tuple[type, tuple[NDArray[np.intp], int]]:
        return type(self), (self.scenarios, self._total)  # as it is made, not from its text: it crosses processes


@dataclass(frozen=True, slots=True)
class Flow:
    """Of T scenarios. Loss in lines (their neutrals and earthing included), and of transformers under load and without.

    ``voltage_pu``: (N, F, T) phase to neutral over rated, F = 3, or 1 in the single-line model; NaN where a phase is
    absent, None where not asked for.  Others (T,) W; ``head_w`` is drawn from the source.
    """

    voltage_pu: Array | None
    line_w: Array
    load_loss_w: Array
    no_load_w: Array
    head_w: Array

    @property
    def loss_w(self) -> Array:
        return self.line_w + self.load_loss_w + self.no_load_w


def solve(
    placed: Placed,
    active_w: Reals,
    reactive_var: Reals,
    source_pu: Array | float = 1.0,
    *,
    voltages: bool = True,
) -> Flow:
    """Power flow of T scenarios.

    active_w, reactive_var: (L, T) drawn by each load, negative where it feeds in; constant power.
    source_pu: voltage magnitude at the source, over rated; one, (T,), or (3, T) by phase in the three-phase model.
    Raises NoSolutionError naming the scenarios, ValueError for shapes that do not fit or values that are not numbers.
    """
    if active_w.shape != reactive_var.shape or active_w.ndim != 2 or active_w.shape[0] != placed.loads:
        raise ValueError(f"({placed.loads}, T) W and var expected, got {active_w.shape} and {reactive_var.shape}")
    network, total = placed.network, active_w.shape[1]
    width = len(network.conductors[0])
    source = np.broadcast_to(np.asarray(source_pu, float), (width, total))
    phases = 3 if network.three_phase else 1
    voltage = np.full((len(network.nodes) * phases, total), np.nan) if voltages else None
    if voltage is not None:
        voltage[:width] = source
    sums = np.zeros((4, total))
    chunk = max(CHUNK_LEAST, min(CHUNK, CHUNK_CELLS // max(1, len(placed.port_rows))))
    size = -(-total // max(1, round(total / chunk)))
    solver = _Solver(placed, size)
    failed = []
    # The last chunk reaches back into the one before it: its work arrays are there already.
    for start in (*range(0, total - size, size), total - size) if total else ():
        part = slice(start, start + size)
        solver.load(active_w[:, part], reactive_var[:, part], source[:, part])
        lost = solver.run()
        if len(lost):
            failed.append(start + lost)
        else:
            solver.collect(sums[:, part], None if voltage is None else voltage[:, part])
    if failed:
        raise NoSolutionError(np.unique(np.concatenate(failed)), total)
    loss, series, no_load, head = sums
    return Flow(
        None if voltage is None else voltage.reshape(len(network.nodes), phases, total),
        line_w=loss - series - no_load,
        load_loss_w=series,
        no_load_w=no_load,
        head_w=head,
    )


class _Sweep:
    """Currents and voltages of one chunk in one precision."""

    def __init__(self, placed: Placed, size: int, kind: type[np.floating[Any]]) -> None:
        self.placed, self.size = placed, size
        self.power = np.empty((2, len(placed.port_rows), size), kind)
        self.source = np.empty((2 * len(placed.network.conductors[0]), size), kind)
        self.pieces = placed.pieces
        self.forward = [np.ascontiguousarray(piece.forward, kind) for piece in placed.pieces]
        self.backward = [np.ascontiguousarray(piece.backward, kind) for piece in placed.pieces]
        self.given = [np.zeros((matrix.shape[1], size), kind) for matrix in self.forward]
        self.voltage = [np.zeros((matrix.shape[0], size), kind) for matrix in self.forward]
        # Only the last steps, in double precision, ask what changed.
        self.before = [np.zeros_like(values) for values in self.voltage] if kind is np.float64 else []
        widest = max((_ports(piece) for piece in placed.pieces), default=0)
        self._one, self._two = np.empty((widest, size), kind), np.empty((widest, size), kind)

    def currents(self, i: int) -> None:
        """Of piece i's loads, conj(S / V), from its voltages."""
        piece = self.pieces[i]
        m = _ports(piece)
        if not m:
            return
        re, im = self.voltage[i][:m], self.voltage[i][m : 2 * m]
        current_re, current_im = self.given[i][:m], self.given[i][m : 2 * m]
        p, q = self._one[:m], self._two[:m]
        np.multiply(re, re, out=p)
        np.multiply(im, im, out=q)
        np.add(p, q, out=q)
        np.reciprocal(q, out=q)  # one division: they cost as much as several products
        np.multiply(self.power[0, piece.ports], q, out=p)
        np.multiply(self.power[1, piece.ports], q, out=q)
        np.multiply(p, re, out=current_re)
        np.multiply(q, re, out=current_im)
        np.multiply(q, im, out=q)
        np.multiply(p, im, out=p)
        np.add(current_re, q, out=current_re)
        np.subtract(p, current_im, out=current_im)

    def down(self) -> None:
        """Each piece's current to the node it hangs from, the farthest first."""
        for i in reversed(range(len(self.pieces))):
            piece = self.pieces[i]
            if piece.above < 0:
                continue
            target = self.given[piece.above][piece.rows]
            drawn = self.given[i][: self.backward[i].shape[1]]
            if piece.first:
                np.matmul(self.backward[i], drawn, out=target)
            else:
                target += self.backward[i] @ drawn

    def up(self, i: int) -> None:
        """Piece i's voltages, from its currents and the voltage of the node it hangs from."""
        piece, given = self.pieces[i], self.given[i]
        above = self.source if piece.above < 0 else self.voltage[piece.above][piece.rows]
        given[self.backward[i].shape[1] :] = above
        np.matmul(self.forward[i], given, out=self.voltage[i])

    def change(self, since: Sequence[Reals]) -> Array:
        """(C,) largest change of a load's voltage in a scenario; NaN where it left the numbers."""
        most = np.zeros(self.size)
        for piece, now, then, work in zip(self.pieces, self.voltage, since, self.before, strict=True):
            rows = 2 * _ports(piece)
            np.subtract(now[:rows], then[:rows], out=work[:rows])
            np.maximum(most, work[:rows].max(axis=0, initial=0), out=most)
            np.maximum(most, -work[:rows].min(axis=0, initial=0), out=most)
        return most


def _ports(piece: Piece) -> int:
    return int(piece.ports.stop - piece.ports.start)


class _Solver:
    """``rough``: steps in single precision;  ``least``: fewer were not enough. Both learnt from chunk to chunk."""

    def __init__(self, placed: Placed, size: int) -> None:
        self.placed, self.size, self.rough, self.least = placed, size, 3, 1
        self._single = _Sweep(placed, size, np.float32)
        self._double = _Sweep(placed, size, np.float64)
        self.noise = _NOISE_PU
        self._short = self._raised = False  # the chunk before needed more, or has been given more
        self._drawn_at_source = np.zeros(size)
        width = len(placed.network.conductors[0])
        self._turn = np.exp(-2j / 3 * np.pi * np.arange(3)) if width == 3 else np.ones(1)
        self._unloaded = placed.unloaded @ self._turn
        self._drop = [np.zeros(2 * _ports(piece)) for piece in placed.pieces]
        self._ones = np.ones(len(placed.port_rows))
        self._drawn = np.zeros(size)  # W in a scenario
        self._moved = np.zeros(size)  # the same of every load's size, W and var
        self._sizes = np.empty_like(self._single.power)
        self._shrinks: float | None = None  # by how much an error does in a step, by ``_moved``

    def load(self, active_w: Reals, reactive_var: Reals, source_pu: Array) -> None:
        placed, fine = self.placed, self._double
        count = len(placed.port_rows)
        share = None if np.all(placed.share == 1) else placed.share
        for values, target in zip((active_w, reactive_var), fine.power, strict=True):
            rows = placed.load[:count, 1]
            if values.dtype == target.dtype:
                np.take(values, rows, axis=0, out=target, mode="clip")
            else:
                target[:] = values[rows]
            if share is not None:
                target *= share[:count, None]
            if len(placed.load) > count:
                port, load = placed.load[count:].T
                np.add.at(target, port, values[load] * placed.share[count:, None])
        self._drawn = self._ones @ fine.power[0]
        self._drawn_at_source = active_w[placed.at_source].sum(axis=0)
        width = len(self._turn)
        np.multiply(source_pu, self._turn.real[:, None], out=fine.source[:width])
        np.multiply(source_pu, self._turn.imag[:, None], out=fine.source[width:])
        self._single.power[:] = fine.power
        self._single.source[:] = fine.source
        np.abs(self._single.power, out=self._sizes)
        self._moved = (self._ones.astype(np.float32) @ self._sizes).sum(axis=0, dtype=float)
        self._start(self._single, source_pu.mean(axis=0))

    def _start(self, sweep: _Sweep, source_pu: Array, drops: bool = True) -> None:
        """Voltages without load, less drops in proportion to the power drawn, as the first chunk had them."""
        drops = drops and self._shrinks is not None
        level = np.vstack([source_pu, self._drawn]) if drops else source_pu[None]
        level = level.astype(sweep.power.dtype)
        for piece, voltage, drop in zip(sweep.pieces, sweep.voltage, self._drop, strict=True):
            unloaded = self._unloaded[piece.ports]
            profile = np.r_[unloaded.real, unloaded.imag][:, None]
            if drops:
                profile = np.hstack([profile, drop[:, None]])
            np.matmul(profile.astype(level.dtype), level, out=voltage[: len(profile)])

    def _learn(self, shrinks: Array) -> None:
        """Of this chunk: the drop of each port's voltage by the power drawn, by least squares; how an error shrinks."""
        level, source = self._drawn, np.hypot(*self._double.source.reshape(2, -1, self.size)).mean(axis=0)
        square = level @ level
        heavy = (shrinks > 0) & (self._moved >= self._moved.mean())
        if not (square > 0 and heavy.any()):
            return
        for i, piece in enumerate(self._double.pieces):
            unloaded = self._unloaded[piece.ports]
            profile = np.r_[unloaded.real, unloaded.imag]
            self._drop[i] = (self._double.voltage[i][: len(profile)] @ level - profile * (source @ level)) / square
        self._shrinks = _FARTHER * float((shrinks / self._moved).max(initial=0, where=heavy))

    def run(self) -> NDArray[np.intp]:
        """Which scenarios of the chunk found no solution."""
        rough, fine = self._single, self._double
        everyone = range(len(fine.pieces))
        with np.errstate(all="ignore"):
            for _ in range(self.rough):
                for i in everyone:
                    rough.currents(i)
                rough.down()
                for i in everyone:
                    rough.up(i)
            # Single precision is good enough for currents: of their error a voltage sees what its drop is of it.
            for i in everyone:
                rough.currents(i)
                drawn = 2 * _ports(self.placed.pieces[i])
                fine.given[i][:drawn] = rough.given[i][:drawn]
            lost = self._polish(rough)
            if len(lost):
                # Single precision may have led astray what double precision can solve.
                self._start(fine, np.hypot(*fine.source.reshape(2, -1, self.size)).mean(axis=0), drops=False)
                lost = self._polish(None)
        return lost

    def _polish(self, rough: _Sweep | None) -> NDArray[np.intp]:
        """Steps in double precision, the first with the currents of ``rough`` if that is given."""
        fine = self._double
        everyone = range(len(fine.pieces))
        # The first step has no measure of how errors shrink but that of the first chunk.
        known = self._shrinks is not None and rough is not None
        shrinks = np.clip((self._shrinks or 0.0) * self._moved, _SHRINKS_TO, 1.0)
        expected = self._expected(shrinks) if known else _EXPECTED_MAX
        at_most = shrinks
        change = rest = np.full(self.size, np.nan)
        for step in range(1, STEPS_MAX + 1):
            if step > 1 or rough is None:
                for i in everyone:
                    fine.currents(i)
            fine.down()
            fine.voltage, fine.before = fine.before, fine.voltage
            for i in everyone:
                fine.up(i)
            if step < expected and known and shrinks.max() <= _SHRINKS_MEASURED:
                continue  # not good enough yet, and nothing to be measured
            before, change = change, fine.change(rough.voltage if rough and step == 1 else fine.before)
            if step > 1:
                measured = shrinks.copy() if known else np.zeros(self.size)
                np.divide(change, before, out=measured, where=before > _MEASURED_PU)
                shrinks = np.maximum(measured, _SHRINKS_TO_AT_LEAST)
            rest = change * _to_come(shrinks)
            worst = rest.max(initial=0.0)
            if worst <= TOLERANCE_PU and (known or step > 2):
                self._settle(step - expected, at_most)
                if not known:
                    self._learn(measured)
                return np.zeros(0, np.intp)
            if np.isnan(worst) and np.isnan(change).all():
                break
        return np.flatnonzero(~(rest <= TOLERANCE_PU))

    def _expected(self, shrinks: Array) -> int:
        """Steps in double precision after which the noise of single precision is no matter."""
        for steps in range(1, _EXPECTED_MAX):
            if (self.noise * shrinks ** (steps - 1) * _to_come(shrinks)).max() <= TOLERANCE_PU:
                return steps
        return _EXPECTED_MAX

    def _settle(self, more: int, shrinks: Array) -> None:
        """On the next chunk's steps in single precision, this one having needed ``more`` in double than expected."""
        known = self._shrinks is not None
        if more > 1 or (more and self._short):
            expected = self._expected(shrinks)
            if self._raised:
                self.noise *= 2  # one more was no help
            if known and self._expected(shrinks) > expected:
                self.rough, self._raised = max(self.rough - 1, 1), False
            else:
                self.rough, self._raised = min(self.rough + max(more - 1, 1), _ROUGH_MAX), known
            self.least = self.rough if known else 1
        elif known and not more:
            self._raised = False
            if self.rough > self.least:
                self.rough -= 1
        self._short = known and more > 0

    def collect(self, sums: Array, voltage: Array | None) -> None:
        """Into ``sums`` (4, C): all losses, transformers' under load, without, and the power drawn from the source."""
        placed, fine = self.placed, self._double
        sums[:] = 0
        loss, series, no_load, head = sums
        for i, piece in enumerate(placed.pieces):
            given = fine.given[i]
            if piece.above < 0:
                drawn = piece.backward @ given[: piece.backward.shape[1]] + piece.norton @ fine.source
                head += (drawn * fine.source).sum(axis=0)
            if len(piece.voltages):
                at = piece.voltages @ given
                series += (at * (piece.series @ given)).sum(axis=0)
                no_load += (at * (piece.no_load @ given)).sum(axis=0)
            if voltage is None:
                continue
            m = _ports(piece)
            re_im = fine.voltage[i][: 2 * m].reshape(2, m, self.size)
            voltage[placed.port_rows[piece.ports]] = _magnitude(re_im)
            if len(piece.other_rows):
                voltage[piece.other_rows] = _magnitude((piece.others @ given).reshape(2, -1, self.size))
        loss[:] = head - self._drawn
        head += self._drawn_at_source


def _to_come(shrinks: Array) -> Array:
    """Of a series that shrinks by ``shrinks`` a step: what comes after a step, by that step."""
    result: Array = shrinks / np.maximum(1 - shrinks, 0.1)
    return result


def _magnitude(re_im: Array) -> Array:
    square: Array = re_im[0] * re_im[0]
    square += re_im[1] * re_im[1]
    np.sqrt(square, out=square)
    return square
