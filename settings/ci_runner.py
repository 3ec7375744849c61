"""Settings of hosts that run CI jobs (`ci_runner_…`): hosts of the group `ci_runner`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from settings.errors import Fault, broken
from settings.fields import Calendar, Line, Many, Network, Size, matching
from settings.requirements import Requirements
from settings.secret import Secret
from settings.section import Section, rule

DOWNLOAD = "https://github.com/actions/runner/releases/download/v{version}/actions-runner-linux-{architecture}-{version}.tar.gz"
ARCHITECTURES = {"x64": "x86_64", "arm64": "aarch64"}
"""The runner's words for architectures, with the kernel's."""

RENDER = "render"
"""The label of hosts that render: their images are for amd64 alone."""

_AUTOMATIC = frozenset({"self-hosted", "linux", "x64", "arm64"})


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(?::[0-9]{1,5})?/[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)?", value):
        raise broken("must be the URL of a repository or an organisation, such as 'https://github.com/team/shop'")
    return value


def _template(value: str) -> str:
    if not re.fullmatch(r"(?:https?|file)://[^\s'\"\\]+", value):
        raise broken("must be a URL, with {version} and {architecture} where they stand in it")
    try:
        value.format(version="1", architecture="x64")
    except (KeyError, IndexError, ValueError):
        raise broken("must have no other braces than {version} and {architecture}") from None
    return value


def _sums(value: dict[str, str]) -> dict[str, str]:
    for architecture, digest in value.items():
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise broken(f"must have 64 hex digits for {architecture}")
    return value


def _token(value: Secret) -> Secret:
    if value.resolved and (re.search(r"\s", value.unmask()) or len(value.unmask()) < 16):
        raise broken("must be a token: 16 characters or more, no blanks", show=False)
    return value


Token = Annotated[Secret, AfterValidator(_token)]
Label = Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "must be a label of letters, digits, '.', '_' and '-'")]


class CiRunner(Section):
    """Self-hosted runners of GitHub Actions. A host of the group `ci_runner` has no other system: a job is somebody's program."""

    prefix: ClassVar[str] = "ci_runner_"

    url: Annotated[str, AfterValidator(_url)] = Field(
        description="repository or organisation that the runners work for", examples=["https://github.com/team/shop"]
    )
    api_url: Annotated[str, matching(r"(?:https?://[^\s'\"\\]+[^/\s'\"\\])?", "must be a URL without a slash at its end")] = Field(
        "", description="the API; empty means GitHub's, or /api/v3 of an own server"
    )
    access_token: Token = Field(
        default_factory=Secret.unset,
        description="token that may register runners (`Administration: write` of the repository, or `Self-hosted runners: write` of the "
        "organisation); on the host only root reads it. Required for ephemeral runners, which register anew for each job",
        examples=["env:CI_RUNNER_ACCESS_TOKEN"],
    )
    registration_token: Token = Field(
        default_factory=Secret.unset,
        description="for long-lived runners instead: a registration token, which is good for one hour and leaves no right to register on the host",
    )
    version: Annotated[str, matching(r"[0-9]+\.[0-9]+\.[0-9]+", "must be a version such as '2.320.0'")] = Field(
        description="version of the runner", examples=["2.320.0"]
    )
    sha256: Annotated[dict[Literal["x64", "arm64"], str], AfterValidator(_sums)] = Field(
        description="SHA-256 of its archive, by architecture: `x64`, `arm64`", examples=[{"x64": "0" * 64}]
    )
    download_url: Annotated[str, AfterValidator(_template)] = Field(DOWNLOAD, description="where the archive is, or a mirror of it")

    count: Annotated[int, Field(ge=0, le=32)] = Field(1, description="runners on the host, each with a user of its own; 0 unregisters them all")
    ephemeral: bool = Field(True, description="a runner takes one job, is cleaned and registers anew; False keeps it, with what jobs leave behind")
    labels: Many[Label] = Field(
        (), description=f"further labels; those of the system and architecture come by themselves. `{RENDER}` is for amd64 hosts"
    )
    group: Line = Field("", description="runner group of the organisation; empty means its default")
    docker: bool = Field(
        False, description="jobs may use the host's Docker engine: that is root on the host, so give it to trusted repositories alone"
    )
    docker_keep_hours: Annotated[int, Field(ge=1, le=8760)] = Field(
        24, description="what jobs left in Docker goes when it is older: images, networks, build cache, containers, those that run as well while no runner has a job"
    )
    public_repository: bool = Field(
        False, description="the repository is public: refused unless ephemeral and without Docker, since anyone can send a job by a pull request"
    )

    memory_max: Size = Field("4G", description="memory of one runner with its job")
    cpu_percent: Annotated[int, Field(ge=10, le=6400)] = Field(200, description="CPU of one runner, 100 is one core")
    tasks_max: Annotated[int, Field(ge=64, le=65536)] = Field(4096, description="processes and threads of one runner")
    denied_networks: Many[Network] = Field(
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"),
        description="networks that a job cannot reach: private ones, where production is, and the cloud's address for a machine's credentials",
    )
    allowed_networks: Many[Network] = Field(
        (), description="networks among them that it can, such as a resolver's or a registry's", examples=[["10.0.0.53/32"]]
    )
    stop_seconds: Annotated[int, Field(ge=1, le=86400)] = Field(300, description="time that a job has to end when its runner is stopped")

    cache_enabled: bool = Field(True, description="keep what pip, npm and the tool cache have downloaded from job to job, by runner")
    cache_keep_days: Annotated[int, Field(ge=1, le=365)] = Field(14, description="a cached file not read for so long is removed")
    cleanup_at: Calendar = Field("03:40", description="when caches and left-overs are cleaned")

    @property
    def api(self) -> str:
        """The API's URL."""
        if self.api_url:
            return self.api_url
        scheme, _, rest = self.url.partition("://")
        server = rest.partition("/")[0]
        return "https://api.github.com" if server == "github.com" else f"{scheme}://{server}/api/v3"

    @property
    def scope(self) -> str:
        """What the API calls the place that the runners belong to."""
        path = self.url.partition("://")[2].partition("/")[2]
        return f"repos/{path}" if "/" in path else f"orgs/{path}"

    def needs(self) -> Requirements:
        """Return what the host must have: a known architecture with a pinned archive, memory, disk for jobs."""
        wanted = tuple(kernel for name, kernel in ARCHITECTURES.items() if name in self.sha256)
        if RENDER in self.labels:
            wanted = tuple(kernel for kernel in wanted if kernel == "x86_64")
        return Requirements(architectures=wanted, memory_mb=1024, disk_var_mb=4096, python=(3, 9))

    @rule
    def _it_can_register(self) -> Iterator[Fault]:
        if self.ephemeral and not self.access_token:
            yield Fault(
                "access_token", "is required for ephemeral runners, which register anew for each job",
                hint="write ci_runner_access_token = 'env:CI_RUNNER_ACCESS_TOKEN', or ci_runner_ephemeral = False",
            )  # fmt: skip
        if not self.ephemeral and bool(self.access_token) == bool(self.registration_token):
            yield Fault("access_token", "must be given, or ci_runner_registration_token, and not both")
        if self.ephemeral and self.registration_token:
            yield Fault("registration_token", "must be empty for ephemeral runners: it is good for one hour")

    @rule
    def _strangers_are_kept_out(self) -> Iterator[Fault]:
        if self.public_repository and not self.ephemeral:
            yield Fault("ephemeral", "must be True for a public repository: a job would find what another left", False)
        if self.public_repository and self.docker:
            yield Fault("docker", "must be False for a public repository: anyone could be root here by a pull request", True)

    @rule
    def _it_is_alone(self) -> Iterator[Fault]:
        others = sorted(group for group in self._groups if re.match(r"(?:gateway|mcbench|cricksy|codeclashers|liap|archive|k3s)(?:_|$)", group))
        if others:
            yield Fault("url", f"must not be on a host of {', '.join(others)}: a job would be beside production's secrets", hint="give it a host of its own")

    @rule
    def _labels_are_true(self) -> Iterator[Fault]:
        for label in self.labels:
            if label.lower() in _AUTOMATIC:
                yield Fault("labels", f"must not have {label}: the runner adds it by itself", label)
        if RENDER in self.labels and "x64" not in self.sha256:
            yield Fault("sha256", f"must have x64 for the label {RENDER}", sorted(self.sha256))

    @rule
    def _allowed_is_denied(self) -> Iterator[Fault]:
        if self.allowed_networks and not self.denied_networks:
            yield Fault("allowed_networks", "must be empty when ci_runner_denied_networks is")
