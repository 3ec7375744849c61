"""What holds for all unit tests."""

from hypothesis import settings

# The gate decides the same way every time, however busy the machine is. To search on: pytest --hypothesis-profile default
settings.register_profile("gate", deadline=None, derandomize=True)
settings.load_profile("gate")
