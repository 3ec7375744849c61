"""
Debian packages that a host must have.

pyinfra's ``apt.packages`` either fails on a host whose package lists are missing or old, or fetches them in every run.
Here they are fetched only when a package is missing.
"""

from collections.abc import Generator, Sequence

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.dpkg import InstalledPackages
from operations import script


@operation()
def packages(packages: Sequence[str], list_hours: int = 24) -> Generator[StringCommand, None, None]:
    """
    Install packages of the distribution, without their recommendations; installed ones are not upgraded.

    + packages: names
    + list_hours: package lists older than this (h) are fetched first; younger ones only when they do not know a package

    Waits up to 120 s for another apt or dpkg. Configuration files that were changed on the host stay as they are.

    **Example:**

    .. code:: python

        dpkg.packages(["nginx", "certbot"], name="Install nginx and certbot")
    """
    wanted = list(dict.fromkeys(packages))
    installed = host.get_fact(InstalledPackages, packages=wanted) if wanted else set()
    missing = [package for package in wanted if package not in installed]
    if not missing:
        host.noop("all packages are installed")
        return
    yield script.run("dpkg/install.sh", packages=" ".join(missing), list_hours=list_hours)
