"""Alembic's entry: runs migrations on the connection that schema.py hands in, within its transaction."""

from alembic import context

from server.storage.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
context.run_migrations()
