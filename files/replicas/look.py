# ruff: noqa: F821 - names of the programs that come before this one
"""Print a component's replicas, and what they lack of what is wanted, for facts/replicas.py. Comes after state.py."""


def main(values):
    component = Component(values["component"])
    found = {
        "fault": "",
        "current": {},
        "previous": "",
        "stored": [],
        "jobs": component.jobs_done(),
        "containers": [],
        "to_do": [],
    }
    current = component.current()
    found["current"] = {key: current[key] for key in RECORDED if key in current}
    found["previous"] = component.previous()
    found["stored"] = component.releases()
    wanted = values["wanted"]
    if wanted is None and current:
        wanted = component.recorded(values["count"])
    try:
        found["containers"] = component.containers()
        if wanted is not None:
            found["to_do"] = reasons(component.needs(wanted, found["containers"]))
    except EngineError as error:
        found["fault"] = str(error)
        found["to_do"] = [found["fault"]]
    print(json.dumps(found))  # noqa: T201
