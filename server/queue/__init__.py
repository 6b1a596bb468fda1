"""Jobs that come and go: which of them runs when, and what the operator asks of them.

Decides in one thread, which also reads the devices' messages; others hand their wishes in.

May import: advice, rounds, rollouts, fleet, views, trust, storage, job, events, errors; of edge_runtime: bundle,
    protocol, values, errors.
Must never come in: HTTP, SQL, the making of engines and transports.
"""
