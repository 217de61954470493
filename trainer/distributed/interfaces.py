"""The network interface that ranks of several nodes meet on.

gloo listens by default where the machine's name leads. Debian and Ubuntu write `127.0.1.1 NAME` into
/etc/hosts, and the other nodes are then sent to an address of their own.
"""

import ipaddress
import os
import platform
import socket
from contextlib import closing, suppress

import psutil

from data_pipelines.common.errors import UserError
from trainer.distributed import variables

NODES = "JOB_NODES"  # the names of the job's nodes, with spaces between, exported by slurm/common.sh
GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
ANY_PORT = 9  # nothing is sent there


def choose() -> None:
    """Sets the interface of gloo and NCCL where the ranks are on several nodes; what is set already stays.

    It is the interface that routes to another node: one of JOB_NODES, or that of rank 0. NCCL chooses by
    itself where neither is known.

    Raises:
        UserError: GLOO_SOCKET_IFNAME names an interface that this node does not have.
    """
    if named := os.environ.get(GLOO):
        there = psutil.net_if_addrs()
        if absent := [name for name in named.split(",") if name not in there]:
            raise UserError(
                f"{GLOO}={named}: {platform.node()} has no interface {absent[0]}; expected one of "
                f"{', '.join(there)}, or unset it and the route to another node decides"
            )
    elif name := route_to_any((os.environ.get(NODES) or os.environ["MASTER_ADDR"]).split()):
        os.environ[GLOO] = name
        os.environ.setdefault(NCCL, f"={name}")  # `=`: this name, not all that begin so


def chosen() -> str:
    """The interface of a run on several nodes, for its first line; empty on one node."""
    if variables.world_size() == variables.local_world_size():
        return ""
    return f", over {os.environ.get(GLOO, 'the interface that the name of the machine leads to')}"


def route_to_any(hosts: list[str]) -> str | None:
    """The interface by which this machine reaches the first of the hosts that is another machine."""
    return next((name for host in hosts if (name := route_to(host))), None)


def route_to(host: str) -> str | None:
    """The interface by which this machine reaches a host; None for itself, and for an unknown one."""
    interfaces = {
        address.address.partition("%")[0]: name
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
    }
    with suppress(OSError):  # no such name, no route
        for family, kind, _, _, target in socket.getaddrinfo(host, ANY_PORT, type=socket.SOCK_DGRAM):
            address = str(target[0]).partition("%")[0]
            if address in interfaces or ipaddress.ip_address(address).is_loopback:
                continue
            with suppress(OSError), closing(socket.socket(family, kind)) as udp:
                udp.connect(target)  # asks for the route
                return interfaces.get(udp.getsockname()[0].partition("%")[0])
    return None
