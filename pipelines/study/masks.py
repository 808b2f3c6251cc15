"""Masks of the arms: presets of tokenstats, and controls that no rule says, since they look at another mask or at labels.

A maker takes the rows and the name of the mask, and stores it. Masks that have EKSFT's budget need that mask to be there.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipelines.labels import Label
from tokenstats import Rule, Store, build_mask
from tokenstats.schema import mask_schema
from tokenstats.store.drafts import draft_of, put_in_place
from tokenstats.store.manifests import Clause, MaskManifest, now
from tokenstats.store.parts import digest_of, part_path, write_part

WARM, EKSFT_MASK = "warm", "eksft"


@dataclass(frozen=True)
class Rows:
    """The SFT rows of a run: a store of one part with its scoring :data:`WARM`, and what each target token is.

    Attributes:
        store: its rows are single-turn chats, so that the targets of each follow one another, the end of turn last.
        labels: [row][target token], as the generator has them.
        seed: of what is drawn at random.
    """

    store: Store
    labels: list[list[Label]]
    seed: int

    @cached_property
    def offsets(self) -> np.ndarray:
        """[R + 1] where each row's target tokens begin in an array of them all."""
        return np.concatenate([[0], np.cumsum([len(row) for row in self.labels])])

    @cached_property
    def label(self) -> np.ndarray:
        """[N] the label of each target token."""
        return np.concatenate([np.array(row, np.int8) for row in self.labels])

    @cached_property
    def nll(self) -> np.ndarray:
        """[N] −log p of each target token under the warm-up, nats."""
        return -self.of_targets(f"stats/{WARM}", "logprob")

    def of_targets(self, family: str, column: str) -> np.ndarray:
        """[N] a column of the store at its target tokens. Raises ValueError where these are not the labelled ones."""
        if self.store.part_count != 1:
            raise ValueError(f"{self.store.path} has {self.store.part_count} parts; expected one")
        is_target = _flat(self.store.part("tokens", 0, ["is_target"])["is_target"])
        if int(is_target.sum()) != int(self.offsets[-1]):
            raise ValueError(f"{self.store.path} has {is_target.sum()} targets, but {self.offsets[-1]} tokens have labels")
        return _flat(self.store.part(family, 0, [column])[column])[is_target]

    def dropped(self, mask: str) -> np.ndarray:
        """[N] the target tokens that a mask leaves out."""
        return ~self.of_targets(f"masks/{mask}", "keep")

    def each(self) -> Iterator[slice]:
        return (slice(int(start), int(stop)) for start, stop in zip(self.offsets, self.offsets[1:], strict=False))


Maker = Callable[[Rows, str], str]


def preset(name: str) -> Maker:
    """A preset of tokenstats, with the warm-up's statistics."""

    def make(rows: Rows, mask: str) -> str:
        build_mask(rows.store, Rule.load(name), mask, scoring=WARM)
        return mask

    return make


def random_tokens(rows: Rows, mask: str) -> str:
    """In each row as many tokens as EKSFT leaves out, drawn among those that it might have left out."""
    rule = Rule.load("random")
    drawn = replace(rule, drop=f"random(0.2, seed={rows.seed}, per=sequence)", budget=f"same as {EKSFT_MASK}", preset=None)
    build_mask(rows.store, drawn, mask)
    return mask


def random_runs(rows: Rows, mask: str) -> str:
    """The runs of tokens that EKSFT leaves out of a row, in another order and elsewhere in it."""
    random, like = np.random.default_rng(rows.seed), rows.dropped(EKSFT_MASK)
    dropped = np.zeros_like(like)
    for row in rows.each():
        dropped[row.start : row.stop - 1] = moved_runs(like[row.start : row.stop - 1], random)
    return store_mask(rows, mask, dropped, f"the runs of {EKSFT_MASK} moved at random, seed {rows.seed}")


def highest_loss(rows: Rows, mask: str) -> str:
    """In each row as many tokens as EKSFT leaves out: those of the highest −log p; never the end of turn."""
    like, dropped = rows.dropped(EKSFT_MASK), np.zeros(len(rows.label), bool)
    for row in rows.each():
        order = np.argsort(-rows.nll[row.start : row.stop - 1], kind="stable")
        dropped[row.start + order[: int(like[row].sum())]] = True
    return store_mask(rows, mask, dropped, f"the highest nll of each row, as many as {EKSFT_MASK}")


def oracle(rows: Rows, mask: str) -> str:
    """What the generator labels as style or noise."""
    return store_mask(rows, mask, np.isin(rows.label, (Label.STYLE, Label.NOISE)), "labelled style or noise")


def moved_runs(dropped: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A row [T] with the same runs of True in random order and places, every arrangement of them as likely.

    The kept tokens leave gaps between, before and after them; as many gaps as there are runs are drawn, one run to each.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], dropped, [False]])))
    lengths = random.permutation(edges[1::2] - edges[::2])
    kept = len(dropped) - int(lengths.sum())
    gaps = np.sort(random.choice(kept + 1, len(lengths), replace=False))
    moved = np.zeros(len(dropped), bool)
    for place, (gap, length) in enumerate(zip(gaps, lengths, strict=True)):
        start = gap + int(lengths[:place].sum())
        moved[start : start + length] = True
    return moved


def store_mask(rows: Rows, name: str, dropped: np.ndarray, words: str) -> str:
    """Store a mask [N] over the target tokens that no rule makes; ``words`` say in its manifest what it is."""
    table = rows.store.part("tokens", 0, ["seq_id", "is_target"])
    lists = table["is_target"].combine_chunks()
    is_target = _flat(table["is_target"])
    keep, reason = is_target.copy(), np.zeros(len(is_target), np.uint16)
    keep[is_target] = ~dropped
    reason[is_target] = dropped
    keep[lists.offsets.to_numpy()[:-1]] = False
    columns = [pa.ListArray.from_arrays(lists.offsets, pa.array(values)) for values in (keep, reason)]
    family = rows.store.path / "masks" / name
    digest = hashlib.blake2b(words.encode() + dropped.tobytes(), digest_size=16).hexdigest()
    with draft_of(family) as draft:
        write_part(draft, 0, pa.table([table["seq_id"].combine_chunks(), *columns], schema=mask_schema(False)), {})
        part = rows.store.manifest.parts[0].model_copy(update={"digest": digest_of(part_path(draft, 0))})
        kept_per_row = np.add.reduceat(~dropped, rows.offsets[:-1])
        MaskManifest(
            created=now(),
            parts=(part,),
            fingerprint=digest,
            store_fingerprint=rows.store.fingerprint,
            rule={"description": words},
            rule_fingerprint=digest,
            scorings={},
            thresholds={},
            clauses=(Clause(text=words, dropped=int(dropped.sum())),),
            targets=len(dropped),
            kept=int((~dropped).sum()),
            protected=0,
            rows_with_nothing_kept=int((kept_per_row == 0).sum()),
        ).write(draft)
        put_in_place(draft, family)
    rows.store.forget(f"masks/{name}")
    return name


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
