# ruff: noqa: F821 - a part of the backup program: operations.backup puts it into backup.py, whose names it uses

# --- kind redis: one instance of Redis on this host -----------------------------------------------------------------------


class Redis(Kind):
    """
    The data of one instance of Redis, which it sends as it would to a replica: a consistent snapshot of one moment.

    A drill loads it into a server of its own and counts keys and the members of lists: a broker's queued tasks. In place it
    is restored as Redis itself writes it for its way of keeping data: with an append-only log, a snapshot that is only put
    there would be ignored, and the instance would begin empty.
    """

    # Members of all lists in one database; what expires by itself is not counted, since it may be gone a moment later.
    MEMBERS = (
        "local n, at = 0, '0' repeat local found = redis.call('SCAN', at, 'TYPE', 'list', 'COUNT', 1000) at = found[1] "
        "for _, key in ipairs(found[2]) do if redis.call('TTL', key) == -1 then n = n + redis.call('LLEN', key) end end "
        "until at == '0' return n"
    )

    @property
    def where(self) -> str:
        return f"instance {self.instance} of Redis"

    @property
    def instance(self) -> str:
        return str(self.source.redis["instance"])

    @property
    def socket(self) -> Path:
        return Path(f"/run/redis-{self.instance}/redis.sock")

    def size(self) -> int:
        # in memory it is larger than in a snapshot
        return int(self._info(self.socket, "memory", self.secrets)["used_memory_dataset"])

    def copy(self, stage: Path) -> None:
        self._cli(self.socket, "--rdb", str(stage / "data"), secrets=self.secrets)
        _sync(stage / "data")

    def inspect(self, directory: Path) -> Content:
        data = self._snapshot(directory)
        with self._scratch(data) as server:
            counts = self._counts(server)
        return Content(data.stat().st_size, _file_digest(data), counts)

    @staticmethod
    def _snapshot(directory: Path) -> Path:
        data = directory / "data"
        if not data.is_file():
            raise Failure("it holds no snapshot")
        with data.open("rb") as file:
            if file.read(5) != b"REDIS":
                raise Failure("it is no snapshot of Redis")
        return data

    def prepare(self, directory: Path) -> Path:
        incoming = self._waiting()
        shutil.rmtree(incoming, ignore_errors=True)
        wanted = Manifest.parse((directory / MANIFEST).read_text()).content.counts
        with self._scratch(self._snapshot(directory)) as server:
            self._cli(server, "CONFIG", "SET", "appendonly", "yes")
            while self._busy(server):
                if self.deadline.left() == 0:
                    raise Failure("the append-only log was not written in time")
                time.sleep(0.2)
            if self._counts(server) != wanted:
                raise Failure("what was loaded has other keys than the copy says")
            # with it goes what a start without a log would read, so that both ways of keeping data find it
            self._cli(server, "SAVE")
            shutil.copytree(server.parent, incoming, ignore=shutil.ignore_patterns("socket", "log"))
        os.rename(incoming / "data", incoming / "dump.rdb")
        account = pwd.getpwnam("redis")
        for path in (incoming, *incoming.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)
            path.chmod(0o700 if path.is_dir() else 0o600)
        return incoming

    def _busy(self, server: Path) -> bool:
        about = self._info(server, "persistence")
        return about["aof_rewrite_in_progress"] == "1" or about["aof_rewrite_scheduled"] == "1"

    def ready(self) -> None:
        self._info(self.socket, "memory", self.secrets)

    # .. how it is asked

    def _cli(self, server: Path, *words: str, secrets: Mapping[str, str] | None = None) -> str:
        env = {"PATH": os.defpath, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}
        if secrets:
            env["REDISCLI_AUTH"] = secrets["SOURCE_PASSWORD"]
        ended = execute(["redis-cli", "-s", str(server), "--no-auth-warning", *words], self.deadline, env=env)
        said = ended.out.strip()
        if ended.status or re.match(r"(\(error\) )?(ERR|NOAUTH|NOPERM|WRONGPASS|LOADING|MISCONF|AUTH failed|Could not connect)", said):
            raise Failure(f"redis-cli {words[0]}: {(said or ended.err.strip())[-300:]}")
        return said

    def _info(self, server: Path, section: str, secrets: Mapping[str, str] | None = None) -> dict[str, str]:
        lines = self._cli(server, "INFO", section, secrets=secrets).splitlines()
        found = dict(line.strip().split(":", 1) for line in lines if ":" in line)
        if not found:
            raise Failure(f"{self.where} says nothing of its {section}: {' '.join(lines)[-200:]}")
        return found

    def _counts(self, server: Path) -> dict[str, int]:
        counts = {"keys": 0, "list members": 0}
        for line in self._cli(server, "INFO", "keyspace").splitlines():
            if found := re.match(r"db(\d+):keys=(\d+),expires=(\d+)", line.strip()):
                number, keys, expiring = found.groups()
                counts["keys"] += int(keys) - int(expiring)
                counts["list members"] += int(self._cli(server, "-n", number, "EVAL", self.MEMBERS, "0").split()[-1])
        return counts

    @contextlib.contextmanager
    def _scratch(self, data: Path) -> Iterator[Path]:
        """A server of its own on a copy of the snapshot: no TCP, a socket in a directory that only it enters."""
        account = pwd.getpwnam("redis")
        identity = (account.pw_uid, account.pw_gid)
        place = self.work / "redis"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(mode=0o700)
        shutil.copyfile(data, place / "data")
        for path in (place, place / "data"):
            os.chown(path, *identity)
        log, socket = place / "log", place / "socket"
        with log.open("wb") as output:
            # its configuration on stdin: nothing of the host's is read
            server = subprocess.Popen(
                ["redis-server", "-", "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700", "--dir", str(place),
                 "--dbfilename", "data", "--appendonly", "no", "--save", "", "--daemonize", "no"],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=place, start_new_session=True,
                env={"PATH": os.defpath, "HOME": str(place)}, **_identity(identity),
            )  # fmt: skip
        try:
            patience = Deadline(min(600, self.deadline.left()))
            while True:
                try:
                    if self._cli(socket, "PING") == "PONG":
                        break
                except Failure:
                    pass
                if server.poll() is not None or patience.left() == 0:
                    lines = [line for line in log.read_text(errors="replace").splitlines() if "#" in line]
                    raise Failure(f"the snapshot is damaged: {' / '.join(lines[-3:])[-400:] or 'it cannot be loaded'}")
                time.sleep(0.1)
            yield socket
        finally:
            if server.poll() is None:
                server.kill()
                server.wait(GRACE)
            shutil.rmtree(place, ignore_errors=True)


KINDS["redis"] = Redis
