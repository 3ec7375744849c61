# ruff: noqa: F821 - a part of the backup program: operations.backup puts it into backup.py, whose names it uses

# --- servers in a pod of a Kubernetes cluster that this host's kubectl reaches --------------------------------------------


class InPod(Kind):
    """
    A server in a pod: asked by programs in its container, so that its password stays there, and drilled into a pod of its own.

    A kind of it says ``about`` (what is declared), the name of its ``CONTAINER``, and the ``server`` of the scratch pod.
    """

    CONTAINER = ""

    @property
    def about(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def server(self) -> dict[str, Any]:
        """Return how the scratch pod runs its server: words, probe and mounts of the volumes ``data`` and ``tmp``."""
        raise NotImplementedError

    @property
    def scratch(self) -> str:
        return f"hostwright-backup-{self.source.name}-scratch"

    def _exec(self, pod: str, *words: str, source: Path | None = None, out: Any = None, what: str = "") -> str:
        """Run a program in the container; return what it said on stderr."""
        argv = [*self.about["kubectl"], "-n", self.about["namespace"], "exec", *(["-i"] if source else []), pod, "-c", self.CONTAINER, "--", *words]
        given = open(source, "rb") if source else subprocess.DEVNULL  # noqa: SIM115 - closed below
        log = self.work / "said"
        try:
            with log.open("wb") as told:
                process = subprocess.Popen(argv, stdin=given, stdout=out or subprocess.DEVNULL, stderr=told, start_new_session=True)
                try:
                    process.wait(self.deadline.left())
                except subprocess.TimeoutExpired:
                    _end_group(process)
                    raise Failure(f"{words[0]}: did not end within {self.deadline.seconds:.0f} s") from None
                except BaseException:
                    _end_group(process)
                    raise
            said = log.read_text(errors="replace")
        finally:
            if source:
                given.close()
            log.unlink(missing_ok=True)
        if process.returncode:
            raise Failure(f"{what}: {' / '.join(said.strip().splitlines()[-3:])[-400:]}")
        return said

    def _kubectl(self, *words: str, given: str = "") -> Ended:
        ended = subprocess.run(
            [*self.about["kubectl"], "-n", self.about["namespace"], *words], input=given, text=True, errors="replace", check=False,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=max(1.0, self.deadline.left()),
        )  # fmt: skip
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    @contextlib.contextmanager
    def _scratch_pod(self) -> Iterator[None]:
        """A server of its own, without password, that listens to itself alone and ends with the drill."""
        delete = ("delete", "pod", self.scratch, "--ignore-not-found", "--wait=true", "--grace-period=5")
        self._kubectl(*delete)
        pod = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.scratch, "labels": {"hostwright.io/scratch": "backup"}},
            "spec": {
                "restartPolicy": "Never", "automountServiceAccountToken": False, "enableServiceLinks": False,
                "activeDeadlineSeconds": int(self.source.timeout_seconds) + 60, "terminationGracePeriodSeconds": 5,
                "imagePullSecrets": [{"name": name} for name in self.about["pull_secrets"]],
                "securityContext": {"runAsNonRoot": True, "runAsUser": self.about["user"], "runAsGroup": self.about["user"], "fsGroup": self.about["user"],
                                    "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": self.CONTAINER, "image": self.about["image"], "env": [{"name": "HOME", "value": "/tmp"}],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}},
                    **self.server,
                }],
                "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
            },
        }  # fmt: skip
        try:
            made = self._kubectl("apply", "--server-side", "--field-manager=hostwright-backup", "-f", "-", given=json.dumps(pod))
            if made.status:
                raise Failure(f"no scratch pod: {made.err.strip()[-300:]}")
            up = self._kubectl("wait", "--for=condition=Ready", f"pod/{self.scratch}", f"--timeout={int(min(300, max(1, self.deadline.left())))}s")
            if up.status:
                raise Failure(f"the scratch pod does not come up: {up.err.strip()[-300:]}")
            yield
        finally:
            self._kubectl(*delete)
