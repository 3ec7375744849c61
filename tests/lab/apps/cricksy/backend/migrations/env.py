"""Migrates under a lock of the database: a second one that starts meanwhile waits, and then finds nothing to do."""

from alembic import context
from sqlalchemy import text
from store import engine

with engine().connect() as connection:
    connection.execute(text("SELECT pg_advisory_lock(7014)"))
    connection.commit()
    context.configure(connection=connection, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()
