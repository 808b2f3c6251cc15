"""tokenstats mask, sweep, compare: rules and what they drop."""

from pathlib import Path
from typing import Annotated

import typer

from tokenstats.cli.options import (
    AsJson,
    Budget,
    Drop,
    Keep,
    MinKept,
    Protect,
    RuleName,
    Scoring,
    StorePath,
    TooFew,
    Weight,
    Workers,
    fields_of,
)
from tokenstats.cli.printing import console, many, print_json, share
from tokenstats.errors import InputError, one_line


def mask(
    store: StorePath,
    name: Annotated[str, typer.Option(help="name of the mask")],
    rule: RuleName = None,
    drop: Drop = None,
    keep: Keep = None,
    weight: Weight = None,
    protect: Protect = None,
    min_kept: MinKept = None,
    too_few: TooFew = None,
    budget: Budget = None,
    scoring: Scoring = None,
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of another mask of this name")] = False,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Turn a rule into a stored mask. No model runs."""
    from tokenstats import Rule, Store, build_mask

    chosen = Rule(
        **fields_of(rule, drop, keep, weight=weight, protect=protect, min_kept=min_kept, too_few=too_few, budget=budget)
    )
    manifest = build_mask(Store(store), chosen, name, scoring=scoring, replace=replace, workers=workers).manifest
    if as_json:
        print_json({"store": str(store), "mask": name, **manifest.model_dump(mode="json", exclude={"parts"})})
        return
    dropped = manifest.targets - manifest.kept
    print(
        f"mask {name}: drops {dropped:,} of {manifest.targets:,} targets ({share(dropped, manifest.targets)}), "
        f"keeps {manifest.kept:,}"
    )
    for clause in manifest.clauses:
        print(f"  {clause.dropped:>10,}  {share(clause.dropped, manifest.targets):>6}  {clause.text}")
    for text, value in manifest.thresholds.items():
        print(f"  threshold {value:.6g}  {text}")
    for text, (centre, width) in manifest.scales.items():
        print(f"  scale {centre:.6g}, {width:.6g}  {text}")
    if manifest.weight_total is not None:
        mean = manifest.weight_total / max(1, manifest.kept)
        print(f"  weighs what is kept by {one_line(manifest.rule.get('weight'))}: {mean:.4f} on average")
    if manifest.protected:
        print(f"  {manifest.protected:,} more were protected by: {one_line(manifest.rule.get('protect'))}")
    if manifest.rows_with_too_few:
        fate = "kept whole" if manifest.rule.get("too_few") == "keep" else "dropped whole"
        print(f"  {many(manifest.rows_with_too_few, 'row')} would keep fewer than {manifest.rule['min_kept']} tokens: {fate}")
    if manifest.shortfall:
        print(
            f"  {many(manifest.shortfall, 'token')} fewer than the budget ({one_line(manifest.rule.get('budget'))}): "
            "that mask drops more in some rows than may be dropped here"
        )
    if manifest.rows_with_nothing_kept:
        print(f"  rows of which nothing is kept: {manifest.rows_with_nothing_kept:,}")


def sweep(
    store: StorePath,
    vary: Annotated[list[str], typer.Option(help="numbers to try: f=0.05:0.5:0.05, or t=1,2,5; several are combined")],
    rule: RuleName = None,
    drop: Drop = None,
    keep: Keep = None,
    weight: Weight = None,
    protect: Protect = None,
    min_kept: MinKept = None,
    too_few: TooFew = None,
    budget: Budget = None,
    scoring: Scoring = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="draw it too: .png, .svg or .pdf")] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Try a rule with many numbers, in as many readings as one mask takes. Nothing is stored."""
    from tokenstats import Store
    from tokenstats.masking.sweep import sweep as run
    from tokenstats.masking.variants import parse_vary

    if plot is not None:
        from tokenstats.inspect.render.figure_sweep import check_picture, plot_sweep

        check_picture(plot)  # before the work, not after it
    numbers = dict(pairs := [parse_vary(text) for text in vary])
    if len(numbers) < len(pairs):
        raise InputError("expected each name in one --vary only; write its numbers as t=1,2,5")
    fields = fields_of(rule, drop, keep, weight=weight, protect=protect, min_kept=min_kept, too_few=too_few, budget=budget)
    found = run(Store(store), fields, numbers, scoring=scoring, workers=workers)
    if plot is not None:
        plot_sweep(found, plot)
    if as_json:
        print_json({"store": str(store), **found.to_dict()})
    else:
        print(found)


def compare(
    store: StorePath,
    a: Annotated[str, typer.Argument(metavar="A", help="a mask of the store, else a preset, else a .toml file with a rule")],
    b: Annotated[str, typer.Argument(metavar="B", help="the same")],
    scoring: Annotated[
        str | None, typer.Option(help="judge the rules on these statistics; the rules of masks too, anew")
    ] = None,
    scoring_b: Annotated[str | None, typer.Option(help="judge B on these: how far a mask drifts between checkpoints")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two masks or rules: where they agree, and where not. Rules are judged without being stored."""
    from tokenstats.masking.compare import compare as run

    found = run(store, a, b, scoring=scoring, scoring_b=scoring_b)
    if as_json:
        print_json(found.to_dict())
    else:
        console().print(found)
