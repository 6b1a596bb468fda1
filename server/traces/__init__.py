"""A job's rounds as OpenTelemetry traces, made from its events (the extra ``traces``).

Imported only by a server that is told to trace: nothing else needs opentelemetry.

May import: events.
Must never come in: the ledger, decisions, rows or texts of devices beside their reasons.
"""
