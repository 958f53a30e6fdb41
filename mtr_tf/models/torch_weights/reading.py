# SPDX-License-Identifier: Apache-2.0
"""Reading PyTorch's files of weights without running code in them."""

from __future__ import annotations

import os
import pathlib
import pickle
import re
import zipfile
from typing import Any

import numpy as np

from mtr_tf import files
from mtr_tf.errors import InputError

try:
    import torch
except ImportError:  # It is an extra: pip install torch.
    torch: Any = None


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict, as float32 or integer arrays, by name.

    Takes what `torch.save` wrote of a state dict, plain or under the key `state_dict`
    of a checkpoint. `module.`, which DataParallel puts before names, is taken off.
    Only tensors and plain values are read: code in the file is never run.

    Raises:
      InputError: There is no such file; torch is missing, or too old to be safe; the
        file is damaged, would fill the memory, holds code, or holds no tensors; a
        tensor is not finite, or not dense.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"--torch must be a file written by torch.save; got {path!s}.")
    _check_torch()
    try:
        _check_intact(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputError(
            f"{path} holds more than tensors and plain "
            f"values{f' ({match[1]})' if match else ''}. Reading it could run code, "
            "so it is refused. If you trust it, save only its weights: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], "
            "NEW_FILE)."
        ) from error
    except Exception as error:  # torch raises nearly every kind on a damaged file.
        detail = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{path} cannot be read as a file written by torch.save "
            f"({type(error).__name__}: {detail[0][:150]}); copy or save it again."
        ) from error
    return _arrays(content, path)


def _check_torch() -> None:
    if torch is None:
        raise InputError(
            "reading PyTorch's files needs torch, which is not installed: "
            "pip install torch."
        )
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise InputError(
            f"torch must be 2.6 or newer, but this is {torch.__version__}: with older "
            "versions a file can run code even if only weights are read "
            "(CVE-2025-32434). Install a newer one."
        )


def _check_intact(path: str | pathlib.Path) -> None:
    """Raises `InputError` unless checksums hold, and the content fits into memory.

    torch does not check them. Files from before its version 1.6 have none.
    """
    files.check_unpacked(path)
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        member = archive.testzip()
    if member:
        raise InputError(
            f"{path} is damaged: the checksum of {member} in it is wrong; copy it "
            "again."
        )


def _arrays(content: Any, path: str | pathlib.Path) -> dict[str, np.ndarray]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"{path} must hold a state dict (names and tensors), or one under the key "
            f"'state_dict'; it holds {type(content).__name__}."
        )
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"{path} must hold a state dict (names and tensors), or one under the "
                f"key 'state_dict'; {name!r} is {type(value).__name__}."
            )
        _check_dense(value, name, path)
    _check_elements(content, path)
    arrays = {}
    for name, value in content.items():
        value = value.detach()
        array = (value.float() if value.is_floating_point() else value).numpy()
        if not np.isfinite(array).all():
            raise InputError(f"{path} holds NaN or infinity in {name}; it is damaged.")
        key = re.sub(r"^(module\.)+", "", str(name))
        if key in arrays:
            raise InputError(
                f"{path} has two tensors for {key}, with and without 'module.' before "
                "the name; drop one of them."
            )
        arrays[key] = array
    return arrays


def _check_dense(value: Any, name: str, path: str | pathlib.Path) -> None:
    """Raises `InputError` unless a tensor's numbers are real and all in memory."""
    kinds = {
        "nested": value.is_nested,
        "without values, of the device meta": value.is_meta,
        "sparse": value.layout != torch.strided,
        "quantised": value.is_quantized,
        "complex": value.is_complex(),
    }
    for kind, applies in kinds.items():
        if applies:
            raise InputError(
                f"{path} must hold dense tensors of real numbers, but {name} is "
                f"{kind}; save the weights without that."
            )


def _check_elements(tensors: dict[str, Any], path: str | pathlib.Path) -> None:
    """Raises `InputError` if tensors have more numbers than the file has bytes.

    Expanded tensors may be larger than any memory.
    """
    count, size = sum(t.numel() for t in tensors.values()), os.path.getsize(path)
    if count > size:
        largest = max(tensors, key=lambda name: tensors[name].numel())
        raise InputError(
            f"{path} must hold every number of its tensors, but they have {count:,} "
            f"numbers and the file has only {size:,} bytes: some tensors are expanded "
            f"or share numbers (the largest is {largest}); save each one with "
            ".clone()."
        )
