"""Options that several commands share, and what a rule's options say together."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenstats.errors import InputError

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="a folder made by 'tokenstats compute'")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="run code that a model brings with it; read it first")
]
Scoring = Annotated[str | None, typer.Option(help="which scoring the bare column names mean, where the store has several")]
RuleName = Annotated[str | None, typer.Option("--rule", help="a preset, or a .toml file with a rule")]
Drop = Annotated[str | None, typer.Option(help="expression for what to drop, such as 'entropy > 2'")]
Keep = Annotated[str | None, typer.Option(help="expression for what to keep")]
Weight = Annotated[str | None, typer.Option(help="number that a kept token counts for, such as prob")]
Protect = Annotated[str | None, typer.Option(help="what is never dropped; '' for nothing [is_end_of_turn]")]
MinKept = Annotated[int | None, typer.Option(help="rows that would keep fewer tokens are dropped or kept whole")]
TooFew = Annotated[str | None, typer.Option(help="what becomes of those rows: drop or keep [drop]")]
Budget = Annotated[str | None, typer.Option(help="a mask: draw at random, in each row, as many as it drops")]
Workers = Annotated[int | None, typer.Option(help="threads; the result is the same [one a processor, up to 8]", min=1)]


def fields_of(rule: str | None, drop: str | None, keep: str | None, **changes: str | int | None) -> dict[str, Any]:
    """The fields of a rule as the options give them; the options that change a rule also change what --rule names."""
    from tokenstats.masking.rule import rule_fields

    named = {key: value for key, value in {"rule": rule, "drop": drop, "keep": keep}.items() if value is not None}
    changed = {key: value for key, value in changes.items() if value is not None}
    if "budget" in changed:
        changed["budget"] = f"same as {changed['budget']}"
    if len(named) > 1 or not (named or "weight" in changed):
        raise InputError("expected one of --rule, --drop and --keep, or --weight without any of them")
    return {**(rule_fields(rule) if rule is not None else named), **changed}
