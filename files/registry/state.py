"""Which account a host has at a registry, and whether the registry takes it. Reads only; prints one line of JSON."""

import os


def main(values: dict) -> None:
    registry = values["registry"]
    login = account(registry)  # noqa: F821
    try:
        mode = f"{os.stat(CONFIGURATION).st_mode & 0o777:04o}"  # noqa: F821
    except OSError:
        mode = ""
    try:
        with open(values["ca_file"], encoding="utf-8") as file:
            ca = file.read()
    except OSError:
        ca = ""
    print(  # noqa: T201 - what a fact says
        json.dumps(  # noqa: F821
            {
                "salt": values["salt"],
                "registered": is_registered(registry),  # noqa: F821
                "sealed": seal(login, values["salt"]) if login else "",  # noqa: F821
                "verdict": verdict(registry, login) if login else "",  # noqa: F821
                "mode": mode,
                "ca_sha256": hashlib.sha256(ca.encode()).hexdigest() if ca else "",  # noqa: F821
            }
        )
    )
