"""Uploads, and every execution of every upload."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("CREATE TABLE upload (id uuid PRIMARY KEY, state text NOT NULL DEFAULT 'announced', text text)")
    op.execute(
        "CREATE TABLE execution (id bigserial PRIMARY KEY, upload uuid NOT NULL REFERENCES upload, worker text NOT NULL, "
        "version text NOT NULL, at timestamptz NOT NULL DEFAULT now(), retries int NOT NULL, redelivered boolean NOT NULL, "
        "ended timestamptz)"
    )


def downgrade() -> None:
    op.execute("DROP TABLE execution, upload")
