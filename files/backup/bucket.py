# ruff: noqa: F821 - a part of the backup program: operations.backup puts it into backup.py, whose names it uses

import random
import tempfile

# --- kind bucket: one bucket of an S3 server ---------------------------------------------------------------------------


class Bucket(Directory):
    """
    The objects of one S3 bucket, mirrored by rclone, which compares checksums as it goes.

    The mirror stays on the host between two copies, so that only what changed is fetched again. A drill holds every
    object against its recorded sha256, and some of them against the bucket itself.
    """

    MAY_BE_EMPTY = True
    SAMPLES = 20
    TRIES = 3

    @property
    def where(self) -> str:
        return f"bucket {self.source.bucket['bucket']} at {self.source.bucket['endpoint']}"

    @property
    def mirror(self) -> Path:
        # beside the place of work, which is cleared after every command
        return self.work.parent.parent / "mirror" / self.source.name

    def size(self) -> int:
        found = json.loads(self._rclone("size", "--json", self._remote()))
        if not found["count"]:
            raise Empty(f"{self.where} holds no object")
        have = sum(entry.lstat().st_size for entry in self._entries(self.mirror)) if self.mirror.is_dir() else 0
        return max(0, int(found["bytes"]) - have)

    def copy(self, stage: Path) -> None:
        data = stage / "data"
        if self.mirror.is_dir():
            # what a kill in between costs is that everything is fetched anew
            os.rename(self.mirror, data)
        data.mkdir(exist_ok=True)
        for left in range(self.TRIES - 1, -1, -1):
            began = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._rclone("sync", "--use-server-modtime", "--delete-during", self._remote(), str(data))
            try:
                # objects that came while we copied are the next copy's
                self._rclone(
                    "check", "--one-way", "--use-server-modtime", f"--min-age={began}", self._remote(), str(data)
                )
                return
            except Failure as failure:
                if not left:
                    raise Failure(f"the mirror differs from the bucket: {failure}") from None

    def done(self, stage: Path) -> None:
        data = stage / "data"
        if data.is_dir():
            self.mirror.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.mirror, ignore_errors=True)
            os.rename(data, self.mirror)

    def inspect(self, directory: Path) -> Content:
        data = directory / "data"
        if not data.is_dir():
            raise Failure("it holds no objects")
        digest, size, objects = hashlib.sha256(), 0, 0
        for entry in self._entries(data):
            if entry.is_file():
                digest.update(
                    f"{entry.relative_to(data)}\0{_file_digest(entry)}\n".encode(errors="surrogateescape")
                )
                size, objects = size + entry.stat().st_size, objects + 1
        return Content(size, digest.hexdigest(), {"objects": objects})

    def compare(self, directory: Path) -> str:
        """Compare some objects of a copy with the bucket; those that changed since cannot be compared."""
        data, taken = directory / "data", Manifest.parse((directory / MANIFEST).read_text()).taken
        listed = json.loads(
            self._rclone("lsjson", "--recursive", "--files-only", "--use-server-modtime", "--no-mimetype", self._remote())
        )
        same = [
            entry for entry in listed
            if moment(re.sub(r"(\.\d{6})\d*", r"\1", entry["ModTime"])) < moment(taken)
        ]  # fmt: skip
        chosen = random.sample(same, min(self.SAMPLES, len(same)))
        for entry in chosen:
            here = data / entry["Path"]
            if not here.is_file():
                raise Failure(f"object {entry['Path']} is older than the copy and is not in it")
            with tempfile.TemporaryDirectory(dir=self.work) as scratch:
                self._rclone("copyto", f"{self._remote()}/{entry['Path']}", f"{scratch}/object")
                if _file_digest(Path(scratch, "object")) != _file_digest(here):
                    raise Failure(f"object {entry['Path']} is another one in the bucket, and older than the copy")
        return f"{len(chosen)} of {len(listed)} objects of the bucket have the copy's sha256"

    def prepare(self, directory: Path) -> Path:
        self._target = self.options.get("into") or self.source.bucket["bucket"]
        found = self._rclone("lsf", "--max-depth=1", self._remote(self._target), missing=True)
        if found.strip() and not self.options.get("replace"):
            raise Failure(
                f"bucket {self._target} is not empty and nothing was changed: restore into a new one (--into NAME), "
                "or --replace to make it exactly what the copy holds; what is newer is lost then"
            )
        return directory / "data"

    def exchange(self, incoming: Path, stamp: str) -> list[str]:
        target = self._remote(self._target)
        self._rclone("mkdir", target)
        # never deletes unless it was told to replace
        self._rclone("sync" if self.options.get("replace") else "copy", "--checksum", str(incoming), target)
        self._rclone("check", "--one-way", str(incoming), target)
        tell(f"the objects are in bucket {self._target}")
        return []

    def ready(self) -> None:
        self._rclone("lsf", "--max-depth=1", self._remote())

    def _remote(self, bucket: str = "") -> str:
        return f"source:{bucket or self.source.bucket['bucket']}"

    def _rclone(self, *words: str, missing: bool = False) -> str:
        about = self.source.bucket
        options = {
            "TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "false", "ENDPOINT": about["endpoint"],
            "REGION": about["region"], "ACCESS_KEY_ID": self.secrets.get("SOURCE_ACCESS_KEY", ""),
            "SECRET_ACCESS_KEY": self.secrets.get("SOURCE_SECRET_KEY", ""), "FORCE_PATH_STYLE": "true",
        }  # fmt: skip
        env = {
            "PATH": os.defpath, "HOME": "/nonexistent", "RCLONE_CONFIG": "/nonexistent", "RCLONE_FAST_LIST": "true",
            "RCLONE_CACHE_DIR": str(self.work), "RCLONE_RETRIES_SLEEP": "2s", "RCLONE_STATS": "0",
            **{f"RCLONE_CONFIG_SOURCE_{key}": value for key, value in options.items()},
        }  # fmt: skip
        ended = execute(["rclone", *words], self.deadline, env=env, cwd=Path("/"))
        if ended.status and missing and re.search("directory not found|NoSuchBucket", ended.err):
            return ""
        if ended.status:
            lines = [line for line in ended.err.splitlines() if line.strip() and "config file" not in line.lower()]
            text = " / ".join(re.sub(r"^[\d/]+ [\d:]+ ", "", line) for line in lines[-3:])
            for secret in self.secrets.values():
                text = text.replace(secret, "***") if secret else text
            raise Failure(f"rclone {words[0]}: {text}")
        return ended.out


KINDS["bucket"] = Bucket
