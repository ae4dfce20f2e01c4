"""A process without a network, as on a compute node: a proof that needs none must not be able to use one."""

import sys
from typing import Any

LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")


class NetworkClosed(OSError):
    """Something tried to reach the network."""


def close_network(*allowed: str) -> None:
    """Refuse every look-up and connection of this process from now on; there is no way back.

    An audit hook sees what Python's sockets do whoever holds a reference to them. Sockets of the same machine's files
    (AF_UNIX) stay open.

    Args:
        allowed: Hosts that may be reached all the same, such as 127.0.0.1.
    """

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in LOOK_UPS:
            host = arguments[0]
        elif event in SENDS and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        else:
            return
        if host not in allowed:
            raise NetworkClosed(f"the network is closed, and {host} was to be reached")

    sys.addaudithook(refuse)
