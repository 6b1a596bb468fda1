"""Blobs and uploads over HTTP, and the embedded MQTT broker.

Serves bytes by SHA-256; knows no message.

May import: storage, errors; of edge_runtime: protocol, network, files, values, errors.
Must never come in: rounds, jobs, SQL.
"""
