# ruff: noqa: F821 - sent to a host behind engine.py, as one program
"""The fact: what is to be done about one container, as one line of JSON. Comes after engine.py and compare.py."""


def look(values, answer):
    name = values["container"]
    if values["spec"] is None:
        current, leftovers = find(name)
        answer["repair"] = [f"leftover {one}" for one in [*leftovers, *half_written(name)]]
    else:
        current, answer["anew"], answer["repair"] = compare(values)
    answer["environment_hash"] = environment_file(name)
    answer["has_file"] = os.path.exists(env_path(name))
    if current:
        answer["id"] = current["Id"]
        answer["spec_hash"] = label_of(current, "hostwright.spec")


def main(values):
    answer_fact(values, look)
