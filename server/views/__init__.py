"""What people read about a job: summary, rounds, devices, why an arm was chosen, live progress.

Reads records and events, and changes nothing.

May import: storage, fleet, job, bandit, events, errors; of edge_runtime: protocol, bundle, output.
Must never come in: SQL, decisions.
"""
