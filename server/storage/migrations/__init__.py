"""Alembic's migrations of the ledger; schema.py runs them."""
