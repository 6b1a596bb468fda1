"""Offers to backprop devices: the kind of the level. Levels of before are dropout levels, of which nothing is said."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add the column."""
    op.add_column("offers", sa.Column("level_kind", sa.Text))
