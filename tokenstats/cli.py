"""The command line: parsing and printing only. Each command is a thin face over one function.

Exit status 0 only when the whole job was done; 2 for a mistake that the caller can mend, with one line that says which.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenstats.errors import InputError, TokenstatsError, one_line

if TYPE_CHECKING:
    from tokenstats.masking.rule import Rule

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Score a fine-tuning dataset once, see its tokens, and decide which of them to learn from.",
)

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="a folder made by 'tokenstats compute'")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
Scoring = Annotated[str | None, typer.Option(help="which scoring the bare column names mean, where the store has several")]


def main() -> None:
    """Entry point: errors of the user become one line and status 2."""
    try:
        cli(standalone_mode=False)
    except TokenstatsError as error:
        _stop(one_line(error, 2000))
    except (typer.Exit, SystemExit) as stop:
        sys.exit(getattr(stop, "exit_code", getattr(stop, "code", 0)))
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away, as in 'tokenstats show STORE | head'
        sys.exit(141)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            _stop(f"{one_line(error.format_message(), 500)} See 'tokenstats --help'.")
        raise


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


@cli.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False) -> None:
    if version:
        from tokenstats import __version__

        print(f"tokenstats {__version__}")
        raise typer.Exit


@cli.command()
def compute(
    dataset: Annotated[str, typer.Argument(help=".json, .jsonl or .parquet file, a folder of them, or a Hub dataset id")],
    model: Annotated[str, typer.Option(help="the scored model: folder, Hub id or adapter folder")],
    store: Annotated[Path, typer.Option(help="folder of the store; made where it is not there")],
    reference: Annotated[str | None, typer.Option(help="the model that KL is measured from")] = None,
    name: Annotated[str | None, typer.Option(help="name of the scoring; by default the model folder's")] = None,
    columns: Annotated[str | None, typer.Option(help="the dataset's own names: prompt=question,completion=answer")] = None,
    split: Annotated[str, typer.Option(help="split of a Hub dataset")] = "train",
    chat: Annotated[bool, typer.Option(help="put plain prompts and completions into the chat template")] = True,
    max_length: Annotated[int | None, typer.Option(help="cut sequences after so many tokens")] = None,
    part_tokens: Annotated[int | None, typer.Option(help="tokens in a part, the most that a kill can lose [1000000]")] = None,
    batch_tokens: Annotated[int, typer.Option(help="tokens in one forward pass, padding included")] = 8192,
    topk: Annotated[int, typer.Option(help="keep the K most likely alternatives too")] = 0,
    score_all: Annotated[bool, typer.Option("--score-all", help="score prompt tokens too")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Tokenize a dataset and score it with one model, or with a model and its reference."""
    from tokenstats.corpus.formats import parse_columns
    from tokenstats.scoring import compute as run

    built, scoring = run(
        dataset,
        model=model,
        store=store,
        reference=reference,
        name=name,
        columns=parse_columns(columns),
        split=split,
        chat=chat,
        max_length=max_length,
        part_tokens=part_tokens,
        batch_tokens=batch_tokens,
        topk=topk,
        score_all=score_all,
        dtype=dtype,
        device=device,
    )
    manifest = built.scoring(scoring)[1]
    if as_json:
        _print_json({"store": str(store), "scoring": scoring, **manifest.model_dump(mode="json", exclude={"parts"})})
        return
    whole, data = built.manifest, built.manifest.dataset
    print(f"{store}: {whole.sequences:,} sequences, {whole.tokens:,} tokens, {whole.targets:,} targets (by {whole.template.targets})")
    if data.truncated:
        print(f"  {data.truncated:,} sequences cut at {whole.template.max_length} tokens")
    for reason, count in data.dropped.items():
        print(f"  left out {count:,} rows: {reason} (first: row {data.first_dropped[reason]})")
    means = "  ".join(f"{c} {manifest.means[c]:.4f}" for c in ("logprob", "entropy", "kl", "reverse_kl") if c in manifest.means)
    print(f"scoring {scoring}: {manifest.scored:,} tokens scored in {manifest.dtype} on {manifest.device}, padding {manifest.padding:.1%}")
    print(f"  means in nats: {means}")


