"""The read-only HTTP API for billing and operators, and the process that also serves the console."""
