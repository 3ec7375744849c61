"""Bad: fails halfway, on data that is there."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("CREATE TABLE half_done (id int)")
    op.execute("INSERT INTO tick (worker) VALUES ('migration')")
    op.execute("ALTER TABLE tick ADD COLUMN owner text NOT NULL")
