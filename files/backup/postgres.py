# ruff: noqa: F821 - a part of the backup program: operations.backup puts it into backup.py, whose names it uses

import base64
import hmac
import threading
from collections.abc import Callable

# --- kind postgres: one database of a PostgreSQL server, on this host, elsewhere, or in a container --------------------


class Postgres(Kind):
    """
    One PostgreSQL database, as ``pg_dump -Fc`` writes it, by a role that may read everything and nothing else.

    Rows are counted in the transaction that the dump is made from, so that a copy says exactly what it holds. A drill
    restores it into a server of its own, which nothing else can reach, and counts again. In place it is restored into a
    new database that takes the name of the old one in one transaction.

    The programs of PostgreSQL are the server's own where it runs in a container. Passwords only ever stand in a
    PGPASSFILE with mode 0600, in memory (tmpfs) inside a container.
    """

    COUNTS = "counts.json"
    # Who may do what with the database as such, which is not in it: no pg_restore into another one brings it back.
    ACCESS = "access.json"
    # What a client says of itself: the dump may take long, connecting may not.
    CONNECT_SECONDS = "20"

    @property
    def where(self) -> str:
        about = self.source.postgres
        return f"database {about['database']} " + (
            f"in container {about['container']}" if about["container"] else f"on {about['host']}"
        )

    @property
    def database(self) -> str:
        return str(self.source.postgres["database"])

    def size(self) -> int:
        # the dump is compressed; a database of a size that fits beside it always does
        size = int(self._ask(self._reader, f"SELECT pg_database_size({_literal(self.database)})"))
        return size // 2

    def copy(self, stage: Path) -> None:
        with _Session(self._reader.argv("psql", *_PSQL), self._reader, self.deadline) as session:
            session.ask("SET client_min_messages = error")
            session.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            snapshot = session.ask("SELECT pg_export_snapshot()")
            with open(stage / "data", "xb") as file:
                self._reader.run(
                    "pg_dump", "--format=custom", "--no-password", f"--snapshot={snapshot}", out=file
                )
            counts = count_rows(session.ask)
            access = session.ask(_ACCESS.format(_literal(self.database)))
        (stage / self.COUNTS).write_text(json.dumps(counts))
        (stage / self.ACCESS).write_text(access)
        _sync(stage / "data")

    def inspect(self, directory: Path) -> Content:
        data = self._dump(directory)
        # reads and unpacks all of it, and writes it nowhere
        self._reader.run("pg_restore", "--file=/dev/null", source=data, what="the dump is damaged")
        counts = json.loads((directory / self.COUNTS).read_text())
        return Content(data.stat().st_size, _file_digest(data), counts)

    def prove(self, directory: Path) -> Content:
        # first what is quick, and without the live server: that one may be what was lost
        data = self._dump(directory)
        digest = _file_digest(data)
        if digest != Manifest.parse((directory / MANIFEST).read_text()).content.sha256:
            raise Failure("the dump is damaged: its sha256 differs from the recorded one")
        with self._scratch() as server:
            server.run(
                "pg_restore", "--exit-on-error", "--no-owner", "--no-privileges", "--dbname=postgres",
                source=data, what="the dump is damaged",
            )  # fmt: skip
            counts = count_rows(lambda sql: self._ask(server, sql))
        return Content(data.stat().st_size, digest, counts)

    @staticmethod
    def _dump(directory: Path) -> Path:
        data = directory / "data"
        if not data.is_file():
            raise Failure("it holds no dump")
        if not data.stat().st_size:
            raise Failure("the dump is empty")
        with data.open("rb") as file:
            if file.read(5) != b"PGDMP":
                raise Failure("it is no dump of PostgreSQL")
        return data

    def prepare(self, directory: Path) -> Path:
        incoming = f"{self.database[:40]}_incoming"
        admin = self._admin
        like = self._ask(
            admin,
            "SELECT json_build_array(pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype) "
            f"FROM pg_database WHERE datname = {_literal(self.database)}",
        )
        access = self._access(directory, bool(like))
        options = "TEMPLATE template0"
        if like:
            owner, encoding, collate, ctype = json.loads(like)
            options += (
                f" OWNER {_name(owner)} ENCODING {_literal(encoding)} "
                f"LC_COLLATE {_literal(collate)} LC_CTYPE {_literal(ctype)}"
            )
        elif owner := self.source.postgres["owner"] or access["owner"]:
            options += f" OWNER {_name(owner)}"
        # what an earlier restore left that did not come to its end
        self._ask(admin, f"DROP DATABASE IF EXISTS {_name(incoming)}")
        self._ask(admin, f"CREATE DATABASE {_name(incoming)} {options}")
        # whoever may log in may connect to a new database: to this one nobody, until it is as open as the one that it replaces
        self._ask(admin, f"REVOKE ALL ON DATABASE {_name(incoming)} FROM PUBLIC")
        admin.run(
            "pg_restore", "--exit-on-error", "--no-password", f"--dbname={incoming}", source=directory / "data",
            what="the dump cannot be restored beside the live database",
        )  # fmt: skip
        self._ask(admin, "ANALYZE", database=incoming)
        counts = count_rows(lambda sql: self._ask(admin, sql, database=incoming))
        wanted = Manifest.parse((directory / MANIFEST).read_text()).content.counts
        if counts != wanted:
            raise Failure("what was restored beside the live database has other rows than the copy says")
        self._ask(admin, access_statements(incoming, access))
        return Path(incoming)

    def _access(self, directory: Path, is_there: bool) -> dict[str, Any]:
        """Return what the restored database has to let in: who could come in before, or who could when it was copied."""
        admin, live, recorded = self._admin, self.database, directory / self.ACCESS
        if is_there:
            return dict(json.loads(self._ask(admin, _ACCESS.format(_literal(live)))))
        found: dict[str, Any] = {"owner": "", "connections": -1, "grants": [[self.source.postgres["user"], "CONNECT", False]]}
        if recorded.is_file():
            found = json.loads(recorded.read_text())
        else:
            tell(f"the copy does not say who may connect to {live}: its owner may, and backups; GRANT CONNECT ON DATABASE to others")
        roles = json.loads(self._ask(admin, "SELECT json_agg(rolname) FROM pg_roles"))
        grants = [one for one in found["grants"] if one[0] in (None, *roles)]
        return {**found, "owner": found["owner"] if found["owner"] in roles else "", "grants": grants}

    def exchange(self, incoming: Path, stamp: str) -> list[str]:
        admin, live = self._admin, self.database
        aside = f"{live[:30]}_before_restore_{stamp.lower()}"
        there = self._ask(admin, f"SELECT 1 FROM pg_database WHERE datname = {_literal(live)}")
        before = self._ask(
            admin,
            "SELECT coalesce(json_agg(datname), '[]') FROM pg_database "
            f"WHERE starts_with(datname, {_literal(live[:30] + '_before_restore_')})",
        )
        if not there:
            self._ask(admin, f"ALTER DATABASE {_name(str(incoming))} RENAME TO {_name(live)}")
        else:
            # Nobody comes in any more and who is in goes out; they find the restored one when they come back.
            self._ask(admin, f"ALTER DATABASE {_name(live)} ALLOW_CONNECTIONS false")
            try:
                self._ask(
                    admin,
                    f"SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = {_literal(live)}",
                )
                self._ask(
                    admin,
                    f"BEGIN; ALTER DATABASE {_name(live)} RENAME TO {_name(aside)}; "
                    f"ALTER DATABASE {_name(str(incoming))} RENAME TO {_name(live)}; COMMIT",
                )
            except BaseException:
                with contextlib.suppress(Failure):
                    self._ask(admin, f"ALTER DATABASE {_name(live)} ALLOW_CONNECTIONS true")
                raise
            self._ask(admin, f"ALTER DATABASE {_name(aside)} ALLOW_CONNECTIONS true")
        for old in json.loads(before):
            self._ask(admin, f"DROP DATABASE {_name(old)}")
        if before != "[]":
            tell(f"dropped what an earlier restore had put aside: {', '.join(json.loads(before))}")
        return [f"database {aside} (until the next restore)"] if there else []

    def ready(self) -> None:
        """Make the role that the dump is made by, or bring its password up to date, where we may."""
        user, password = self.source.postgres["user"], self.secrets.get("SOURCE_PASSWORD", "")
        admin = self._admin_or_none
        if admin is None or not password:
            self._ask(self._reader, "SELECT 1")
            return
        # the verifier, not the password: statements may be logged by the server
        self._ask(
            admin,
            f"DO $do$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {_literal(user)}) "
            f"THEN CREATE ROLE {_name(user)}; END IF; END $do$; "
            f"ALTER ROLE {_name(user)} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
            f"PASSWORD {_literal(scram_verifier(password, os.urandom(16)))}; "
            f"GRANT pg_read_all_data TO {_name(user)}; "
            # where nobody may come in unless it is said
            f"GRANT CONNECT ON DATABASE {_name(self.database)} TO {_name(user)}",
        )
        self._ask(self._reader, "SELECT 1")

    # .. how its programs are run

    @property
    def _reader(self) -> _Client:
        return self._client(self.source.postgres["user"], self.secrets.get("SOURCE_PASSWORD", ""), self.database)

    @property
    def _admin_or_none(self) -> _Client | None:
        about = self.source.postgres
        password = self.secrets.get("SOURCE_ADMIN_PASSWORD", "")
        # a database cannot be renamed by who is in it
        other = "template1" if self.database == "postgres" else "postgres"
        if about["container"] or password:
            return self._client(about["admin"], password, other)
        if about["host"].startswith("/") or about["host"] in ("localhost", "127.0.0.1", "::1"):
            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                return None
            # through the socket, as the account that owns the server: no password is needed
            return _Client(
                self.deadline, {"PGUSER": about["admin"], "PGDATABASE": other, "PGPORT": str(about["port"]),
                                "PGHOST": "/run/postgresql"},
                account=(account.pw_uid, account.pw_gid),
            )  # fmt: skip
        return None

    @property
    def _admin(self) -> _Client:
        admin = self._admin_or_none
        if admin is None:
            raise Failure("a restore in place makes a new database: declare admin and admin_password")
        return admin

    def _client(self, user: str, password: str, database: str) -> _Client:
        about = self.source.postgres
        env = {
            "PGUSER": user, "PGDATABASE": database, "PGPORT": str(about["port"]), "PGAPPNAME": "hostwright-backup",
            "PGCONNECT_TIMEOUT": self.CONNECT_SECONDS,
        }  # fmt: skip
        if about["container"]:
            return _Client(self.deadline, env, container=about["container"], password=password)
        env.update(PGHOST=about["host"], PGSSLMODE=about["sslmode"])
        return _Client(self.deadline, env, password=password, passfile=self.work / "pgpass")

    def _ask(self, client: _Client, sql: str, database: str = "") -> str:
        options = [f"--dbname={database}"] if database else []
        return client.run("psql", *_PSQL, *options, text=sql).strip()

    # .. where a drill restores to

    def _scratch(self) -> contextlib.AbstractContextManager[_Client]:
        about = self.source.postgres
        image = about["scratch_image"]
        if about["container"] and not image:
            found = execute(["docker", "inspect", "--format={{.Image}}", about["container"]], self.deadline)
            if found.status:
                raise Failure(f"container {about['container']}: {found.err.strip()}: provision the host first")
            image = found.out.strip()
        return self._scratch_container(image) if image else self._scratch_cluster()

    @contextlib.contextmanager
    def _scratch_container(self, image: str) -> Iterator[_Client]:
        name = f"hostwright-backup-{self.source.name}-scratch"
        # -v: its own nameless volume; one that a killed run left goes first
        remove = ["docker", "rm", "--force", "--volumes", name]
        execute(remove, self.deadline)
        started = execute(
            ["docker", "run", "--detach", "--name", name, "--network=none", "--label=hostwright.scratch=backup",
             "--env=POSTGRES_HOST_AUTH_METHOD=trust", image, "postgres", "-c", "fsync=off", "-c", "full_page_writes=off"],
            self.deadline,
        )  # fmt: skip
        try:
            if started.status:
                raise Failure(f"no scratch container from {image}: {started.err.strip()[-300:]}")
            # only over TCP: while it makes its cluster, the image runs a first server, on the socket alone
            ready = ["docker", "exec", name, "pg_isready", "--quiet", "--host=127.0.0.1"]
            self._until_ready(ready, lambda: execute(["docker", "logs", "--tail=5", name], self.deadline).err)
            yield _Client(self.deadline, {"PGUSER": "postgres", "PGDATABASE": "postgres"}, container=name)
        finally:
            execute(remove, Deadline(120))

    @contextlib.contextmanager
    def _scratch_cluster(self) -> Iterator[_Client]:
        """A server of its own from the programs on this host: no TCP, a socket in a directory that only it enters."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if not found:
            raise Failure("no PostgreSQL server on this host to restore into: install it, or declare scratch_image")
        programs = found[-1].parent
        account = pwd.getpwnam("postgres")
        place = self.work / "cluster"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
        shutil.chown(place, account.pw_uid, account.pw_gid)
        identity = (account.pw_uid, account.pw_gid)
        env = {"PATH": f"{programs}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(place)}
        made = execute(
            [str(programs / "initdb"), "--auth=trust", "--encoding=UTF8", "--no-sync", f"--pgdata={place}/data"],
            self.deadline, env=env, cwd=place, account=identity,
        )  # fmt: skip
        if made.status:
            raise Failure(f"initdb: {made.err.strip()[-300:]}")
        log = open(place / "log", "wb")  # noqa: SIM115 - closed below, with the server
        server = subprocess.Popen(
            [str(programs / "postgres"), "-D", f"{place}/data", "-k", str(place), "-c", "listen_addresses=",
             "-c", "fsync=off", "-c", "full_page_writes=off", "-c", "jit=off"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=place, start_new_session=True,
            user=identity[0], group=identity[1], extra_groups=[],
        )  # fmt: skip
        client_env = {**env, "PGHOST": str(place), "PGUSER": "postgres", "PGDATABASE": "postgres"}
        try:
            ready = [str(programs / "pg_isready"), "--quiet", f"--host={place}"]
            self._until_ready(ready, lambda: (place / "log").read_text(errors="replace")[-300:])
            yield _Client(self.deadline, client_env, account=identity)
        finally:
            # SIGQUIT: at once, nothing of it is kept
            server.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(GRACE)
            if server.poll() is None:
                _end_group(server)
            log.close()
            shutil.rmtree(place, ignore_errors=True)

    def _until_ready(self, argv: Sequence[str], words: Callable[[], str]) -> None:
        patience = Deadline(min(180, self.deadline.left()))
        while execute(argv, self.deadline).status:
            if patience.left() == 0:
                raise Failure(f"the scratch server does not come up: {words().strip()}")
            time.sleep(0.3)


_PSQL = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--no-password", "--set=ON_ERROR_STOP=1")
# Every ordinary table: what it is called here (with its schema unless that is public), and in SQL. What extensions
# bring along is theirs, and a dump leaves it out.
_TABLES = """
SELECT coalesce(json_agg(json_build_array(
    CASE n.nspname WHEN 'public' THEN c.relname ELSE n.nspname || '.' || c.relname END,
    format('%I.%I', n.nspname, c.relname)) ORDER BY 1), '[]')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                    AND d.deptype = 'e')
