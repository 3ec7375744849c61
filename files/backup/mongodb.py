# ruff: noqa: F821 - a part of the backup program: operations.backup puts it into backup.py, whose names it uses

# --- kind mongodb: one database of a MongoDB server in a pod of a Kubernetes cluster that this host's kubectl reaches ----

import gzip


class MongoDB(InPod):
    """
    One database, as ``mongodump --archive --gzip`` writes it.

    What it holds is what mongodump says that it has dumped. A drill restores it into a pod of its own, with the server's
    image and nothing else of it, and counts. In place it is restored collection by collection (``--drop``), after the live
    database was dumped into a file that stays. The password is read inside the container, from the file that the server
    was given: it is in no argv and on no disk of this host.
    """

    CONTAINER = "mongodb"
    COUNTS = "counts.json"
    MAY_BE_EMPTY = True
    # $1 is the user, the rest is the program; its password goes into a file that is gone with it
    WITH_PASSWORD = (
        'set -e; umask 077; user=$1; shift; c=$(mktemp /tmp/.hostwright.XXXXXX); trap \'rm -f "$c"\' EXIT; '
        'printf \'password: "%s"\\n\' "$(cat "$PASSWORD_FILE")" > "$c"; '
        '"$@" --username="$user" --authenticationDatabase=admin --config="$c"'
    )
    ASK = (
        "const d = new Mongo(%(url)s).getDB(%(database)s); const counts = {}; "
        "d.getCollectionNames().filter((n) => !n.startsWith('system.')).sort().forEach((n) => { counts[n] = d.getCollection(n).countDocuments({}); }); "
        "print(JSON.stringify({size: Number(d.stats().dataSize), counts}));"
    )

    @property
    def where(self) -> str:
        return f"database {self.about['database']} in pod {self.about['pod']}"

    @property
    def about(self) -> dict[str, Any]:
        return self.source.mongodb

    def size(self) -> int:
        return int(self._ask_live()["size"])

    def ready(self) -> None:
        self._ask_live()

    def copy(self, stage: Path) -> None:
        counts = self._dump(stage / "data")
        (stage / self.COUNTS).write_text(json.dumps(counts))
        _sync(stage / "data")

    def inspect(self, directory: Path) -> Content:
        data = directory / "data"
        if not data.is_file() or not data.stat().st_size:
            raise Failure("it holds no dump")
        try:
            with gzip.open(data) as file:
                while file.read(1 << 20):
                    pass
        except (OSError, EOFError):
            raise Failure("the dump is damaged") from None
        counts = json.loads((directory / self.COUNTS).read_text())
        return Content(data.stat().st_size, _file_digest(data), counts)

    def prove(self, directory: Path) -> Content:
        content = self.inspect(directory)
        with self._scratch_pod():
            self._exec(self.scratch, "mongorestore", "--archive", "--gzip", source=directory / "data", what="the dump is damaged")
            counts = json.loads(self._mongosh(self.scratch, "'mongodb://127.0.0.1:27017/'"))["counts"]
        return Content(content.size, content.sha256, counts)

    def prepare(self, directory: Path) -> Path:
        wanted = Manifest.parse((directory / MANIFEST).read_text()).content.counts
        if self.prove(directory).counts != wanted:
            raise Failure("what was restored into a pod of its own has other documents than the copy says")
        self._ask_live()
        return directory / "data"

    def exchange(self, incoming: Path, stamp: str) -> list[str]:
        wanted = Manifest.parse((incoming.parent / MANIFEST).read_text()).content.counts
        kept = []
        before = self._ask_live()["counts"]
        if before:
            aside = Path("/var/lib/hostwright/backup") / f"{self.source.name}.before-restore-{stamp}.archive.gz"
            self._dump(aside)
            kept.append(str(aside))
        self._exec(self.about["pod"], *self._authorised("mongorestore", "--archive", "--gzip", "--drop"), source=incoming, what="mongorestore failed")
        counts = self._ask_live()["counts"]
        if any(counts.get(name) != number for name, number in wanted.items()):
            raise Failure("the live database has other documents than the copy says")
        return kept

    # .. how it is asked

    def _authorised(self, *words: str) -> list[str]:
        return ["env", f"PASSWORD_FILE={self.about['password_file']}", "sh", "-c", self.WITH_PASSWORD, "sh", self.about["username"], *words, *self.about["options"]]

    def _dump(self, target: Path) -> dict[str, int]:
        with open(target, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            words = self._authorised("mongodump", "--archive", "--gzip", f"--db={self.about['database']}")
            said = self._exec(self.about["pod"], *words, out=file, what="mongodump failed")
        found = re.findall(r"done dumping " + re.escape(self.about["database"]) + r"\.(\S+) \((\d+) documents?\)", said)
        return {name: int(number) for name, number in found}

    def _ask_live(self) -> dict[str, Any]:
        reader = f"require('fs').readFileSync({json.dumps(self.about['password_file'])}, 'utf8').trim()"
        url = f"'mongodb://' + encodeURIComponent({json.dumps(self.about['username'])}) + ':' + encodeURIComponent({reader}) + '@127.0.0.1:27017/?authSource=admin{self.about['url_options']}'"
        found: dict[str, Any] = json.loads(self._mongosh(self.about["pod"], url))
        return found

    def _mongosh(self, pod: str, url: str) -> str:
        script = self.ASK % {"url": url, "database": json.dumps(self.about["database"])}
        answer = self.work / "answer"
        with answer.open("wb") as file:
            self._exec(pod, "mongosh", "--nodb", "--quiet", "--eval", script, out=file, what="the server does not answer")
        lines = [line for line in answer.read_text(errors="replace").splitlines() if line.startswith("{")]
        answer.unlink()
        if not lines:
            raise Failure(f"{self.where} says nothing of its collections")
        return lines[-1]

    @property
    def server(self) -> dict[str, Any]:
        return {
            "args": ["mongod", "--bind_ip", "127.0.0.1"],
            "readinessProbe": {"exec": {"command": ["mongosh", "--quiet", "--eval", "quit(db.adminCommand('ping').ok ? 0 : 1)"]}, "periodSeconds": 2, "timeoutSeconds": 10},
            "volumeMounts": [{"name": "data", "mountPath": "/data/db"}, {"name": "tmp", "mountPath": "/tmp"}],
        }  # fmt: skip


KINDS["mongodb"] = MongoDB
