"""A reply names the server that generates it, so that one server's end says nothing about another's streams."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STREAMING = sa.text("state = 'streaming'")


def upgrade() -> None:
    op.add_column("reply", sa.Column("replica_id", sa.String()))
    op.create_index("ix_reply_streaming", "reply", ["replica_id"], sqlite_where=STREAMING, postgresql_where=STREAMING)
