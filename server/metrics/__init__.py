"""What a server tells Prometheus: the fleet, its jobs and rollouts, and the server itself, read at each scrape.

May import: storage, views.
Must never come in: SQL, rounds, messages; a metric for each device (ten thousand of them are ten thousand series).
"""
