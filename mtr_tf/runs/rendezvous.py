# SPDX-License-Identifier: Apache-2.0
"""Where workers meet before TensorFlow joins them.

TensorFlow waits for the others deaf to any signal, and fails without a reason where
they differ. So each of them comes to the chief's port first, which TensorFlow takes
over as soon as all are there and alike.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from mtr_tf.errors import InputError
from mtr_tf.runs.cluster import Cluster

_AGAIN_SECONDS = 0.2
_PATIENCE_SECONDS = 10  # For a line of who has come.
_LONGEST = 2**20  # Bytes that one of them says.


def meet(cluster: Cluster, facts: Mapping[str, Any]) -> None:
    """Waits until all workers are there.

    Args:
      cluster: The workers.
      facts: What must be the same on all of them, {name: what JSON can say}.

    Raises:
      InputError: This worker's port is in use, or the workers differ.
    """
    mine = json.loads(json.dumps(facts))
    mistake = None
    try:
        listener = _listening(cluster)
    except InputError as error:
        if cluster.index == 0:  # The others cannot find it.
            raise
        mistake = error
    else:
        with listener:  # Of others than the chief only to see that it is free.
            if cluster.index == 0:
                return _check(cluster, _host(cluster, listener, mine))
    told = {"index": cluster.index, "mistake": mistake and str(mistake), "facts": mine}
    every = _come(cluster, json.dumps(told))
    if mistake:
        raise mistake
    return _check(cluster, every)


def _check(cluster: Cluster, every: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises `InputError`, the same on all, for what one of them has said."""
    for index, other in every.items():
        name = f"worker {index} ({cluster.addresses[int(index)]})"
        if other["mistake"]:
            raise InputError(f"{name} says: {other['mistake']}")
        theirs = other["facts"]
        changed = [
            f"{fact} are {theirs.get(fact)} there and {value} at the chief"
            for fact, value in every["0"]["facts"].items()
            if theirs.get(fact) != value
        ]
        if changed:
            raise InputError(
                "all workers must name the same addresses, have the same number of "
                f"replicas and speak by the same collectives, and {name} differs: "
                f"{'; '.join(changed)}. Give all of them the same {cluster.said_by}, "
                "--strategy and --replicas, or machines with as many GPUs."
            )


def _listening(cluster: Cluster) -> socket.socket:
    """Listens at this worker's own port, on all addresses of the machine."""
    place = cluster.addresses[cluster.index]
    options: dict[str, Any] = {}
    if socket.has_dualstack_ipv6():
        options = {"family": socket.AF_INET6, "dualstack_ipv6": True}
    try:
        return socket.create_server(("", _split(place)[1]), **options)
    except OSError as error:
        raise InputError(
            f"worker {cluster.index} must have the address {place} for itself, and its "
            f"port cannot be had ({error.strerror}); end what has it, or give another "
            f"port in {cluster.said_by}."
        ) from error


def _split(place: str) -> tuple[str, int]:
    """The host and the port of an address."""
    host, _, port = place.rpartition(":")
    try:
        return host.strip("[]"), int(port)
    except ValueError as error:
        raise InputError(
            f"the address of a worker must be HOST:PORT, got {place!r}."
        ) from error


def _host(
    cluster: Cluster, listener: socket.socket, mine: Mapping[str, Any]
) -> dict[str, Any]:
    """Takes in all others and tells each what all have said, {index: that}."""
    every: dict[str, Any] = {"0": {"mistake": None, "facts": mine}}
    with contextlib.ExitStack() as stack:
        connections: dict[str, socket.socket] = {}
        while len(connections) < len(cluster.addresses) - 1:
            connection = stack.enter_context(listener.accept()[0])
            said = _heard(connection)
            index = said.get("index") if said else None
            if index not in range(1, len(cluster.addresses)):
                connection.close()  # None of ours.
                continue
            connections[str(index)] = connection  # The newest, where one began again.
            every[str(index)] = said
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(every).encode() + b"\n")
    return every


def _come(cluster: Cluster, told: str) -> dict[str, Any]:
    """Goes to the chief, as often as it takes, and returns what all have said."""
    place = _split(cluster.addresses[0])
    while True:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(place, _PATIENCE_SECONDS)
            with connection:
                connection.sendall(told.encode() + b"\n")
                # All that hundreds of workers say is longer than what one does.
                said = _heard(connection, patience=None, longest=-1)
                if said:
                    return said
        time.sleep(_AGAIN_SECONDS)


def _heard(
    connection: socket.socket,
    patience: float | None = _PATIENCE_SECONDS,
    longest: int = _LONGEST,
) -> dict[str, Any] | None:
    """The one line that the other side says; None if it is none of ours."""
    connection.settimeout(patience)
    try:
        with connection.makefile("rb") as file:
            said = json.loads(file.readline(longest))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None
