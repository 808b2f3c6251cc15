"""Hundreds of small tamperings with a store: each reading command says so in one line, or answers exactly as before.

They are drawn from thousands. Another number without a word would be the worst of all bugs; a traceback or a hang is one, too.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspect_fixtures import copy_of_store

from tokenstats import Rule, Store, build_mask, compare
from tokenstats.errors import TokenstatsError
from tokenstats.inspect.audit.audit import audit
from tokenstats.inspect.histograms import measure
from tokenstats.inspect.preview import open_preview
from tokenstats.inspect.render.terminal_tokens import plain_sequence
from tokenstats.inspect.report import report
from tokenstats.inspect.tokens.sequence import choose_scoring, read_sequence
from tokenstats.masking.sweep import sweep
from tokenstats.store.parts import part_path
from tokenstats.training.rows import choose_mask, read_parts

MASKS = ("eksft", "dataset-wide", "random", "control")
FAMILIES = ("tokens", "stats/warm", *(f"masks/{name}" for name in MASKS))
MANIFESTS = (".", *FAMILIES[1:])
RULE = Rule(drop="top(entropy, 0.3) or kl > quantile(kl, 0.9)", protect="top(kl, 0.05)")


def built(store: Store, rule: Rule) -> object:
    try:
        return build_mask(store, rule, "new", replace=True).manifest.model_dump(exclude={"created"})
    finally:
        shutil.rmtree(store.path / "masks" / "new", ignore_errors=True)


def shown(store: Store, mask: str | None) -> list[str]:
    rows = np.cumsum([0, *(part.rows for part in store.manifest.parts)])[:-1]
    return [plain_sequence(read_sequence(store, int(row), mask=mask), details=True) for row in rows]


def learned(store: Store, mask: str | None) -> list[tuple[bytes, bytes]]:
    return [(part.ids.tobytes(), part.keep.tobytes()) for part in read_parts(store, choose_mask(store, mask))]


def previewed(store: Store) -> object:
    preview = open_preview(store, choose_scoring(store, None, None))
    outcome = preview.decide(RULE)
    view = preview.view(outcome, 20)
    return outcome.counts.dropped, outcome.counts.rescued, view.keep.tolist(), view.protected.tolist()


def counted(store: Store) -> object:
    store.masks.check_all_listed()
    found = measure(store, choose_scoring(store, None, None), list(store.masks))
    return found.joint.tobytes(), {name: counts.dropped.tobytes() for name, counts in found.masks.items()}


COMMANDS: dict[str, Callable[[Store], object]] = {
    "mask": lambda store: built(store, RULE),
    "control": lambda store: built(store, Rule(drop="random(0.5, seed=3)", budget="same as eksft")),
    "show": lambda store: shown(store, "dataset-wide"),
    "show plain": lambda store: shown(store, None),
    "audit": lambda store: asdict(audit(store, "control")),
    "audit plain": lambda store: asdict(audit(store)),
    "compare": lambda store: compare(store, "eksft", "random").to_dict(),
    "compare rules": lambda store: compare(store, "kl-only", "dataset-wide").to_dict(),
    "sweep": lambda store: asdict(sweep(store, {"drop": "top(entropy, f)"}, {"f": ["0.1", "0.4"]})),
    "train": lambda store: learned(store, "eksft"),
    "preview": previewed,
    "report": counted,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    own = copy_of_store(tmp_path_factory.mktemp("tampered"))
    build_mask(own, Rule(drop="random(0.5, seed=1)", budget="same as eksft"), "control")
    return own.path


@pytest.fixture(scope="module")
def untampered(store) -> dict[str, str]:
    return {name: repr(command(Store(store))) for name, command in COMMANDS.items()}


def answers(path: Path) -> Iterator[tuple[str, str | TokenstatsError]]:
    """What each command says: its answer, or the error; anything else that is raised is a bug."""
    for name, command in COMMANDS.items():
        began = time.monotonic()
        try:
            yield name, repr(command(Store(path)))
        except TokenstatsError as error:
            yield name, error
        assert time.monotonic() - began < 60, f"{name} takes as good as for ever"


SAID = ("'name': 'intact_parts', 'verdict': 'problem'", "'name': 'mask_is_current', 'verdict': 'warning'")
"""How an audit tells that bytes were changed, or that a mask was made from another one than is there."""


def check(store: Path, untampered: dict[str, str], what: str) -> int:
    """How many commands refused; the others answered as before, or (the audit) named what was changed."""
    refused = 0
    for name, answer in answers(store):
        if isinstance(answer, TokenstatsError):
            assert "\n" not in str(answer)
            assert len(str(answer)) < 1500
            refused += 1
        elif answer != untampered[name]:
            assert name.startswith("audit"), f"{name} gives another answer without a word: {what}"
            assert any(word in answer for word in SAID), what
            refused += 1
    return refused


def tampered(path: Path, content: bytes | None, store: Path, untampered: dict[str, str], what: str) -> int:
    """Put other bytes, or none, in a file's place; check; put it back."""
    before = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        return check(store, untampered, what)
    finally:
        path.write_bytes(before)


