"""A rule: what to drop or what to keep, what to protect, and where it comes from. Presets are rules in TOML files."""

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from tokenstats.errors import InputError, RuleError, nearest, one_line
from tokenstats.masking.syntax import Expression, parse
from tokenstats.schema import MAX_CLAUSES

PROTECT = "is_end_of_turn"
_KEYS = ("drop", "keep", "protect", "budget", "source", "description")
_BUDGET = re.compile(r"same as ([A-Za-z0-9][A-Za-z0-9._-]{0,63})")


@dataclass(frozen=True)
class Rule:
    """Which target tokens the loss leaves out.

    drop / keep: a boolean expression over the target tokens: exactly one of the two
    protect:     tokens that are never dropped; "" protects none
    budget:      "same as MASK": in each sequence drop as many tokens as that mask drops, drawn among those that may be
                 dropped; the rule's drop must then be a single random(…), whose own share is not used
    source:      where the rule was published

    Raises RuleError for a text that is not in the rule language.
    """

    drop: str | None = None
    keep: str | None = None
    protect: str = PROTECT
    budget: str | None = None
    source: str | None = None
    description: str | None = None
    preset: str | None = None

    def __post_init__(self) -> None:
        if (self.drop is None) == (self.keep is None):
            raise RuleError("a rule says either what to drop or what to keep; expected exactly one of the two")
        _ = self.expression, self.protected
        if len(self.clauses) > MAX_CLAUSES:
            raise RuleError(f"the rule has {len(self.clauses)} 'or' clauses; expected at most {MAX_CLAUSES}")
        if self.budget is not None:
            if not _BUDGET.fullmatch(self.budget):
                raise RuleError(f"budget got {one_line(self.budget, 60)!r}; expected 'same as MASK'")
            if not re.fullmatch(r"random\([^()]*\)", self.expression.text) or self.drop is None:
                raise RuleError("a rule with a budget draws at random: its drop must be a single random(…)")

    @cached_property
    def expression(self) -> Expression:
        """What is dropped, as one boolean expression."""
        return parse(self.drop) if self.drop is not None else parse(self.keep or "").negated()

    @cached_property
    def clauses(self) -> list[Expression]:
        """The branches that ``reason`` tells apart: bit i is set where clause i dropped the token."""
        return self.expression.clauses()

    @cached_property
    def protected(self) -> Expression | None:
        return parse(self.protect) if self.protect.strip() else None

    @property
    def budget_mask(self) -> str | None:
        match = _BUDGET.fullmatch(self.budget or "")
        return match.group(1) if match else None

    @property
    def columns(self) -> frozenset[tuple[str | None, str]]:
        """Every column that the rule reads, as (scoring or None, column)."""
        return self.expression.columns | (self.protected.columns if self.protected else frozenset())

    @property
    def needs_scoring(self) -> bool:
        from tokenstats.masking.syntax import TOKEN_COLUMNS

        return any(scoring is None and name not in TOKEN_COLUMNS for scoring, name in self.columns)

    @property
    def fingerprint(self) -> str:
        """Digest of what the rule does: equal rules have equal fingerprints, whatever their spelling and source."""
        meaning = [self.expression.text, self.protected.text if self.protected else "", self.budget_mask]
        return hashlib.blake2b(json.dumps(meaning).encode(), digest_size=16).hexdigest()

    def to_dict(self) -> dict[str, str]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    def to_toml(self) -> str:
        """The rule as a file that :meth:`load` reads."""
        fields = {k: v for k, v in self.to_dict().items() if k in _KEYS}
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())

    @classmethod
    def load(cls, name_or_path: str | Path) -> "Rule":
        """A preset by name, or a rule from a ``.toml`` file."""
        text = str(name_or_path)
        if not text.endswith(".toml") and "/" not in text:
            return cls.from_preset(text)
        path = Path(text)
        try:
            return cls._from_toml(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            raise InputError(
                f"no rule file at {path}; expected a .toml file or one of the presets: {', '.join(preset_names())}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {one_line(error, 100)}") from None

    @classmethod
    def from_preset(cls, name: str) -> "Rule":
        known = preset_names()
        if name not in known:
            raise InputError(
                f"no preset {one_line(name, 60)!r}{nearest(name, known)}; expected a .toml file or one of: {', '.join(known)}"
            )
        rule = cls._from_toml((files("tokenstats.masking") / "presets" / f"{name}.toml").read_text(encoding="utf-8"), name)
        return cls(**{**asdict(rule), "preset": name})

    @classmethod
    def _from_toml(cls, text: str, where: str) -> "Rule":
        try:
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise RuleError(f"{where} is not TOML: {one_line(error, 120)}") from None
        for key, value in table.items():
            if key not in _KEYS:
                raise RuleError(
                    f"{where} has an unknown key {one_line(key, 40)!r}{nearest(key, list(_KEYS))}; expected: {', '.join(_KEYS)}"
                )
            if not isinstance(value, str):
                raise RuleError(f"{where}: {key} is a {type(value).__name__}; expected a string")
        return cls(**table)


def preset_names() -> list[str]:
    folder = files("tokenstats.masking") / "presets"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))
