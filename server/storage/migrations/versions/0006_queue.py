"""Jobs queue: priority, order, what they wait for, where their bundle is; tags of devices; the operator's actions."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add columns and tables; jobs were submitted in the order in which they were entered."""
    for column in (
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("sequence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("after", sa.Text),
        sa.Column("bundle_path", sa.Text),
        sa.Column("reason", sa.Text),
    ):
        op.add_column("jobs", column)
    op.execute("UPDATE jobs SET sequence = rowid")
    op.add_column("devices", sa.Column("reason", sa.Text))
    op.create_table(
        "device_tags",
        sa.Column("fleet", sa.Text, primary_key=True),
        sa.Column("device", sa.Text, primary_key=True),
        sa.Column("tag", sa.Text, primary_key=True),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )
