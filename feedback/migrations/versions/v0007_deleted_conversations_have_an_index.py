"""Deleted conversations have an index of their own: each vote of a log asks whether its conversation is one of them."""

from alembic import op
from sqlalchemy import text

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_DELETED = text("deleted_at IS NOT NULL")


def upgrade() -> None:
    op.create_index("ix_conversation_deleted", "conversation", ["id"], sqlite_where=_DELETED, postgresql_where=_DELETED)
