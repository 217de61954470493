"""The first node's port, its clock, and the interface that ranks meet on, as a node sees them."""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import psutil

from trainer.distributed import interfaces
from trainer.distributed.interfaces import GLOO, NCCL

PATIENCE = 5.0  # seconds for a connection between two nodes, and for the answer


class Greeting(NamedTuple):
    """What the first node said.

    Attributes:
        ahead: seconds that this node's clock is ahead, at the least: what the way took is no fault.
        probe: whether a file of the first node is in the run's folder, locked there.
    """

    ahead: float
    probe: bool


@dataclass
class FirstNode:
    """Answers whoever comes to the job's port: this start's token, the clock, whether there is a probe.

    Used with `with`. The port is free again afterwards. Raises OSError where it is not.
    """

    port: int
    token: str
    probe: bool

    def __enter__(self) -> "FirstNode":
        self._server = listen(self.port)
        threading.Thread(target=self._answer, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread, which would keep the port
        self._server.close()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            with connection, suppress(OSError):
                connection.settimeout(1.0)
                words = {"token": self.token, "time": time.time(), "probe": self.probe}
                connection.sendall(f"{json.dumps(words)}\n".encode())
                connection.recv(1)  # the other side closes first, and keeps the port's last seconds


def listen(port: int) -> socket.socket:
    """A server on every address of this machine. Raises OSError: the port is taken."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def greeting_of(first: str, port: int, token: str) -> tuple[Greeting | None, str]:
    """What the first node answers at the job's port, or None and why it is not reached."""
    before = time.time()
    try:
        with socket.create_connection((first, port), timeout=PATIENCE) as connection:
            words = json.loads(connection.makefile().readline())
        after = time.time()
        if words["token"] != token:
            raise ValueError
    except OSError as error:
        why = error.strerror or str(error) or "no answer"
        return None, (
            f"{first} is not reached at port {port}, where ranks meet: {why}; a firewall, or the name leads "
            f"to another machine"
        )
    except (ValueError, KeyError, TypeError):
        return None, f"another program answers at port {port} of {first}, where ranks meet"
    middle, way = (before + after) / 2, (after - before) / 2
    difference = middle - words["time"]
    sure = max(0.0, abs(difference) - way)
    return Greeting(sure if difference > 0 else -sure, bool(words["probe"])), ""


def interface_fault(nccl: bool) -> str:
    """What is wrong with the interfaces that the environment names or the launch chooses; "" for nothing.

    nccl: whether NCCL will be used.
    """
    there, states = psutil.net_if_addrs(), psutil.net_if_stats()
    named = os.environ.get(GLOO)
    names = named.split(",") if named else []
    if not named and (name := interfaces.route_to_any(os.environ.get(interfaces.NODES, "").split())):
        names = [name]
    for name in names:
        setting = f"{GLOO}={named}" if named else f"{name} routes to the other nodes"
        if name not in there:
            return f"{setting}, and there is no interface {name}; there are {', '.join(there)}"
        internet = {address.family for address in there[name]} & {socket.AF_INET, socket.AF_INET6}
        if not internet or (name in states and not states[name].isup):
            return f"{setting}, and {name} {'is down' if internet else 'has no address'}"
    of_nccl = os.environ.get(NCCL) if nccl else None
    if of_nccl and not any(fits(of_nccl, name) for name in there):
        return f"{NCCL}={of_nccl}, and no interface is called so; there are {', '.join(there)}"
    return ""


def fits(setting: str, name: str) -> bool:
    """Whether NCCL_SOCKET_IFNAME names an interface: `^` excludes, `=` is a whole name, else a beginning."""
    excluding, setting = setting.startswith("^"), setting.removeprefix("^")
    whole, setting = setting.startswith("="), setting.removeprefix("=")
    parts = [part.partition(":")[0] for part in setting.split(",")]
    return excluding != any(name == part if whole else name.startswith(part) for part in parts)