def leaves(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Where every value of a manifest is; of a list the first and the last."""
    inside = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, child in inside if isinstance(value, dict) else dict(inside[:1] + inside[-1:]).items():
        yield (*place, key)
        yield from leaves(child, (*place, key))


def edits(value: Any) -> list[Any]:
    match value:
        case bool():
            return [not value, 7]
        case int() | float():
            return [value + 1, 0, -1, 10**30, 10**400 if isinstance(value, int) else 1e308, str(value), None]
        case str():
            return [value + "x", "", "../../x", 3, None]
        case list():
            return [value[:-1], value + value[:1], value[::-1], {}, None]
        case dict():
            return [{}, {**value, "x": "y"}, dict(list(value.items())[1:]), []]
    return [1, "x"]


def edited_manifests(text: str) -> Iterator[tuple[str, dict]]:
    manifest = json.loads(text)
    for place in leaves(manifest):
        for number in range(8):
            copy = json.loads(text)
            holder = copy
            for key in place[:-1]:
                holder = holder[key]
            choices = edits(holder[place[-1]])
            if number < len(choices):
                holder[place[-1]] = choices[number]
            elif number == 7 and isinstance(holder, dict):
                del holder[place[-1]]
            else:
                continue
            if copy != manifest:
                yield f"{'.'.join(map(str, place))}: {number}", copy


def few(all_of_them: Iterator[Any] | list[Any], count: int, seed: object) -> list[Any]:
    listed = list(all_of_them)
    return random.Random(str(seed)).sample(listed, min(count, len(listed)))


@pytest.mark.parametrize("family", MANIFESTS)
def test_an_edited_manifest_is_refused(store, untampered, family):
    path = store / family / "manifest.json"
    changes = few((c for c in edited_manifests(path.read_text()) if c[0].split(":")[0] != "checksum"), 8, family)
    for what, manifest in changes:
        refused = tampered(path, json.dumps(manifest).encode(), store, untampered, f"{family}: {what}")
        assert refused > 0, f"{family}: {what} was believed"


@pytest.mark.thorough
@pytest.mark.parametrize("family", MANIFESTS)
def test_an_edited_manifest_of_an_earlier_version_breaks_nothing(store, untampered, family):
    """Without a checksum not every edit can be seen: but there is never a traceback, and never a hang."""
    path = store / family / "manifest.json"
    before = path.read_text()
    manifest = json.loads(before)
    del manifest["checksum"]
    try:
        for _, changed in few(edited_manifests(json.dumps(manifest)), 8, family):
            path.write_text(json.dumps(changed))
            assert all(answers(store))
    finally:
        path.write_text(before)


@pytest.mark.thorough
@pytest.mark.parametrize("family", MANIFESTS)
def test_a_manifest_with_other_bytes_or_none(store, untampered, family):
    path = store / family / "manifest.json"
    content, rng = path.read_bytes(), random.Random(family)
    for _ in range(2):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        tampered(path, bytes(flipped), store, untampered, f"{family}: a byte")
    for what in (None, b"", content[: len(content) // 2], b"[]", b"null", b"[" * 100_000, b"\xff" + content):
        assert tampered(path, what, store, untampered, f"{family}: {what!r:.20}") > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_with_other_bytes_or_none(store, untampered, family):
    rng = random.Random(family)
    for index in (0, 1):
        path = part_path(store / family, index)
        content = path.read_bytes()
        for _ in range(2):
            flipped = bytearray(content)
            flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            assert tampered(path, bytes(flipped), store, untampered, f"{path}: a byte") > 0
        for what in (None, b"", content[:100], content + b"x"):
            assert tampered(path, what, store, untampered, f"{path}: {what!r:.20}") > 0


def test_files_in_each_others_place(store, untampered):
    of_masks = [part_path(store / family, 0) for family in FAMILIES[2:]]
    within = [(part_path(store / family, 0), part_path(store / family, 2)) for family in FAMILIES]
    across = list(pairwise(of_masks))
    manifests = [
        (store / "masks" / one / "manifest.json", store / "masks" / two / "manifest.json")
        for one, two in (MASKS[:2], MASKS[2:])
    ]
    for one, two in [*within, *across, *manifests]:
        for _ in ("there", "and back"):
            kept = one.read_bytes()
            os.replace(two, one)
            two.write_bytes(kept)
            if _ == "there":
                assert check(store, untampered, f"{one} and {two}") > 0


def test_the_tokenizer_that_reads_the_store_is_the_one_that_wrote_it(store, untampered):
    path = store / "tokenizer" / "tokenizer.json"
    content = path.read_bytes()
    other = content.replace(b'"apples"', b'"apple!"').replace(b"apples", b"apple!")
    for what in (other if other != content else content.replace(b"e", b"f", 50), content[:-100], None):
        assert tampered(path, what, store, untampered, "tokenizer") > 0


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_a_report_leaves_nothing_out_without_a_word(store, tmp_path, family):
    path = store / family / "manifest.json"
    before = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(TokenstatsError, match=r"no manifest\.json|has no manifest|is missing"):
            report(Store(store), tmp_path / "out")
        assert not list(tmp_path.iterdir())
    finally:
        path.write_bytes(before)
