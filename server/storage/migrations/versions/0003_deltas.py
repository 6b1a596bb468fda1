"""Offers to backprop devices: level, delta and layers."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns."""
    for name, kind in (
        ("level", sa.Integer),
        ("delta_sha256", sa.Text),
        ("layers", sa.Text),
        ("personal_layers", sa.Integer),
        ("peak_rss_bytes", sa.Integer),
    ):
        op.add_column("offers", sa.Column(name, kind))
