# ruff: noqa: F821 - sent to a host behind engine.py, as one program
"""
Images that must be on the host: look which are not, or pull them. Comes after engine.py.

    values: images, platform, change (False: only name those that are missing or for another platform)
"""


def owed(values):
    want = values["platform"] or host_platform()
    here = inspect("image", values["images"])
    return [one for one in values["images"] if one not in here or not fits(image_platform(here[one]), want)]


def change(values):
    faults = []
    for image in owed(values):
        try:
            ensure_image(image, values["platform"])
        except EngineError as error:
            faults.append(str(error))
    if faults:
        fail("; ".join(faults))


def main(values):
    look_or_change(values, lambda: owed(values), lambda: change(values))
