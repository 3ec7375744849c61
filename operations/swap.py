"""A swap file: in use now and after every boot."""

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import OperationValueError, StringCommand, operation

from facts.swap import FSTAB, SwapFile
from operations import script

_MIB = 2**20


@operation()
def file(size_mb: int, path: str = "/swapfile") -> Generator[StringCommand, None, None]:
    """
    Have a swap file of this size.

    + size_mb: MiB; 0: no swap file, no line in /etc/fstab
    + path: absolute path, without spaces

    A new size is written beside the old file, which is switched off only then. In a container, whose swap is that of
    the machine outside, file and fstab are prepared and nothing is switched on.

    Raises ``OperationValueError`` for a bad size or path; fails, with the old file in use, when there is no room for
    the new one or when memory cannot take back what is swapped out.

    **Example:**

    .. code:: python

        swap.file(size_mb=2048, name="Have 2 GiB of swap")
    """
    if size_mb < 0:
        raise OperationValueError(f"swap.file: size_mb must be 0 or more, got {size_mb!r}")
    if not path.startswith("/") or any(letter.isspace() for letter in path):
        raise OperationValueError(f"swap.file: path must be absolute and without spaces, got {path!r}")

    line = f"{path} none swap sw 0 0"
    state = host.get_fact(SwapFile, path=path)
    wanted = size_mb > 0
    do_rebuild = wanted and (state.size != size_mb * _MIB or not state.signed)
    do_fstab = state.fstab != ((line,) if wanted else ())
    do_owner = wanted and state.owner != "root:600"
    do_switch_on = wanted and not state.active and not state.container
    do_remove = not wanted and (state.size is not None or state.active)
    if not (do_rebuild or do_fstab or do_owner or do_switch_on or do_remove):
        host.noop(
            "swap is prepared; a container cannot switch it on"
            if wanted and state.container
            else "swap is as wanted"
        )
        return
    yield script.run(
        "swap/apply.sh",
        path=path,
        size_mb=size_mb,
        fstab=FSTAB,
        line=line,
        rebuild=do_rebuild,
        active=state.active,
        container=state.container,
    )
