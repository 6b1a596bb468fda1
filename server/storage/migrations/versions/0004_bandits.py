"""What bandits chose and learned."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the tables."""
    op.create_table(
        "choices",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("device", sa.Text, primary_key=True),
        sa.Column("choice", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "bandits",
        sa.Column("job", sa.Text, sa.ForeignKey("jobs.name"), primary_key=True),
        sa.Column("state", sa.LargeBinary, nullable=False),
    )
