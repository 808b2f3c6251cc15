"""Files of hidden states: whole or not there, and each says in its metadata what its states depend on."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokenstats.errors import StoreError, one_line


def said_of_states(path: Path) -> dict[str, str] | None:
    """The metadata of a file of states; None where there is none, or one that is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    except (FileNotFoundError, SafetensorError):
        return None


def write_states(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file of states, atomically. Raises StoreError, which says its size, where the disk refuses."""
    for leftover in path.parent.glob(f".writing-*-{path.name}"):  # of a killed run: they are large
        leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".writing-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), temporary, metadata=metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        size = sum(each.numel() * each.element_size() for each in tensors.values()) / 2**30
        raise StoreError(f"cannot write {path} ({size:.1f} GiB): {one_line(error, 120)}; free some space") from error
    except BaseException:  # interrupted
        temporary.unlink(missing_ok=True)
        raise
