"""How sure a reading is."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE upload ADD COLUMN confidence real")


def downgrade() -> None:
    op.execute("ALTER TABLE upload DROP COLUMN confidence")