"""
_AT_ONCE = 200
# Of a database: its owner, its limit of connections, and each role's rights to it; null is everybody.
_ACCESS = """
SELECT json_build_object('owner', pg_get_userbyid(datdba), 'connections', datconnlimit, 'grants', (
    SELECT coalesce(json_agg(json_build_array(
        CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee) END, privilege_type, is_grantable)), '[]')
    FROM aclexplode(coalesce(datacl, acldefault('d', datdba)))))
FROM pg_database WHERE datname = {}
"""


def count_rows(ask: Callable[[str], str]) -> dict[str, int]:
    """Return the rows of every table; ``ask`` runs one statement and returns its one line."""
    tables, counts = json.loads(ask(_TABLES)), {}
    for first in range(0, len(tables), _AT_ONCE):
        some = tables[first : first + _AT_ONCE]
        rows = " UNION ALL ".join(
            f"SELECT {place} AS place, count(*) AS rows FROM ONLY {name}" for place, (_, name) in enumerate(some)
        )
        found = json.loads(ask(f"SELECT json_agg(rows ORDER BY place) FROM ({rows}) AS counted"))
        counts.update({label: found[place] for place, (label, _) in enumerate(some)})
    return counts


def access_statements(database: str, access: Mapping[str, Any]) -> str:
    """Return SQL that gives a database, to which only its owner has rights, the access of another one."""
    name = _name(database)
    lines = [f"ALTER DATABASE {name} CONNECTION LIMIT {access['connections']}"]
    for role, right, is_grantable in access["grants"]:
        to = "PUBLIC" if role is None else _name(role)
        lines.append(f"GRANT {right} ON DATABASE {name} TO {to}{' WITH GRANT OPTION' if is_grantable else ''}")
    return ";\n".join(lines)


def _literal(text: str) -> str:
    """Return SQL that means this text, whatever stands in it."""
    plain = text.replace("'", "''")
    return "E'" + plain.replace("\\", "\\\\") + "'" if "\\" in text else f"'{plain}'"


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def scram_verifier(password: str, salt: bytes, rounds: int = 4096) -> str:
    """Return what PostgreSQL stores of a password (RFC 5803), so that the password itself never reaches it."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    client = hmac.new(salted, b"Client Key", hashlib.sha256).digest()
    server = hmac.new(salted, b"Server Key", hashlib.sha256).digest()
    text = [base64.b64encode(part).decode() for part in (salt, hashlib.sha256(client).digest(), server)]
    return f"SCRAM-SHA-256${rounds}:{text[0]}${text[1]}:{text[2]}"


