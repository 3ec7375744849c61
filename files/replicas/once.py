# ruff: noqa: F821 - names of the programs that come before this one
"""Run a job of a component once for its spec. Comes after container/engine.py, state.py and work.py."""


def main(values):
    outlive_the_caller()
    component = Component(values["component"])
    try:
        with locked(values["lock_seconds"]):
            run_job(component, values["job"], values["spec"], values["seconds"])
    except EngineError as error:
        say(f"{component.name}: {error}")
        sys.exit(1)
