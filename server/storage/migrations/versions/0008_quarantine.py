"""Why a device is in quarantine."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column; no device of an older ledger is in quarantine."""
    op.add_column("devices", sa.Column("quarantine", sa.Text))
