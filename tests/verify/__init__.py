"""Checks that only read, the same for production and for the lab (docs/verify.md).

fleet.py     the hosts of a pyinfra inventory with their settings, and how to reach them
evidence.py  everything the checks of one host need, read by one command
test_*.py    what must hold; each states its expectation from the settings, none of them repeats a value
"""