@cli.command()
def mask(
    store: StorePath,
    name: Annotated[str, typer.Option(help="name of the mask")],
    rule: Annotated[str | None, typer.Option(help="a preset, or a .toml file with a rule")] = None,
    drop: Annotated[str | None, typer.Option(help="expression for what to drop, such as 'entropy > 2'")] = None,
    keep: Annotated[str | None, typer.Option(help="expression for what to keep")] = None,
    protect: Annotated[str | None, typer.Option(help="what is never dropped; '' for nothing [is_end_of_turn]")] = None,
    budget: Annotated[str | None, typer.Option(help="a mask: draw at random, in each row, as many as it drops")] = None,
    scoring: Scoring = None,
    replace: Annotated[bool, typer.Option("--replace", help="put it in the place of another mask of this name")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a rule into a stored mask. No model runs."""
    from tokenstats import Store, build_mask

    manifest = build_mask(Store(store), _rule(rule, drop, keep, protect, budget), name, scoring=scoring, replace=replace)
    if as_json:
        _print_json({"store": str(store), "mask": name, **manifest.model_dump(mode="json", exclude={"parts"})})
        return
    dropped = manifest.targets - manifest.kept
    print(f"mask {name}: drops {dropped:,} of {manifest.targets:,} targets ({_share(dropped, manifest.targets)}), keeps {manifest.kept:,}")
    for clause in manifest.clauses:
        print(f"  {clause.dropped:>10,}  {_share(clause.dropped, manifest.targets):>6}  {clause.text}")
    for text, value in manifest.thresholds.items():
        print(f"  threshold {value:.6g}  {text}")
    if manifest.protected:
        print(f"  {manifest.protected:,} more were protected by: {manifest.rule.get('protect')}")
    if manifest.rows_with_nothing_kept:
        print(f"  {manifest.rows_with_nothing_kept:,} rows keep nothing")


def _rule(rule: str | None, drop: str | None, keep: str | None, protect: str | None, budget: str | None) -> "Rule":
    from dataclasses import replace

    from tokenstats import Rule

    if sum(x is not None for x in (rule, drop, keep)) != 1:
        raise InputError("expected exactly one of --rule, --drop and --keep")
    chosen = Rule.load(rule) if rule is not None else Rule(drop=drop, keep=keep)
    changes: dict[str, Any] = {}
    if protect is not None:
        changes["protect"] = protect
    if budget is not None:
        changes["budget"] = f"same as {budget}"
    return replace(chosen, **changes)


@cli.command()
def compare(store: StorePath, mask_a: str, mask_b: str, as_json: AsJson = False) -> None:
    """Compare two masks of a store."""
    from tokenstats import Store, compare_masks
    from tokenstats.inspect.spans import Decoder

    opened = Store(store)
    found = compare_masks(opened, mask_a, mask_b)
    if as_json:
        _print_json(asdict(found))
        return
    decoder = Decoder(opened)
    width = max(len(mask_a), 12)
    print(f"{found.targets:,} target tokens\n")
    print(f"{'':>{width + 10}}{mask_b + ' drops':>18}{mask_b + ' keeps':>18}")
    print(f"{mask_a + ' drops':>{width + 10}}{found.both_dropped:>18,}{found.only_a_dropped:>18,}")
    print(f"{mask_a + ' keeps':>{width + 10}}{found.only_b_dropped:>18,}{found.both_kept:>18,}\n")
    print(f"Jaccard of what is dropped: {found.jaccard:.3f} (two random masks of these sizes: {found.by_chance:.3f})")
    low, middle, high = found.per_row
    print(f"row by row, 10th, 50th and 90th percentile: {low:.2f}, {middle:.2f}, {high:.2f}")
    for one, tokens in ((mask_a, found.only_a), (mask_b, found.only_b)):
        words = "  ".join(f"{decoder.visible(token)} {count:,}" for token, count in tokens)
        print(f"most often dropped by {one} only: {words or 'none'}")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    main()
