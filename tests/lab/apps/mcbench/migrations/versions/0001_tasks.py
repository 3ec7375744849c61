"""Tasks, and every execution of every task."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE task (
            id bigserial PRIMARY KEY,
            key text NOT NULL UNIQUE,
            kind text NOT NULL,
            arguments jsonb NOT NULL,
            state text NOT NULL DEFAULT 'queued',
            result jsonb,
            created timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    op.execute(
        """
        CREATE TABLE execution (
            id bigserial PRIMARY KEY,
            task_id bigint NOT NULL REFERENCES task,
            step text NOT NULL,
            worker text NOT NULL,
            version text NOT NULL,
            started timestamptz NOT NULL DEFAULT now(),
            ended timestamptz
        )
        """
    )
    op.execute("CREATE INDEX execution_task ON execution (task_id, step)")
    op.execute("CREATE TABLE tick (id bigserial PRIMARY KEY, worker text NOT NULL, at timestamptz NOT NULL DEFAULT now())")


def downgrade() -> None:
    op.execute("DROP TABLE tick, execution, task")
