"""Tasks get a priority; the release before this one does not know of it and goes on."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE task ADD COLUMN priority int NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE task DROP COLUMN priority")
