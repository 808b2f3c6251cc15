"""Rows of a store with what is learned from them. Reads ids, targets and a mask; loads no torch.

Which tokens are learned: those that the mask keeps, or, without a mask, all targets (plain fine-tuning). Token 0 of a
sequence never is: nothing predicts it. A mask may also weigh what it keeps; a token of weight 0 is not learned.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tokenstats.alignment import predicted
from tokenstats.errors import InputError, StoreError
from tokenstats.mixing import mixed
from tokenstats.store import Store
from tokenstats.store.families import MASKS, STATS, TOKENS
from tokenstats.store.lists import flat, offsets_of
from tokenstats.store.manifests import MANIFEST, TOKENIZER, MaskManifest

IGNORED = -100
"""The label of a token that is not learned: what cross_entropy and every trainer of the field leave out."""

OWN = (TOKENS, STATS, MASKS, TOKENIZER)
"""Folders of a store that hold its own parts."""

PLAIN = "none"
"""The mask name that means no mask."""


@dataclass(frozen=True)
class ChosenMask:
    """A mask of a store, or none: plain fine-tuning on all targets."""

    name: str | None
    manifest: MaskManifest | None

    @property
    def title(self) -> str:
        """How it is called in what is printed."""
        return self.name or "none: all target tokens"

    @property
    def weighted(self) -> bool:
        """Does the mask weigh its tokens?"""
        return self.manifest is not None and self.manifest.weighted


def choose_mask(store: Store, name: str | None) -> ChosenMask:
    """The mask called ``name``; None and "none" are plain fine-tuning. Raises StoreError where it is not the store's."""
    if name is None or name == PLAIN:
        return ChosenMask(None, None)
    return ChosenMask(name, store.masks[name].manifest)


def check_writable(folder: Path) -> None:
    """Raise InputError where a folder could not be made, or would lie among the parts of a store."""
    for above in folder.absolute().parents:
        if (above / MANIFEST).is_file() and (above / TOKENS).is_dir() and folder.absolute().relative_to(above).parts[0] in OWN:
            raise InputError(f"{folder} lies inside the store {above}, among its own parts; choose another folder")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{folder} cannot be made: {parent} is not a folder that can be written to; choose another place")


@dataclass(frozen=True)
class LearnedPart:
    """One part of a store: R rows of N tokens in all; row i is tokens ``offsets[i]`` to ``offsets[i + 1]``.

    Attributes:
        seq_ids: [R].
        ids: [N] int32.
        offsets: [R + 1] int64.
        is_target: [N] boolean.
        keep: [N] boolean, only where is_target.
        weight: [N] float32, finite, at least 0, and 0 where not kept; None where the mask does not weigh.
    """

    seq_ids: pa.ChunkedArray
    ids: np.ndarray
    offsets: np.ndarray
    is_target: np.ndarray
    keep: np.ndarray
    weight: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """[R] tokens of each row."""
        return np.diff(self.offsets)

    @property
    def learned(self) -> np.ndarray:
        """[N] boolean: kept, and not with weight 0."""
        return self.keep if self.weight is None else self.weight > 0

    @property
    def has_learned(self) -> np.ndarray:
        """[R] boolean: rows with something to learn."""
        return self.rows_with(self.learned)

    def rows_with(self, flags: np.ndarray) -> np.ndarray:
        """[R] boolean: rows of which any token's flag [N] is set."""
        return np.diff(np.concatenate([[0], np.cumsum(flags)])[self.offsets]) > 0


def read_parts(store: Store, mask: ChosenMask, with_weights: bool = True) -> Iterator[LearnedPart]:
    """Yield the store part by part, without the weights of a mask that weighs if so asked.

    What is read here leaves the store, in weights or in files: first every byte is held against its digest. Raises
    StoreError where one differs, where the mask keeps what is no target, or holds a weight that is none.
    """
    store.verify("tokens", *([f"masks/{mask.name}"] if mask.name is not None else []))
    columns = {"tokens": ["seq_id", "input_ids", "is_target"]}
    family = f"masks/{mask.name}"
    weighted = mask.weighted and with_weights
    if mask.name is not None:
        columns[family] = ["keep", "weight"] if weighted else ["keep"]
    for index, tables in enumerate(store.aligned(columns)):
        tokens = tables["tokens"]
        offsets = offsets_of(tokens["input_ids"])
        is_target = predicted(flat(tokens["is_target"]), offsets)
        keep, weight = is_target, None
        if mask.name is not None:
            where = f"{store.path / family}, part {index}"
            keep = flat(tables[family]["keep"])
            if bool((keep & ~is_target).any()):
                raise _broken(where, "keeps tokens that are no targets of its rows")
            if weighted:
                weight = _weights(tables[family], keep, where)
        yield LearnedPart(tokens["seq_id"], flat(tokens["input_ids"]), offsets, is_target, keep, weight)


def _weights(mask: pa.Table, keep: np.ndarray, where: str) -> np.ndarray:
    weight = flat(mask["weight"])
    kept = weight[keep]
    if not bool((np.isfinite(kept) & (kept >= 0)).all()):  # a null reads as NaN
        raise _broken(where, "holds a weight that is no finite number of at least 0")
    return np.where(keep, weight, np.float32(0))


def _broken(where: str, how: str) -> StoreError:
    return StoreError(f"{where} {how}; delete the mask and make it again")


def row_keys(store: Store) -> np.ndarray:
    """[rows] uint64: a number for each row of the store that depends on its seq_id alone."""
    keys = [
        _key(seq_id)
        for index in range(store.part_count)
        for seq_id in store.part("tokens", index, ["seq_id"])["seq_id"].to_pylist()
    ]
    return np.array(keys, np.uint64)


def shuffled(keys: np.ndarray, *salt: object) -> np.ndarray:
    """An order of rows that depends on their keys and the salt alone: common rows of two sets come in the same order."""
    return np.argsort(mixed(keys ^ np.uint64(_key(repr(salt)))), kind="stable")


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
