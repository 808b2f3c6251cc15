"""A rule: what to drop or what to keep, what the rest weighs, and where it comes from. Presets are rules in TOML files."""

import ast
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenstats.errors import InputError, RuleError, nearest, one_line
from tokenstats.masking.language.builtins import NUMBER, TOKEN_COLUMNS
from tokenstats.masking.language.parser import Expression, parse
from tokenstats.masking.language.unparse import Column, among_of, name_of
from tokenstats.run_file import to_toml
from tokenstats.schema import MAX_CLAUSES

PROTECT = "is_end_of_turn"
TOO_FEW = ("drop", "keep")
_KEYS = ("drop", "keep", "weight", "protect", "min_kept", "too_few", "budget", "source", "description")
_BUDGET = re.compile(r"same as ([A-Za-z0-9][A-Za-z0-9._-]{0,63})")


@dataclass(frozen=True)
class Rule:
    """Which target tokens the loss leaves out, and what the others count for.

    Raises RuleError for a text that is not in the rule language.

    Attributes:
        drop, keep: A boolean expression over the target tokens: one of the two, or none where the rule only weighs.
        weight: A number for each kept token, finite and at least 0.
        protect: Tokens that are never dropped; "" protects none.
        min_kept: Rows that would keep fewer tokens are dropped whole, the protected ones too (``too_few="drop"``, the
            default), or kept whole (``too_few="keep"``).
        budget: "same as MASK": in each sequence drop as many tokens as that mask drops, drawn among those that may be dropped;
            the rule's drop must then be a single random(…), whose own share is not used.
        source: Where the rule was published.
    """

    drop: str | None = None
    keep: str | None = None
    weight: str | None = None
    protect: str = PROTECT
    min_kept: int | None = None
    too_few: str | None = None
    budget: str | None = None
    source: str | None = None
    description: str | None = None
    preset: str | None = None

    def __post_init__(self) -> None:
        if self.drop is not None and self.keep is not None:
            raise RuleError("a rule says either what to drop or what to keep; expected exactly one of the two, got both")
        if self.drop is None and self.keep is None and self.weight is None:
            raise RuleError("a rule says what to drop or what to keep; expected exactly one of the two, or a weight")
        _ = self.expressions
        if len(self.reasons) > MAX_CLAUSES:
            counted = f"{len(self.clauses)} 'or' clauses" + (" and min_kept" if len(self.reasons) > len(self.clauses) else "")
            raise RuleError(f"the rule has {counted}; expected at most {MAX_CLAUSES}")
        self._check_min_kept()
        self._check_budget()

    def _check_budget(self) -> None:
        if self.budget is None:
            return
        if not isinstance(self.budget, str) or not _BUDGET.fullmatch(self.budget):
            raise RuleError(f"budget got {one_line(self.budget, 60)!r}; expected 'same as MASK'")
        tree = self.clauses[0].tree if self.drop is not None else None
        if not isinstance(tree, ast.Call) or name_of(tree) != "random" or len(self.clauses) != 1:
            raise RuleError("a rule with a budget draws at random: its drop must be a single random(…)")
        if among_of(tree) is not None:
            raise RuleError("a rule with a budget draws among all that may be dropped; say with protect what may not be")

    def _check_min_kept(self) -> None:
        if self.min_kept is None and self.too_few is not None:
            raise RuleError("too_few says what becomes of rows below min_kept; expected min_kept beside it")
        if self.min_kept is not None and not (type(self.min_kept) is int and 0 < self.min_kept < 2**31):
            raise RuleError(f"min_kept got {one_line(self.min_kept, 40)}; expected a whole number of tokens, at least 1")
        if self.too_few is not None and self.too_few not in TOO_FEW:
            raise RuleError(f"too_few got {one_line(self.too_few, 40)!r}; expected one of: {', '.join(TOO_FEW)}")

    @cached_property
    def expression(self) -> Expression | None:
        """What is dropped, as one boolean expression; None for a rule that only weighs."""
        if self.drop is None and self.keep is None:
            return None
        return parse(self.drop) if self.drop is not None else parse(self.keep or "").negated()

    @cached_property
    def clauses(self) -> list[Expression]:
        """The branches that ``reason`` tells apart: bit i is set where clause i dropped the token."""
        return self.expression.clauses() if self.expression is not None else []

    @property
    def reasons(self) -> list[str]:
        """The text behind each bit of ``reason``: the clauses, and ``min_kept`` where it drops rows."""
        drops_rows = self.min_kept is not None and self.too_few != "keep"
        clauses = (
            [clause.text for clause in self.clauses] if self.budget is None else [f"random, as many as {self.budget_mask}"]
        )
        return clauses + [f"min_kept = {self.min_kept}"] * drops_rows

    @cached_property
    def protected(self) -> Expression | None:
        """What is never dropped; None: nothing is spared."""
        return parse(self.protect) if self.protect.strip() else None

    @cached_property
    def weighting(self) -> Expression | None:
        """What a kept token counts for; None: the rule does not weigh."""
        return parse(self.weight, NUMBER) if self.weight is not None else None

    @property
    def expressions(self) -> list[Expression]:
        """All that has to be evaluated."""
        return [e for e in (self.expression, self.protected, self.weighting) if e is not None]

    @property
    def resolved(self) -> list[Expression]:
        """Those whose selections over the dataset are asked for: with a budget the share of ``drop`` is not used."""
        return [e for e in self.expressions if self.budget is None or e is not self.expression]

    @property
    def budget_mask(self) -> str | None:
        """The mask whose number of dropped tokens the rule follows in each row."""
        match = _BUDGET.fullmatch(self.budget or "")
        return match.group(1) if match else None

    @property
    def columns(self) -> frozenset[Column]:
        """Every column that the rule reads, as (scoring or None, column)."""
        return frozenset().union(*(e.columns for e in self.expressions))

    @property
    def needs_scoring(self) -> bool:
        """Does the rule read statistics by their bare names?"""
        return any(scoring is None and name not in TOKEN_COLUMNS for scoring, name in self.columns)

    @property
    def fingerprint(self) -> str:
        """Digest of what the rule does: equal rules have equal fingerprints, whatever their spelling and source."""
        texts = [e.text if e is not None else None for e in (self.expression, self.protected, self.weighting)]
        few = None if self.min_kept is None else (self.min_kept, self.too_few or TOO_FEW[0])
        return hashlib.blake2b(json.dumps([*texts, self.budget_mask, few]).encode(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, str | int]:
        """The fields that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def to_toml(self) -> str:
        """The rule as a file that :meth:`load` reads."""
        return to_toml({k: v for k, v in self.to_dict().items() if k in _KEYS})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Rule":
        """The rule that :meth:`to_dict` wrote, such as a mask's manifest holds. Raises RuleError for fields that are none."""
        return cls(**_checked(fields, "the rule of a mask", (*_KEYS, "preset")))

    @classmethod
    def load(cls, name_or_path: str | Path) -> "Rule":
        """A preset by name, or a rule from a ``.toml`` file."""
        return cls(**rule_fields(name_or_path))

    @classmethod
    def from_preset(cls, name: str) -> "Rule":
        """A preset by name."""
        return cls(**_preset_fields(name))


def rule_fields(name_or_path: str | Path) -> dict[str, Any]:
    """The fields of a preset, or of a ``.toml`` file: names of fields and types checked, the texts not yet parsed."""
    text = str(name_or_path)
    if not text.endswith(".toml") and "/" not in text:
        return _preset_fields(text)
    path = Path(text)
    try:
        return _read_toml(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise InputError(
            f"no rule file at {path}; expected a .toml file or one of the presets: {', '.join(preset_names())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error, 100)}") from None


def _preset_fields(name: str) -> dict[str, Any]:
    known = preset_names()
    if name not in known:
        raise InputError(
            f"no preset {one_line(name, 60)!r}{nearest(name, known)}; expected a .toml file or one of: {', '.join(known)}"
        )
    text = (files("tokenstats.masking") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return {**_read_toml(text, name), "preset": name}


def _read_toml(text: str, where: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise RuleError(f"{where} is not TOML: {one_line(error, 120)}") from None
    return _checked(table, where, _KEYS)


def _checked(fields: Mapping[str, Any], where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a rule, names and types checked. Raises RuleError."""
    for key, value in fields.items():
        if key not in known:
            raise RuleError(
                f"{where} has an unknown key {one_line(key, 40)!r}{nearest(key, list(known))}; expected: {', '.join(known)}"
            )
        wanted, name = (int, "whole number") if key == "min_kept" else (str, "string")
        if type(value) is not wanted:
            raise RuleError(f"{where}: {key} is a {type(value).__name__}; expected a {name}")
    return dict(fields)


def rule_text(rule: Mapping[str, Any]) -> str:
    """A manifest's rule in one line: what it drops or keeps, what it weighs by, what it demands of a row."""
    said = [f"{key} {rule[key]}" for key in ("drop", "keep", "weight", "budget") if key in rule]
    if "min_kept" in rule:
        said.append(f"min_kept {rule['min_kept']}, else {rule.get('too_few', TOO_FEW[0])} the row")
    return one_line("; ".join(said), 10_000)


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = files("tokenstats.masking") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))
