"""What Prometheus can ask an ingestor."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

LAG_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 6 * 3_600, 86_400)
GATEWAYS_MAX: Final = 2_000  # as labels; of others the table gateway_status and the ledger tell


class Arrivals(Collector):
    """How long batches took from ``sent_at`` to commit, and when each gateway's last came. Counted a transaction at a
    time: a call for each batch would cost more than reading it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = np.zeros(len(LAG_S) + 1, np.int64)
        self._sum_s = 0.0
        self._seen: dict[str, float] = {}

    def observe(self, lag_s: Sequence[float], gateways: Iterable[str], now: datetime) -> None:
        lags = np.maximum(np.asarray(lag_s, float), 0.0)
        with self._lock:
            self._counts += np.bincount(np.searchsorted(LAG_S, lags), minlength=len(LAG_S) + 1)
            self._sum_s += float(lags.sum())
            for gateway in gateways:
                if gateway in self._seen or len(self._seen) < GATEWAYS_MAX:
                    self._seen[gateway] = now.timestamp()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            counts, sum_s, seen = np.cumsum(self._counts).tolist(), self._sum_s, dict(self._seen)
        lag = HistogramMetricFamily("gridloom_ingest_lag_seconds", "Batches stored: from sent_at to commit")
        lag.add_metric([], list(zip([*map(str, LAG_S), "+Inf"], counts, strict=True)), sum_s)
        yield lag
        last = GaugeMetricFamily(
            "gridloom_ingest_gateway_last_seen_timestamp_seconds",
            f"When a gateway's last batch was committed; of the first {GATEWAYS_MAX} gateways",
            labels=["gateway"],
        )
        for gateway, at_s in seen.items():
            last.add_metric([gateway], at_s)
        yield last


class Metrics:
    """One ingestor's numbers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.rows = Counter("gridloom_ingest_rows", "Rows stored", ["kind"], registry=registry)
        self.batches = Counter("gridloom_ingest_batches", "Batches by outcome", ["outcome"], registry=registry)
        self.quarantined = Counter(
            "gridloom_ingest_quarantined", "Rows and whole messages set aside", ["reason"], registry=registry
        )
        self.transaction_s = Histogram("gridloom_ingest_transaction_seconds", "One transaction", registry=registry)
        self.database_up = Gauge("gridloom_ingest_database_up", "1 while the database takes data", registry=registry)
        self.broker_up = Gauge("gridloom_ingest_broker_up", "1 while connected to the broker", registry=registry)
        self.waiting = Gauge("gridloom_ingest_waiting_messages", "Received, not yet committed", registry=registry)
        self.waiting_bytes = Gauge("gridloom_ingest_waiting_bytes", "Received, not yet committed", registry=registry)
        self.arrivals = Arrivals()
        registry.register(self.arrivals)

    def rows_stored(self, rows: Mapping[str, int]) -> None:
        for kind, count in rows.items():
            self.rows.labels(kind).inc(count)

    def serve(self, port: int) -> None:
        """On loopback. Raises OSError where the port is taken."""
        start_http_server(port, "127.0.0.1", self.registry)
