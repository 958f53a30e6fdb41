# SPDX-License-Identifier: Apache-2.0
"""Workers meet before TensorFlow joins them."""

from __future__ import annotations

import concurrent.futures
import socket
import time

import pytest

from mtr_tf.errors import InputError
from mtr_tf.runs import rendezvous
from mtr_tf.runs.cluster import Cluster

SECONDS = 60


@pytest.fixture
def addresses() -> tuple[str, ...]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return tuple(f"127.0.0.1:{port}" for port in ports)


def meeting(addresses, facts=({}, {}, {}), order=(0, 1, 2)) -> list:
    """None or the error of each worker, where workers come in this `order`."""

    def come(index):
        time.sleep(0.1 * order.index(index))
        try:
            cluster = Cluster(addresses, index, "TF_CONFIG")
            return rendezvous.meet(cluster, facts[index])
        except InputError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(facts)) as pool:
        return list(pool.map(come, range(len(facts)), timeout=SECONDS))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_go_on_when_the_last_has_come_and_leave_their_ports(addresses, order):
    assert meeting(addresses, order=order) == [None] * 3
    for address in addresses:
        port = int(address.split(":")[1])
        socket.create_server(("127.0.0.1", port)).close()


def test_who_is_none_of_them_is_sent_away(addresses):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        chief = pool.submit(rendezvous.meet, Cluster(addresses[:2], 0, "TF_CONFIG"), {})
        place = ("127.0.0.1", int(addresses[0].split(":")[1]))
        for request in (b"GET / HTTP/1.1\n", b"[1]\n", b'{"index": 7}\n', b""):
            deadline = time.monotonic() + SECONDS
            while True:
                try:
                    stranger = socket.create_connection(place, SECONDS)
                    break
                except OSError:  # It does not listen yet.
                    assert time.monotonic() < deadline
            with stranger:
                stranger.sendall(request)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""
        assert not chief.done()
        rendezvous.meet(Cluster(addresses[:2], 1, "TF_CONFIG"), {})
        assert chief.result(SECONDS) is None


def test_what_differs_is_told_to_all(addresses):
    facts = [{"replicas": 2}, {"replicas": 2}, {"replicas": 1}]
    for message in meeting(addresses, facts):
        assert (
            f"worker 2 ({addresses[2]}) differs: replicas are 1 there and 2 at"
            in message
        )


def test_a_port_that_is_taken_is_told_to_all(addresses):
    with socket.create_server(("127.0.0.1", int(addresses[1].split(":")[1]))):
        chief_error, port_error, other_error = meeting(addresses)
    assert port_error.startswith(
        f"worker 1 must have the address {addresses[1]} for itself"
    )
    assert chief_error == other_error == f"worker 1 ({addresses[1]}) says: {port_error}"


def test_what_many_have_said_is_long(addresses):
    """Each sends the addresses of all, so the chief's answer grows as their square."""
    facts = [{"addresses": "a" * 600_000}] * 2
    assert meeting(addresses[:2], facts) == [None] * 2


@pytest.mark.parametrize("address", ["host", "host:port"])
def test_addresses_have_ports(address):
    with pytest.raises(InputError, match=f"must be HOST:PORT, got '{address}'"):
        rendezvous.meet(Cluster((address, "b:1"), 0, "TF_CONFIG"), {})
