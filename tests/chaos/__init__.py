"""Gateways, broker, ingestors and database, all real, while everything that can break does; then the rows are counted.

``make chaos`` runs ten minutes and keeps its report in ``docs/chaos.md``; ``test_chaos.py`` runs half a minute of it.
"""
