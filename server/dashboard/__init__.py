"""The dashboard: pages under ``/ui/`` that an operator's browser shows of a running server, written by the server.

Every page can be read without JavaScript; the script draws charts and follows a job's events.

May import: queue, views, web, storage, errors; of edge_runtime: protocol, errors.
Must never come in: SQL, decisions, anything that a page would load from elsewhere, scripts or styles inside a page.
"""
