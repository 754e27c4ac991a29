"""What each customer draws: measured profiles with seeded variety on top. Any day can be asked for, in any order."""

from collections.abc import Sequence

import numpy as np

from simulators import profiles
from simulators.layout import Area
from simulators.profiles import QUARTERS, WEEK, Array

HOME = "HL"  # first letters of the categories whose members differ most: homes and farms
SHIFT_QUARTERS = 3
EV_ON, EV_OFF = 16.5 * 4, 22 * 4  # quarters of the local day
EV_STANDBY = 0.005
EV_POWER_FACTOR = 0.98
EV_TAN = float(np.tan(np.arccos(EV_POWER_FACTOR)))


class Loads:
    """Demand of the customers of all areas, in the order of ``areas``; no thief, relay or meter in it.

    ``first_weekday`` (0 = Monday) is that of day 0; every day depends on (seed, day) alone.
    """

    def __init__(self, areas: Sequence[Area], seed: int, first_weekday: int) -> None:
        self._seed = seed
        self._first_quarter = first_weekday * QUARTERS
        customers = [(area.plan, customer) for area in areas for customer in area.customers]
        self.count = len(customers)
        rng = np.random.default_rng([seed, 2])
        self.nominal_w: Array = np.array([c.nominal_kw for _, c in customers]) * 1000
        self._shift = rng.integers(-SHIFT_QUARTERS, SHIFT_QUARTERS + 1, self.count)
        self._wild: Array = np.array([1.0 if c.category[0] in HOME else 0.4 for _, c in customers])
        self._pv_w: Array = np.array([c.pv_kwp for _, c in customers]) * 1000
        self._ev_w: Array = np.array([c.ev_kw for _, c in customers]) * 1000
        self._network = np.array([plan.network for plan, _ in customers])
        # Category sums are kept per feeder: (feeder, category) → its customers.
        groups: dict[tuple[str, int, str], list[int]] = {}
        for i, (plan, customer) in enumerate(customers):
            if not customer.controllable:
                groups.setdefault((plan.feeder, plan.network, customer.category), []).append(i)
        self.groups = {key: np.array(members) for key, members in groups.items()}

    def day(self, number: int) -> tuple[Array, Array]:
        """(customers, 96) W and var of local day ``number``, net of PV: negative where more is made than used."""
        rng = np.random.default_rng([self._seed, 3, number + 10_000])
        first = self._first_quarter + number * QUARTERS
        variety = self._variety(rng)
        active: Array = np.zeros((self.count, QUARTERS))
        reactive = np.zeros_like(active)
        for (_, network, category), members in self.groups.items():
            shape = profiles.load(network)
            spread = profiles.take(shape.active[category], first - SHIFT_QUARTERS, QUARTERS + 2 * SHIFT_QUARTERS)
            shifted = np.lib.stride_tricks.sliding_window_view(spread, QUARTERS)
            nominal_w = self.nominal_w[members]
            share = nominal_w[:, None] * (shifted[SHIFT_QUARTERS + self._shift[members]] + 1e-6) * variety[members]
            share /= share.sum(axis=0)
            active[members] = share * (nominal_w.sum() * spread[SHIFT_QUARTERS:-SHIFT_QUARTERS])
            reactive[members] = share * (nominal_w.sum() * profiles.take(shape.reactive[category], first, QUARTERS))
        for network in np.unique(self._network):
            pv = profiles.take(profiles.load(int(network)).pv, first, QUARTERS)
            active -= np.where(self._network == network, self._pv_w, 0)[:, None] * pv
        chargers = np.flatnonzero(self._ev_w)
        quarter = np.arange(QUARTERS)
        on = np.where((quarter >= EV_ON) & (quarter < EV_OFF), 1.0, EV_STANDBY)
        charging = self._ev_w[chargers, None] * on * rng.normal(1, 0.03, (len(chargers), QUARTERS)).clip(0.9, 1.1)
        active[chargers] = charging
        reactive[chargers] = charging * EV_TAN
        return active, reactive

    def _variety(self, rng: np.random.Generator) -> Array:
        """(customers, 96) factors: a day's mood, quarter-hour noise, and now and then an oven."""
        shape = (self.count, QUARTERS)
        mood = rng.normal(0, 0.15, (self.count, 1))
        noise = rng.normal(0, 0.25, shape)
        spikes = rng.uniform(0.5, 2.0, shape) * (rng.random(shape) < 0.015)
        factors: Array = np.exp((mood + noise) * self._wild[:, None]) * (1 + spikes * self._wild[:, None])
        return factors


assert WEEK % QUARTERS == 0
