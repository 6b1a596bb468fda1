"""How bytes travel: MQTT, HTTP by SHA-256, and the in-process transport of tests and simulation.

Carries payloads without reading them.

May import: files, errors.
Must never come in: messages' meaning, plans, rounds.
"""
