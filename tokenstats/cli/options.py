"""Options that several commands share, and what a rule's options say together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenstats.errors import InputError
from tokenstats.options import field, to_dict

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="a folder made by 'tokenstats compute'")]
Scoring = Annotated[str | None, typer.Option(help="which scoring the bare column names mean, where the store has several")]
Workers = Annotated[int | None, typer.Option(help="threads; the result is the same [one a processor, up to 8]", min=1)]


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """A rule as the command line says it: by name, by its text, or both."""

    rule: str | None = field(None, "a preset, or a .toml file with a rule")
    drop: str | None = field(None, "expression for what to drop, such as 'entropy > 2'")
    keep: str | None = field(None, "expression for what to keep")
    weight: str | None = field(None, "number that a kept token counts for, such as prob")
    protect: str | None = field(None, "what is never dropped; '' for nothing [is_end_of_turn]")
    min_kept: int | None = field(None, "rows that would keep fewer tokens are dropped or kept whole")
    too_few: str | None = field(None, "what becomes of those rows: drop or keep [drop]")
    budget: str | None = field(None, "a mask: draw at random, in each row, as many as it drops")

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the rule; those that change a rule also change what ``rule`` names."""
        from tokenstats.masking.rule import rule_fields

        said = {name: value for name, value in to_dict(self).items() if value is not None}
        names = ("rule", "drop", "keep")
        named: dict[str, Any] = {name: said.pop(name) for name in names if name in said}
        if "budget" in said:
            said["budget"] = f"same as {said['budget']}"
        if len(named) > 1 or not (named or "weight" in said):
            raise InputError("expected one of --rule, --drop and --keep, or --weight without any of them")
        return {**(rule_fields(named["rule"]) if "rule" in named else named), **said}
