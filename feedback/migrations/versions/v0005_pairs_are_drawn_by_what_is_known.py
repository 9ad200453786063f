"""A matchup can leave the choice of pairs to the leaderboard; a reply says whether it refused to answer."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("matchup", sa.Column("automatic", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("matchup", sa.Column("versions", sa.JSON()))
    op.add_column("reply", sa.Column("refused", sa.Boolean()))
