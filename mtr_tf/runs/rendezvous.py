# SPDX-License-Identifier: Apache-2.0
"""Lets workers meet before TensorFlow joins them.

While TensorFlow waits for the others it ignores signals, and if workers differ it fails
without a reason. So each worker first connects to the chief's port, which TensorFlow
takes over once all are there and have the same facts.
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

_RETRY_SECONDS = 0.2
_PATIENCE_SECONDS = 10  # For the line of a worker that has connected.
_MAX_BYTES = 2**20  # The most that one worker sends.


def meet(cluster: Cluster, facts: Mapping[str, Any]) -> None:
    """Waits until all workers are there.

    Args:
      cluster: The workers.
      facts: What must be the same on all workers, as {name: JSON value}.

    Raises:
      InputError: This worker's port is in use, or the workers differ.
    """
    json_facts = json.loads(json.dumps(facts))
    mistake = None
    try:
        listener = _open_listener(cluster)
    except InputError as error:
        if cluster.index == 0:  # The others cannot reach it.
            raise
        mistake = error
    else:
        with listener:  # The chief needs it; others only check their port.
            if cluster.index == 0:
                return _check_reports(
                    cluster, _collect_reports(cluster, listener, json_facts)
                )
    report = {
        "index": cluster.index,
        "mistake": mistake and str(mistake),
        "facts": json_facts,
    }
    reports = _send_report(cluster, json.dumps(report))
    if mistake:
        raise mistake
    return _check_reports(cluster, reports)


def _check_reports(cluster: Cluster, reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises `InputError`, the same on all workers, for mistakes and differences."""
    for index, report in reports.items():
        name = f"worker {index} ({cluster.addresses[int(index)]})"
        if report["mistake"]:
            raise InputError(f"{name} says: {report['mistake']}")
        its_facts = report["facts"]
        differences = [
            f"{fact} are {its_facts.get(fact)} there and {value} at the chief"
            for fact, value in reports["0"]["facts"].items()
            if its_facts.get(fact) != value
        ]
        if differences:
            raise InputError(
                "all workers must name the same addresses, have the same number of "
                f"replicas and speak by the same collectives, and {name} differs: "
                f"{'; '.join(differences)}. Give all of them the same "
                f"{cluster.said_by}, --strategy and --replicas, or machines with as "
                "many GPUs."
            )


def _open_listener(cluster: Cluster) -> socket.socket:
    """Listens on this worker's own port, at all addresses of the machine."""
    address = cluster.addresses[cluster.index]
    options: dict[str, Any] = {}
    if socket.has_dualstack_ipv6():
        options = {"family": socket.AF_INET6, "dualstack_ipv6": True}
    try:
        return socket.create_server(("", _split_address(address)[1]), **options)
    except OSError as error:
        raise InputError(
            f"worker {cluster.index} must have the address {address} for itself, and "
            f"its port cannot be had ({error.strerror}); end what has it, or give "
            f"another port in {cluster.said_by}."
        ) from error


def _split_address(address: str) -> tuple[str, int]:
    """The host and the port of an address."""
    host, _, port = address.rpartition(":")
    try:
        return host.strip("[]"), int(port)
    except ValueError as error:
        raise InputError(
            f"the address of a worker must be HOST:PORT, got {address!r}."
        ) from error


def _collect_reports(
    cluster: Cluster, listener: socket.socket, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Collects the reports of all workers and sends them to all; {index: report}."""
    reports: dict[str, Any] = {"0": {"mistake": None, "facts": facts}}
    with contextlib.ExitStack() as stack:
        connections: dict[str, socket.socket] = {}
        while len(connections) < len(cluster.addresses) - 1:
            connection = stack.enter_context(listener.accept()[0])
            report = _read_line(connection)
            index = report.get("index") if report else None
            if index not in range(1, len(cluster.addresses)):
                connection.close()  # Not one of our workers.
                continue
            connections[str(index)] = connection  # The newest, if one restarted.
            reports[str(index)] = report
        for connection in connections.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(reports).encode() + b"\n")
    return reports


def _send_report(cluster: Cluster, report: str) -> dict[str, Any]:
    """Sends a report to the chief, with retries; returns the reports of all."""
    address = _split_address(cluster.addresses[0])
    while True:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(address, _PATIENCE_SECONDS)
            with connection:
                connection.sendall(report.encode() + b"\n")
                # The reports of hundreds of workers are longer than one report.
                reports = _read_line(connection, patience=None, limit=-1)
                if reports:
                    return reports
        time.sleep(_RETRY_SECONDS)


def _read_line(
    connection: socket.socket,
    patience: float | None = _PATIENCE_SECONDS,
    limit: int = _MAX_BYTES,
) -> dict[str, Any] | None:
    """The JSON object in the line that the other side sends; None if there is none."""
    connection.settimeout(patience)
    try:
        with connection.makefile("rb") as file:
            message = json.loads(file.readline(limit))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
