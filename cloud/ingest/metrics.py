"""What Prometheus can ask an ingestor."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server


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

    def serve(self, port: int) -> None:
        """On loopback. Raises OSError where the port is taken."""
        start_http_server(port, "127.0.0.1", self.registry)
