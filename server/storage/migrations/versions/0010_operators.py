"""Who asked for a change, over which way and from where, and what became of it."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the columns. Older Coveys entered what was done, and only that, with the way in the place of the name."""
    op.add_column("audit", sa.Column("way", sa.Text, nullable=False, server_default=""))
    op.add_column("audit", sa.Column("address", sa.Text))
    op.add_column("audit", sa.Column("outcome", sa.Text))
    op.create_index("audit_of_subjects", "audit", ["subject", "id"])
    op.execute("UPDATE audit SET outcome = 'done', way = CASE actor WHEN 'token' THEN 'token' ELSE 'socket' END")
