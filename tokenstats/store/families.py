"""The scorings and masks of a store, by name."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from tokenstats.errors import InputError, NotThere, StoreError, argument, nearest, one_line
from tokenstats.shown import Shown
from tokenstats.store.drafts import name_of
from tokenstats.store.manifests import MANIFEST, MaskManifest, ScoringManifest

if TYPE_CHECKING:
    from tokenstats.store.store import Store

TOKENS, STATS, MASKS = "tokens", "stats", "masks"

Kind = TypeVar("Kind", ScoringManifest, MaskManifest)  # a family's manifest


def check_name(name: str, what: str) -> str:
    """A scoring's or mask's name, safe as a folder name; InputError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or ".." in name:
        raise InputError(
            f"{what} name {one_line(name, 80)!r} cannot be used: expected 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit"
        )
    return name


@dataclass(frozen=True)
class Family(Shown, Generic[Kind]):
    """A finished scoring or mask.

    Attributes:
        store: The store that it lies in.
        name: Its name there.
        folder: ``stats/NAME`` or ``masks/NAME``: how :meth:`Store.part` calls it.
        manifest: What it was made from, and what it holds.
    """

    store: "Store" = field(repr=False)
    name: str
    folder: str
    manifest: Kind = field(repr=False)


Scoring = Family[ScoringManifest]
Mask = Family[MaskManifest]


class Families(Mapping[str, Family[Kind]]):
    """The finished scorings or masks of a store, by name, as they are now."""

    def __init__(self, store: "Store", kind: str, what: str, manifest: type[Kind]):
        self._store, self._kind, self._what = store, kind, what
        self._manifest: type[Kind] = manifest

    def __getitem__(self, name: str) -> Family[Kind]:
        folder = f"{self._kind}/{check_name(name, self._what)}"
        if not self._store.has(folder):
            self.check_all_listed()
            known, store = list(self), self._store.path
            raise NotThere(f"no {self._what} {name!r} in {store}{nearest(name, known)}; it holds: {', '.join(known) or 'none'}")
        return Family(self._store, name, folder, self._store.looked_up(folder, self._manifest))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        return iter(_finished(self._store.path / self._kind))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"{self._what}s of {self._store.path}: {', '.join(self) or 'none'}"

    def choose(self, name: str | None = None) -> Family[Kind]:
        """The named one, or the only one. Raises StoreError where it is not there or the choice is not clear."""
        if name is not None:
            return self[name]
        self.check_all_listed()
        known = list(self)
        if not known:
            raise StoreError(f"{self._store.path} holds no {self._what} yet")
        if len(known) > 1:
            raise StoreError(
                f"{self._store.path} holds several {self._what}s ({', '.join(known)}): choose one with {argument(self._what)}"
            )
        return self[known[0]]

    def check_all_listed(self) -> None:
        """Raise StoreError where one has all of its parts, but no manifest.

        Whoever takes what is there, instead of what is named, would leave it out without a word. One with fewer parts is being
        made, or its run was killed: it is not there yet.
        """
        folders = (p for p in (self._store.path / self._kind).glob("[!.]*") if p.is_dir() and p.name not in self)
        for folder in sorted(folders):
            if len(list(folder.glob("part-*.parquet"))) >= self._store.part_count:
                raise StoreError(
                    f"{folder} has all of its parts, but no {MANIFEST}: it was removed, or its run has not ended; "
                    "run the command that made it again, or remove the folder"
                )


def _finished(folder: Path) -> list[str]:
    names = {name_of(p.parent) for p in folder.glob(f"*/{MANIFEST}")} if folder.is_dir() else set()
    return sorted(name for name in names if not name.startswith("."))  # a dot: being made
