"""Profiles with their history, and why devices are not eligible."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table and the column."""
    op.add_column("devices", sa.Column("ineligible", sa.Text))
    op.create_table(
        "profiles",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("fleet", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("payload_sha256", sa.Text, nullable=False),
        sa.Column("profile", sa.LargeBinary),
        sa.Column("bundle_sha256", sa.Text),
        sa.Column("remarks", sa.Text, nullable=False),
        sa.Column("received_at", sa.Text, nullable=False, server_default=sa.text("(datetime('now'))")),
    )
    op.create_index("profiles_of_devices", "profiles", ["fleet", "device", "id"])
