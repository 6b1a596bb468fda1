"""Rounds have a plan and figures; offers have times by block."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_NO_FIGURES = {"front_variance": None, "back_variance": None, "front_s": None, "back_s": None}


def upgrade() -> None:
    """Add the columns; the plan of an old round is what its job says."""
    op.add_column("rounds", sa.Column("plan", sa.Text, nullable=False, server_default="{}"))
    op.add_column("rounds", sa.Column("terms", sa.Integer))
    op.add_column("rounds", sa.Column("figures", sa.Text))
    op.add_column("offers", sa.Column("front_seconds", sa.Float))
    op.add_column("offers", sa.Column("back_seconds", sa.Float))
    connection = op.get_bind()
    jobs = {name: json.loads(config) for name, config in connection.execute(sa.text("SELECT name, config FROM jobs"))}
    for name, index in connection.execute(sa.text("SELECT DISTINCT job, round FROM rounds")).all():
        job = jobs[name]
        split, rule = job.get("split") or 0, dict(job.get("step") or {})
        if job.get("schedule") == "linear" and "learning_rate" in rule:
            rule["learning_rate"] *= (job["rounds"] - index) / job["rounds"]
        values = {
            "plan": json.dumps({"split": split, "rule": rule}),
            "figures": json.dumps({"split": split, **_NO_FIGURES}),
            "job": name,
            "round": index,
        }
        connection.execute(
            sa.text(
                "UPDATE rounds SET plan = :plan, figures = :figures, terms = 0 WHERE job = :job AND round = :round"
            ),
            values,
        )
