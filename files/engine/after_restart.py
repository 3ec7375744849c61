"""Requests go through the engine's ports again."""


def main(values: dict) -> None:
    lead_back()  # noqa: F821
