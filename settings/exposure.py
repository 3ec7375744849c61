"""What a host lets in: the one source for its firewall and for the scan that proves it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from settings.fields import Line, Many, Model, Network, PortNumber


class Port(Model):
    """One port that is open on purpose.

    + sources: networks that may reach it; empty means anyone, over IPv4 and IPv6
    + why: shown in the firewall's rule and in reports
    """

    port: PortNumber
    proto: Literal["tcp", "udp"] = "tcp"
    sources: Many[Network] = ()
    why: Annotated[Line, Field(min_length=1)]


def in_order(ports: Iterable[Port]) -> tuple[Port, ...]:
    """Return the ports in numerical order, each once, and in the same order in every run.

    Two systems may open one port to the same networks, each with its own reason; whichever comes first gives the
    firewall's rule its words.
    """
    return tuple(sorted(set(ports), key=lambda port: (port.port, port.proto, port.sources, port.why)))
