# ruff: noqa: F821 - sent to a host behind engine.py and project.py, as one program
"""The fact: what is to be done about one Compose project, as one line of JSON."""


def look(values, answer):
    project = values["project"]
    state = read_state(project)
    answer["version"] = compose_version()
    answer["sha256"] = state.get("sha256", "")
    answer["profiles"] = state.get("profiles", [])
    answer["file_sha256"] = sha256_of(place(project, "compose.yaml"))
    answer["files"] = mounted_files(project)
    services, _ = members(project)
    answer["running"] = sorted(name for name, those in services.items() if any(is_running(one) for one in those))
    answer["volumes"] = named("volumes", project)
    answer["anew"], answer["repair"] = compare(project, state, values["pull"])


def main(values):
    answer_fact(values, look)
