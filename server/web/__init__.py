"""Blobs and uploads over HTTP, the embedded MQTT broker, and how pages are written from templates.

Serves bytes by SHA-256; knows no message and no page.

May import: storage, errors; of edge_runtime: network, protocol, files, errors.
Must never come in: rounds, jobs, SQL.
"""
