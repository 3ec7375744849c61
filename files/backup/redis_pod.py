# ruff: noqa: F821 - a part of the backup program: operations.backup puts it into backup.py, whose names it uses

# --- kind redis_pod: a Redis in a pod of a Kubernetes cluster that this host's kubectl reaches -----------------------------


class RedisPod(InPod):
    """
    A Redis in a pod, which sends its data as it would to a replica: a consistent snapshot of one moment.

    What it holds is what redis-check-rdb reads in it; keys that expire by themselves are not counted, since they may be gone
    a moment later. A drill loads it into a pod of its own and counts there. In place the live server becomes, for a moment,
    the replica of a second one in its own container that has the copy: it takes the copy over as a whole or not at all, keeps
    its way of keeping data (a snapshot put beside an append-only log would be ignored), and is not started again.
    """

    CONTAINER = "redis"
    MAY_BE_EMPTY = True
    # redis-cli gets the password by its environment, in the container alone
    WITH_PASSWORD = 'REDISCLI_AUTH=$(cat "$0") exec redis-cli --no-auth-warning "$@"'
    # $0 is the password's file, $1 how many keys the copy has, $2 how long it may take; the copy comes over stdin
    TAKE_OVER = """set -eu
place=$(mktemp -d /data/.hostwright.XXXXXX); second=
live() { REDISCLI_AUTH=$(cat "$password") redis-cli --no-auth-warning "$@"; }
copy() { redis-cli -h 127.0.0.1 -p 6390 "$@"; }
about() { live INFO "$1" | tr -d '\\r' | sed -n "s/^$2://p"; }
password=$0
end() {
    live REPLICAOF NO ONE > /dev/null 2>&1 || :
    [ -z "$second" ] || kill -9 "$second" 2> /dev/null || :
    rm -rf "$place"
}
trap end EXIT
until=$(( $(date +%s) + $2 ))
wait_for() {
    until "$@"; do
        kill -0 "$second" 2> /dev/null || { echo "the copy cannot be loaded" >&2; exit 1; }
        [ "$(date +%s)" -lt "$until" ] || { echo "not done within time: $*" >&2; exit 1; }
        sleep 0.2
    done
}
loaded() { [ "$(copy PING 2> /dev/null)" = PONG ]; }
taken() { [ "$(about replication master_link_status)" = up ] && [ "$(about replication master_sync_in_progress)" = 0 ]; }
written() { [ "$(about persistence aof_rewrite_in_progress)" = 0 ] && [ "$(about persistence aof_rewrite_scheduled)" = 0 ]; }
rm -rf $(ls -d /data/.hostwright.?????? | grep -vxF "$place")
cat > "$place/dump.rdb"
redis-server --bind 127.0.0.1 --port 6390 --dir "$place" --dbfilename dump.rdb --appendonly no --save '' --repl-diskless-sync-delay 0 \\
    > "$place/log" 2>&1 < /dev/null &
second=$!
wait_for loaded
live REPLICAOF 127.0.0.1 6390 > /dev/null
wait_for taken
has=$(live INFO keyspace | tr -d '\\r' | sed -n 's/^db[0-9]*:keys=\\([0-9]*\\),expires=\\([0-9]*\\).*/\\1 \\2/p' | awk '{ n += $1 - $2 } END { print n + 0 }')
live REPLICAOF NO ONE > /dev/null
wait_for written
[ "$has" = "$1" ] || { echo "it has $has keys, the copy $1" >&2; exit 1; }
"""

    @property
    def where(self) -> str:
        return f"Redis in pod {self.about['pod']}"

    @property
    def about(self) -> dict[str, Any]:
        return self.source.redis_pod

    @property
    def server(self) -> dict[str, Any]:
        start = "until [ -e /data/whole ]; do sleep 0.2; done; exec redis-server --bind 127.0.0.1 --dir /data --dbfilename dump.rdb --appendonly no --save ''"
        return {"command": ["sh", "-c", start], "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}]}

    def size(self) -> int:
        return self._number(self._live("INFO", "memory"), "used_memory_dataset")

    def ready(self) -> None:
        self.size()

    def copy(self, stage: Path) -> None:
        self._dump(stage / "data")
        _sync(stage / "data")

    def inspect(self, directory: Path) -> Content:
        data = directory / "data"
        if not data.is_file():
            raise Failure("it holds no snapshot")
        with data.open("rb") as file:
            if file.read(5) != b"REDIS":
                raise Failure("it is no snapshot of Redis")
        said = self._answer(self.about["pod"], "redis-check-rdb", "/dev/stdin", source=data, what="the snapshot is damaged")
        found = {word: int(number) for number, word in re.findall(r"(\d+) (keys read|expires)\b", said)}
        if "RDB looks OK" not in said or "keys read" not in found:
            raise Failure("the snapshot is damaged")
        return Content(data.stat().st_size, _file_digest(data), {"keys": found["keys read"] - found.get("expires", 0)})

    def prove(self, directory: Path) -> Content:
        content = self.inspect(directory)
        with self._scratch_pod():
            self._exec(self.scratch, "sh", "-c", "cat > /data/dump.rdb && touch /data/whole", source=directory / "data", what="the snapshot was not taken")
            patience = Deadline(min(600, self.deadline.left()))
            while True:
                try:
                    # it answers that it is loading until it has the whole of it
                    if self._answer(self.scratch, "redis-cli", "PING").strip() == "PONG":
                        break
                except Failure:
                    pass
                if patience.left() == 0:
                    raise Failure("the snapshot is damaged: it was not loaded in time")
                time.sleep(1)
            keyspace = self._answer(self.scratch, "redis-cli", "INFO", "keyspace")
        return Content(content.size, content.sha256, {"keys": self._keys(keyspace)})

    def prepare(self, directory: Path) -> Path:
        if self.prove(directory).counts != Manifest.parse((directory / MANIFEST).read_text()).content.counts:
            raise Failure("what was loaded into a pod of its own has other keys than the copy says")
        self.ready()
        return directory / "data"

    def exchange(self, incoming: Path, stamp: str) -> list[str]:
        wanted = Manifest.parse((incoming.parent / MANIFEST).read_text()).content.counts["keys"]
        kept = []
        if self._live("INFO", "keyspace").count("keys="):
            aside = Path("/var/lib/hostwright/backup") / f"{self.source.name}.before-restore-{stamp}.rdb"
            self._dump(aside)
            kept.append(str(aside))
        patience = str(int(max(1.0, min(1800.0, self.deadline.left() - GRACE))))
        self._exec(self.about["pod"], "sh", "-c", self.TAKE_OVER, self.about["password_file"], str(wanted), patience, source=incoming, what="the copy was not taken over")
        return kept

    # .. how it is asked

    def _live(self, *words: str) -> str:
        return self._answer(self.about["pod"], *self._authorised(*words), what="the server does not answer")

    def _authorised(self, *words: str) -> list[str]:
        return ["sh", "-c", self.WITH_PASSWORD, self.about["password_file"], *words]

    def _answer(self, pod: str, *words: str, source: Path | None = None, what: str = "") -> str:
        answer = self.work / "answer"
        try:
            with answer.open("wb") as file:
                self._exec(pod, *words, source=source, out=file, what=what)
            return answer.read_text(errors="replace")
        finally:
            answer.unlink(missing_ok=True)

    def _dump(self, target: Path) -> None:
        with open(target, "x+b", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            self._exec(self.about["pod"], *self._authorised("--rdb", "-"), out=file, what="no snapshot")
            # what says to a replica that all was sent, which redis-cli takes from files alone
            file.seek(max(0, file.seek(0, os.SEEK_END) - 40))
            if re.fullmatch(rb"[0-9a-f]{40}", file.read()):
                file.seek(-40, os.SEEK_END)
                file.truncate()

    @staticmethod
    def _number(text: str, key: str) -> int:
        found = re.search(rf"^{key}:(\d+)", text, re.MULTILINE)
        if not found:
            raise Failure(f"the server says nothing of {key}")
        return int(found[1])

    @staticmethod
    def _keys(keyspace: str) -> int:
        return sum(int(keys) - int(expiring) for keys, expiring in re.findall(r"^db\d+:keys=(\d+),expires=(\d+)", keyspace, re.MULTILINE))


KINDS["redis_pod"] = RedisPod