# Reads one line, byte by byte, and leaves the rest of stdin to the program.
_IN_CONTAINER = r"""umask 077
IFS= read -r line
PGPASSFILE=/dev/shm/.hostwright-$$
export PGPASSFILE
trap 'rm -f "$PGPASSFILE"' EXIT
trap 'exit 1' HUP INT TERM
printf '%s\n' "$line" >"$PGPASSFILE"
"$@"
"""


class _Client:
    """How the programs of PostgreSQL are run against one server, as one role."""

    def __init__(
        self,
        deadline: Deadline,
        env: Mapping[str, str],
        container: str = "",
        password: str = "",
        passfile: Path | None = None,
        account: tuple[int, int] | None = None,
    ) -> None:
        self.deadline, self.container, self.account = deadline, container, account
        self.password = password
        fields = "*:*:*:*:" + password.replace("\\", "\\\\").replace(":", "\\:")
        self._first = f"{fields if password else ''}\n" if container else ""
        self._variables = dict(env)
        self.env = {"PATH": os.defpath + ":/usr/local/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
        if container:
            self.env["DOCKER_CONFIG"] = "/nonexistent"
        else:
            self.env.update(env)
            if password and passfile is not None:
                passfile.parent.mkdir(parents=True, exist_ok=True)
                _write(passfile, f"{fields}\n", 0o600)
                self.env["PGPASSFILE"] = str(passfile)

    @property
    def first(self) -> bytes:
        """What has to stand in front of everything else on stdin."""
        return self._first.encode()

    def argv(self, *words: str) -> list[str]:
        if not self.container:
            return list(words)
        # none of these variables is secret
        options = [f"--env={key}={value}" for key, value in self._variables.items()]
        return ["docker", "exec", "--interactive", *options, self.container, "sh", "-c", _IN_CONTAINER, "sh", *words]

    def run(
        self,
        program: str,
        *words: str,
        text: str = "",
        source: Path | None = None,
        out: IO[bytes] | None = None,
        what: str = "",
    ) -> str:
        """Run a program to its end and return its output. ``source``: its stdin, after ``first``; ``out``: its stdout."""
        process = subprocess.Popen(
            self.argv(program, *words), stdin=subprocess.PIPE, stdout=out or subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.env, cwd="/", start_new_session=True, **_identity(self.account),
        )  # fmt: skip
        watch = threading.Timer(self.deadline.left(), _end_from_aside, [process])
        watch.daemon = True
        watch.start()
        try:
            feeder = threading.Thread(target=self._feed, args=[process.stdin, text, source], daemon=True)
            feeder.start()
            errors: list[bytes] = []
            reader = threading.Thread(target=lambda: errors.append(process.stderr.read()), daemon=True)  # type: ignore[union-attr]
            reader.start()
            told = b"" if process.stdout is None else process.stdout.read()
            status = process.wait()
            reader.join(GRACE)
        except BaseException:
            _end_group(process)
            raise
        finally:
            watch.cancel()
        said = b"".join(errors).decode(errors="replace").strip()
        if self.password:
            said = said.replace(self.password, "***")
        if self.deadline.left() == 0:
            raise Failure(f"{program}: did not end within {self.deadline.seconds:.0f} s")
        if status:
            last = " / ".join(line.strip() for line in said.splitlines()[-3:])
            raise Failure(f"{what + ': ' if what else ''}{program}: {last or f'exit status {status}'}")
        return told.decode(errors="replace")

    def _feed(self, stdin: IO[bytes], text: str, source: Path | None) -> None:
        # a program that ends early has said why
        with contextlib.suppress(OSError), stdin:
            stdin.write(self.first + text.encode())
            stdin.flush()
            if source is not None:
                with source.open("rb") as file:
                    shutil.copyfileobj(file, stdin, 1 << 20)


def _end_from_aside(process: subprocess.Popen[bytes]) -> None:
    """End a process whose output another thread is reading."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
            return


class _Session:
    """A psql that stays open between two questions, because a transaction has to."""

    def __init__(self, argv: Sequence[str], client: _Client, deadline: Deadline) -> None:
        self._argv, self._client, self._deadline = argv, client, deadline

    def __enter__(self) -> _Session:
        self._process = subprocess.Popen(
            list(self._argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=self._client.env, cwd="/", start_new_session=True, **_identity(self._client.account),
        )  # fmt: skip
        self._watch = threading.Timer(self._deadline.left(), _end_from_aside, [self._process])
        self._watch.daemon = True
        self._watch.start()
        self._send(self._client.first)
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        if self._process.poll() is None:
            _end_group(self._process)

    def ask(self, sql: str) -> str:
        self._send(f"{sql};\n\\echo {self.END}\n".encode())
        lines: list[str] = []
        for raw in self._process.stdout or ():
            line = raw.decode(errors="replace").rstrip("\n")
            if line == self.END:
                return "\n".join(lines).strip()
            lines.append(line)
        raise Failure(f"psql: {' / '.join(lines[-3:]) or 'the connection ended'}")

    END = "-- hostwright: end of answer --"

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # it has said why, see ask
            self._process.stdin.write(data)  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]


KINDS["postgres"] = Postgres
