"""Two hosts that a slow wire joins."""

import os
import subprocess
import sys
import time

import pytest

from train.bench import network
from train.bench.network import NoNetworkError, two_hosts
from train.bench.plan import Network

SERVER = """
import socket
with socket.create_server(("", 7070)) as server:
    print("listening", flush=True)
    server.settimeout(60)
    connection, _ = server.accept()
    while connection.recv(65536): pass
    print("done", flush=True)
"""
CLIENT = """
import socket, sys
socket.create_connection((sys.argv[1], 7070)).sendall(bytes(int(sys.argv[2])))
"""


def test_the_wire_is_as_slow_as_it_should_be():
    sent = 1_500_000
    try:
        with two_hosts(Network("40mbit")) as hosts:
            name = lambda index: ["ip", "netns", "exec", hosts.names[index], sys.executable, "-S", "-c"]
            with subprocess.Popen([*name(1), SERVER], stdout=subprocess.PIPE, text=True) as server:
                assert server.stdout.readline() == "listening\n"
                begun = time.monotonic()
                subprocess.run([*name(0), CLIENT, hosts.addresses[1], str(sent)], check=True, timeout=60)
                assert server.stdout.readline() == "done\n"
                took = time.monotonic() - begun
            # as wagma launch and mpirun reach the hosts
            command = hosts.command(["hostname"])
            assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == [
                hosts.names[0]
            ]
            reached = subprocess.run([hosts.agent, hosts.addresses[1], "hostname"], capture_output=True, text=True)
            assert reached.stdout.split() == [hosts.names[1]]
    except NoNetworkError as error:
        pytest.skip(str(error))
    assert took > 0.8 * 8 * (sent - 256 * 1024) / 40e6
    assert hosts.names[0] not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not hosts.agent.exists()


def test_how_a_run_is_started_there(tmp_path, monkeypatch):
    hosts = network.Hosts(("a", "b"), ("10.1.2.1", "10.1.2.2"), tmp_path / "agent")
    words = hosts.launch(5)
    assert words[:4] == ["--hosts", "10.1.2.1:3,10.1.2.2:2", "--interface", "10.1.2.0/24"]
    monkeypatch.setenv("OMPI_MCA_btl", "self,sm")  # would not reach the other host
    monkeypatch.setenv("OMPI_MCA_other", "kept")
    environment = hosts.environment()
    assert "OMPI_MCA_btl" not in environment
    assert environment["OMPI_MCA_other"] == "kept"
    assert environment["PRTE_MCA_plm_ssh_agent"] == str(tmp_path / "agent")
    assert hosts.command(["echo", "a b"])[-1].endswith("'echo '\"'\"'a b'\"'\"''")


def test_where_there_can_be_none(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(network.shutil, "which", lambda name: name)
    with pytest.raises(NoNetworkError, match="network namespaces need root"), two_hosts(Network("1mbit")):
        pass
    monkeypatch.setattr(network.shutil, "which", lambda name: None if name == "tc" else name)
    assert network.problem() == "tc missing: install iproute2 and util-linux"
