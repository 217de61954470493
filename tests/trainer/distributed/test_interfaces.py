"""The interface that ranks of several nodes meet on."""

import platform

import psutil
import pytest

from data_pipelines.common.errors import UserError
from trainer.distributed import interfaces


def test_no_route_leads_to_this_machine_or_to_an_unknown_one():
    own = [a.address for addresses in psutil.net_if_addrs().values() for a in addresses if a.family == 2]
    assert own
    assert interfaces.route_to_any([*own, "127.0.1.1", platform.node(), "no.such.host.invalid"]) is None


def test_an_interface_that_is_not_there(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth77")
    with pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME=lo,eth77: .* has no interface eth77"):
        interfaces.choose()


@pytest.mark.parametrize(("local", "line"), [("2", ""), ("1", ", over eth5")])
def test_the_first_line_of_a_run_on_several_nodes_names_it(monkeypatch, local, line):
    settings = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": local}
    settings |= {"MASTER_ADDR": "n1", "MASTER_PORT": "1", "GLOO_SOCKET_IFNAME": "eth5"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert interfaces.chosen() == line


def test_what_is_set_stays_and_nccl_follows_the_route(monkeypatch):
    monkeypatch.setenv("JOB_NODES", "n1 n2")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setattr(interfaces, "route_to", lambda host: {"n1": None, "n2": "eth3"}[host])
    interfaces.choose()
    assert (interfaces.os.environ["GLOO_SOCKET_IFNAME"], interfaces.os.environ["NCCL_SOCKET_IFNAME"]) == (
        "eth3",
        "ib0",
    )
