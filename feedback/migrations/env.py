"""Alembic's entry: runs the scripts on the connection, and inside the transaction, that `feedback.migrate` opened."""

from alembic import context
from sqlmodel import SQLModel

import feedback.schema  # noqa: F401 - fills the metadata that `alembic revision --autogenerate` compares with

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("run `kudos db migrate`: migrations need the connection and the lock that it takes")

context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    transactional_ddl=True,  # true of SQLite as well, with transactions begun by hand
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
