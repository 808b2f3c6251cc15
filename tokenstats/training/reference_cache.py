"""The reference's hidden states on disk: made once, read in every epoch.

    FOLDER/states-00000.safetensors …    keys [R] int64, offsets [R + 1] int64, states [n, H]

A file holds the states of some rows' chosen tokens, in their order; rows are found by their key, which comes from the seq_id
alone. H numbers a token in the reference's own type, not V. Each file is whole or not there, and says what it depends on: the
store, the reference, the tokens. A run that was killed goes on with the files that are missing.
"""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from tokenstats.errors import InputError, argument
from tokenstats.modeling.batches import Budget, PartTokens, run_batches
from tokenstats.modeling.head import SplitModel
from tokenstats.modeling.hidden_states import said_of_states, write_states
from tokenstats.modeling.positions import width_classes
from tokenstats.store.parts import describe_difference
from tokenstats.training.reference import ModelBeside
from tokenstats.training.selection import Batch

_log = logging.getLogger(__name__)
_BATCH_TOKENS = 8192
_FILE_TOKENS = 1 << 17
"""Chosen tokens of one file, about: 1 GiB at 4,096 numbers of two bytes."""


@dataclass(frozen=True)
class RowsToKeep:
    """R rows of N tokens in all, and of which tokens states are kept: as ``TokenRows`` has them."""

    keys: np.ndarray
    ids: np.ndarray
    offsets: np.ndarray
    chosen: np.ndarray

    @classmethod
    def joined(cls, parts: "Sequence[RowsToKeep]") -> "RowsToKeep":
        """The rows of all parts."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        keys, ids, chosen = (np.concatenate([getattr(p, name) for p in parts]) for name in ("keys", "ids", "chosen"))
        return cls(keys, ids, np.concatenate([[0], np.cumsum(lengths)]), chosen)

    @property
    def digest(self) -> str:
        """Of the rows, their tokens and the choice."""
        arrays = (self.keys, self.offsets, self.ids, self.chosen)
        return hashlib.blake2b(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays), digest_size=16).hexdigest()

    @property
    def chosen_starts(self) -> np.ndarray:
        """[R + 1] where each row begins among the chosen tokens."""
        return np.concatenate([[0], np.cumsum(self.chosen)])[self.offsets]

    def files(self) -> list["RowsToKeep"]:
        """Cut at whole rows into pieces of about as many chosen tokens."""
        number = self.chosen_starts[:-1] // _FILE_TOKENS
        cuts = np.flatnonzero(np.diff(number, prepend=-1, append=number[-1:] + 1))
        return [self._piece(*span) for span in pairwise(cuts.tolist())]

    def _piece(self, first: int, last: int) -> "RowsToKeep":
        tokens = slice(self.offsets[first], self.offsets[last])
        return RowsToKeep(
            self.keys[first:last], self.ids[tokens], self.offsets[first : last + 1] - self.offsets[first], self.chosen[tokens]
        )


class CachedStates:
    """A reference whose states lie on disk; its head is in memory."""

    def __init__(self, folder: Path, split: SplitModel, device: torch.device):
        self._split, self._device = split, device
        self._files = [safe_open(path, framework="pt") for path in _paths(folder)]
        self._where: dict[int, tuple[int, int, int]] = {}
        for number, file in enumerate(self._files):
            keys, offsets = (file.get_tensor(name).tolist() for name in ("keys", "offsets"))
            self._where |= {key: (number, start, stop) for key, start, stop in zip(keys, offsets, offsets[1:], strict=False)}
        self._states = [file.get_slice("states") for file in self._files]

    def states(self, batch: Batch, chosen: Tensor) -> Tensor:
        """See :class:`~tokenstats.training.reference.Reference`; the chosen tokens are those that the cache was made of."""
        found = []
        for key, count in zip(batch["key"].flatten().tolist(), chosen.sum(1).tolist(), strict=True):
            if count:
                number, start, stop = self._where[key]
                assert stop - start == count, "other tokens than the cache was made of"
                found.append(self._states[number][start:stop])
        return torch.cat(found).to(self._device)

    def logits(self, rows: Tensor) -> Tensor:
        """See :class:`~tokenstats.training.reference.Reference`."""
        return self._split.logits(rows)


def make_cache(
    folder: Path, split: SplitModel, rows: RowsToKeep, origin: dict[str, str], autocast: bool, rank: int, processes: int
) -> None:
    """Write the files that are not there yet, each process its share.

    Args:
        folder: Where they lie.
        split: The reference.
        rows: What to keep.
        origin: Fingerprints of the store and the reference.
        autocast: Compute in bfloat16, as the training will. The head then rounds states to bfloat16, and they are kept so.
        rank: Of this process among ``processes``.
        processes: How many there are: of n files each makes every n-th.

    Raises:
        InputError: The folder holds states of something else, or the model gives only whole logits.
        StoreError: The disk refuses.
    """
    if not split.is_split:
        raise InputError(
            f"the reference gives only full logits, too large to keep; train without {argument('reference_cache')}"
        )
    origin = {**origin, "tokens": rows.digest, "computed in": "bfloat16" if autocast else str(split.model.dtype)}
    _check_origin(folder, origin)
    files, make = rows.files(), _StatesOf(split, autocast)
    missing = [i for i in range(len(files)) if said_of_states(_path(folder, i)) is None]
    if missing and rank == 0:
        _say_room(folder, int(rows.chosen.sum()), make.bytes_per_token(rows), len(missing) / len(files))
    for index in missing:
        if index % processes == rank:
            piece = files[index]
            tensors = {
                "keys": torch.from_numpy(piece.keys.view(np.int64).copy()),
                "offsets": torch.from_numpy(piece.chosen_starts),
                "states": make.of(piece),
            }
            write_states(_path(folder, index), tensors, {**origin, "file": f"{index + 1} of {len(files)}"})


class _StatesOf:
    """Runs the reference over rows."""

    def __init__(self, split: SplitModel, autocast: bool):
        self._split, self._autocast = split, autocast
        self._device = next(split.model.parameters()).device

    def of(self, rows: RowsToKeep) -> Tensor:
        """[n, H] of the chosen tokens, in their order."""
        place, tokens = np.cumsum(rows.chosen) - 1, PartTokens(rows.ids, rows.chosen, rows.offsets)
        classes = partial(width_classes, self._split.model)
        where, states, _ = run_batches(
            tokens, self._run, self._device, Budget(_BATCH_TOKENS), classes, lambda real, padded: None
        )
        found = torch.cat(states)
        return torch.empty_like(found).index_copy_(0, torch.from_numpy(place[where]), found)

    def bytes_per_token(self, rows: RowsToKeep) -> int:
        """What a token's states take, from one of them."""
        one = self._run(torch.from_numpy(rows.ids[:2]).long()[None].to(self._device), torch.tensor([[False, True]]))
        return one.numel() * one.element_size()

    def _run(self, ids: Tensor, chosen: Tensor, _: object = None) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            states = ModelBeside(self._split).states({"input_ids": ids}, chosen).cpu()
        return states.bfloat16() if self._autocast else states


def _check_origin(folder: Path, origin: dict[str, str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{argument('reference_cache', str(folder))} is a file; expected a folder")
    for path in _paths(folder):
        found = said_of_states(path)
        if found is None:
            continue  # not whole: made again
        there: dict[str, Any] = {name: value for name, value in found.items() if name != "file"}
        if there != origin:
            raise InputError(
                f"{argument('reference_cache', str(folder))} holds states of something else: "
                f"{describe_difference(there, origin)}; choose another folder, or delete that one"
            )


def _say_room(folder: Path, tokens: int, bytes_per_token: int, share: float) -> None:
    """What the states will take, before any is made."""
    place = next(each for each in folder.absolute().parents if each.exists())
    _log.info(
        f"the reference's states of {tokens:,} tokens take {tokens * bytes_per_token:,} bytes in {folder}, {share:.0%} of them "
        f"still to be made; {shutil.disk_usage(place).free:,} bytes are free there"
    )


def _path(folder: Path, index: int) -> Path:
    return folder / f"states-{index:05d}.safetensors"


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("states-*.safetensors"))
