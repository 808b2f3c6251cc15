"""tokenstats mask, sweep, compare: rules and what they drop."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenstats.cli.options import RuleOptions, Scoring, StorePath, Workers
from tokenstats.cli.printing import Answer, many, share, with_json
from tokenstats.errors import InputError, one_line

if TYPE_CHECKING:
    from tokenstats.store.manifests import MaskManifest


@with_json
def mask(
    store: StorePath,
    name: Annotated[str, typer.Option(help="name of the mask")],
    *,
    rule: RuleOptions,
    scoring: Scoring = None,
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of another mask of this name")] = False,
    workers: Workers = None,
) -> Answer:
    """Turn a rule into a stored mask. No model runs."""
    from tokenstats import Rule, Store, build_mask

    made = build_mask(Store(store), Rule(**rule.fields), name, scoring=scoring, replace=replace, workers=workers)
    manifest = made.manifest
    facts = {"store": str(store), "mask": name, **manifest.model_dump(mode="json", exclude={"parts"})}
    return Answer(facts, lambda: "\n".join([*_dropped(name, manifest), *_remarks(manifest)]))


def _dropped(name: str, manifest: "MaskManifest") -> list[str]:
    dropped = manifest.targets - manifest.kept
    return [
        f"mask {name}: drops {dropped:,} of {manifest.targets:,} targets ({share(dropped, manifest.targets)}), "
        f"keeps {manifest.kept:,}",
        *(
            f"  {clause.dropped:>10,}  {share(clause.dropped, manifest.targets):>6}  {clause.text}"
            for clause in manifest.clauses
        ),
        *(f"  threshold {value:.6g}  {text}" for text, value in manifest.thresholds.items()),
        *(f"  scale {centre:.6g}, {width:.6g}  {text}" for text, (centre, width) in manifest.scales.items()),
    ]


def _remarks(manifest: "MaskManifest") -> list[str]:
    lines = []
    if manifest.weight_total is not None:
        mean = manifest.weight_total / max(1, manifest.kept)
        lines.append(f"  weighs what is kept by {one_line(manifest.rule.get('weight'))}: {mean:.4f} on average")
    if manifest.protected:
        lines.append(f"  {manifest.protected:,} more were protected by: {one_line(manifest.rule.get('protect'))}")
    if manifest.rows_with_too_few:
        fate = "kept whole" if manifest.rule.get("too_few") == "keep" else "dropped whole"
        few = many(manifest.rows_with_too_few, "row")
        lines.append(f"  {few} would keep fewer than {manifest.rule['min_kept']} tokens: {fate}")
    if manifest.shortfall:
        lines.append(
            f"  {many(manifest.shortfall, 'token')} fewer than the budget ({one_line(manifest.rule.get('budget'))}): "
            "that mask drops more in some rows than may be dropped here"
        )
    if manifest.rows_with_nothing_kept:
        lines.append(f"  rows of which nothing is kept: {manifest.rows_with_nothing_kept:,}")
    return lines


@with_json
def sweep(
    store: StorePath,
    vary: Annotated[list[str], typer.Option(help="numbers to try: f=0.05:0.5:0.05, or t=1,2,5; several are combined")],
    *,
    rule: RuleOptions,
    scoring: Scoring = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="draw it too: .png, .svg or .pdf")] = None,
    workers: Workers = None,
) -> Answer:
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
    found = run(Store(store), rule.fields, numbers, scoring=scoring, workers=workers)
    if plot is not None:
        plot_sweep(found, plot)
    return Answer({"store": str(store), **found.to_dict()}, lambda: str(found))


@with_json
def compare(
    store: StorePath,
    a: Annotated[str, typer.Argument(metavar="A", help="a mask of the store, else a preset, else a .toml file with a rule")],
    b: Annotated[str, typer.Argument(metavar="B", help="the same")],
    scoring: Annotated[
        str | None, typer.Option(help="judge the rules on these statistics; the rules of masks too, anew")
    ] = None,
    scoring_b: Annotated[str | None, typer.Option(help="judge B on these: how far a mask drifts between checkpoints")] = None,
) -> Answer:
    """Compare two masks or rules: where they agree, and where not. Rules are judged without being stored."""
    from tokenstats.masking.compare import compare as run

    found = run(store, a, b, scoring=scoring, scoring_b=scoring_b)
    return Answer(found.to_dict(), lambda: found)
