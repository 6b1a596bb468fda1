"""Blobs and uploads over HTTP, and the embedded MQTT broker.

Serves bytes by SHA-256; knows no message.

May import: storage; of edge_runtime: network, protocol, files, errors.
Must never come in: rounds, jobs, SQL.
"""
