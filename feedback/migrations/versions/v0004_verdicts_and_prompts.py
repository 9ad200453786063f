"""A reply keeps what the safety filter said of it, and the version of its system prompt; prompts have versions."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("reply", sa.Column("safety_flag", sa.String()))
    op.add_column("reply", sa.Column("safety", sa.JSON()))
    op.add_column("reply", sa.Column("prompt_version", sa.String()))
    op.add_column("reply", sa.Column("prompt_propensity", sa.Float()))
    op.create_table(
        "prompt_version",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "number", name="uq_prompt_number"),
    )
    op.create_table(
        "prompt_use",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String()),
        sa.Column("arms", sa.JSON()),
        sa.Column("salt", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
