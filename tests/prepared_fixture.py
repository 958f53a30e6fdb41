# SPDX-License-Identifier: Apache-2.0
"""Work for the processes of `mtr_tf.data.parts`, in a module that imports little."""

from __future__ import annotations

import time

import numpy as np

from mtr_tf.errors import InputError


def square(job: dict) -> dict[str, np.ndarray]:
    """Logs the call, then returns arrays; fails if the job says so."""
    with open(job["log"], "a") as log:
        log.write(f"{job['value']}\n")
    time.sleep(job.get("sleep", 0))
    if job.get("fail") == "input":
        raise InputError(f"'{job['value']}.png' is broken")
    if job.get("fail") == "bug":
        raise ZeroDivisionError
    return {"squared": np.array([job["value"] ** 2]), "value": np.array(job["value"])}
