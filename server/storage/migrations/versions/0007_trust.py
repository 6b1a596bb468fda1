"""Join tokens and certificates of a fleet with its own authority."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the two tables."""
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("fleet", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("secret_sha256", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("expires_at_s", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("key_sha256", sa.Text),
        sa.Column("facts", sa.Text),
        sa.Column("address", sa.Text),
        sa.Column("asked_at", sa.Text),
        sa.Column("serial", sa.Text),
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.Text, primary_key=True),
        sa.Column("fleet", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("key_sha256", sa.Text, nullable=False),
        sa.Column("certificate", sa.Text, nullable=False),
        sa.Column("issued_at", sa.Text, nullable=False),
        sa.Column("expires_at_s", sa.Integer, nullable=False),
        sa.Column("revoked_at", sa.Text),
        sa.Column("reason", sa.Text),
    )
    op.create_index("certificates_of_devices", "certificates", ["fleet", "device"])
