"""The command line: parsing and printing only. Each command is a thin face over one function.

Exit status 0 only when the whole job was done; 2 for a mistake that the caller can mend, with one line that says which;
1 where an audit fails the gate that --fail-on puts up.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenstats.errors import InputError, TokenstatsError, one_line
from tokenstats.training.options import TrainOptions

if TYPE_CHECKING:
    from rich.console import Console

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Score a fine-tuning dataset once, see its tokens, and decide which of them to learn from.",
)

_DEFAULTS = TrainOptions()
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="a folder made by 'tokenstats compute'")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object")]
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


def main() -> None:
    """Entry point: errors of the user become one line and status 2."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        cli(standalone_mode=False)
    except TokenstatsError as error:
        _stop(one_line(error, 2000))
    except (typer.Exit, SystemExit) as stop:
        sys.exit(getattr(stop, "exit_code", getattr(stop, "code", 0)))
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away, as in 'tokenstats show STORE | head'
        sys.exit(141)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            _stop(f"{one_line(error.filename, 200)}: {error.strerror}; choose another path, or mend its rights")
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
    split: Annotated[str | None, typer.Option(help="split of a Hub dataset [train]")] = None,
    chat: Annotated[bool, typer.Option(help="put plain prompts and completions into the chat template")] = True,
    max_length: Annotated[int | None, typer.Option(help="cut sequences after so many tokens")] = None,
    part_tokens: Annotated[int | None, typer.Option(help="tokens in a part, the most that a kill can lose [1000000]")] = None,
    batch_tokens: Annotated[int, typer.Option(help="tokens in one forward pass, padding included")] = 8192,
    topk: Annotated[int, typer.Option(help="keep the K most likely alternatives too")] = 0,
    score_all: Annotated[bool, typer.Option("--score-all", help="score prompt tokens too")] = False,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    attn: Annotated[str | None, typer.Option(help="attention as transformers names it: sdpa, flash_attention_2, …")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="compile the models first: pays over hours")] = False,
    reference_pass: Annotated[
        str, typer.Option(help="together, or separate: the reference first, where two models do not fit")
    ] = "together",
    engine: Annotated[str, typer.Option(help="local (also below torchrun and srun), or ray: a cluster")] = "local",
    workers: Annotated[int | None, typer.Option(help="with ray: how many [one for each GPU, else each CPU]", min=1)] = None,
    ray_address: Annotated[str | None, typer.Option(help="with ray: the cluster; without one, this machine")] = None,
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
        attention=attn,
        compiled=compiled,
        reference_pass=reference_pass,
        engine=engine,
        workers=workers,
        ray_address=ray_address,
    )
    if scoring not in built.scorings():
        if as_json:
            _print_json({"store": str(store), "scoring": scoring, "complete": False})
        else:
            print(f"{store}: the parts of this worker are done; the last worker writes the manifest")
        return
    manifest = built.scoring(scoring)[1]
    if as_json:
        _print_json({"store": str(store), "scoring": scoring, **manifest.model_dump(mode="json", exclude={"parts"})})
        return
    whole, data = built.manifest, built.manifest.dataset
    print(
        f"{store}: {whole.sequences:,} sequences, {whole.tokens:,} tokens, {whole.targets:,} targets "
        f"(by {whole.template.targets})"
    )
    if data.truncated:
        print(f"  {data.truncated:,} sequences cut at {whole.template.max_length} tokens")
    for reason, count in data.dropped.items():
        print(f"  left out {count:,} rows: {reason} (first: row {data.first_dropped[reason]})")
    if manifest.batch_tokens is not None and manifest.batch_tokens < batch_tokens:
        print(f"  memory ran out: batches came down from {batch_tokens:,} to {manifest.batch_tokens:,} tokens")
    means = "  ".join(f"{c} {manifest.means[c]:.4f}" for c in ("logprob", "entropy", "kl", "reverse_kl") if c in manifest.means)
    print(
        f"scoring {scoring}: {manifest.scored:,} tokens scored in {manifest.dtype} on {manifest.device}, "
        f"padding {manifest.padding:.1%}, sums by {manifest.reduction}"
    )
    print(f"  means in nats: {means}")


@cli.command()
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
        **_fields(rule, drop, keep, weight=weight, protect=protect, min_kept=min_kept, too_few=too_few, budget=budget)
    )
    manifest = build_mask(Store(store), chosen, name, scoring=scoring, replace=replace, workers=workers)
    if as_json:
        _print_json({"store": str(store), "mask": name, **manifest.model_dump(mode="json", exclude={"parts"})})
        return
    dropped = manifest.targets - manifest.kept
    print(
        f"mask {name}: drops {dropped:,} of {manifest.targets:,} targets ({_share(dropped, manifest.targets)}), "
        f"keeps {manifest.kept:,}"
    )
    for clause in manifest.clauses:
        print(f"  {clause.dropped:>10,}  {_share(clause.dropped, manifest.targets):>6}  {clause.text}")
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
        print(f"  {manifest.rows_with_too_few:,} rows would keep fewer than {manifest.rule['min_kept']} tokens: {fate}")
    if manifest.shortfall:
        print(
            f"  {manifest.shortfall:,} tokens fewer than the budget ({one_line(manifest.rule.get('budget'))}): "
            "that mask drops more in some rows than may be dropped here"
        )
    if manifest.rows_with_nothing_kept:
        print(f"  {manifest.rows_with_nothing_kept:,} rows keep nothing")


def _fields(rule: str | None, drop: str | None, keep: str | None, **changes: str | int | None) -> dict[str, Any]:
    """The fields of a rule as the options give them; the options that change a rule also change what --rule names."""
    from tokenstats.masking.rule import rule_fields

    named = {key: value for key, value in {"rule": rule, "drop": drop, "keep": keep}.items() if value is not None}
    changed = {key: value for key, value in changes.items() if value is not None}
    if "budget" in changed:
        changed["budget"] = f"same as {changed['budget']}"
    if len(named) > 1 or not (named or "weight" in changed):
        raise InputError("expected exactly one of --rule, --drop and --keep, or --weight alone")
    return {**(rule_fields(rule) if rule is not None else named), **changed}


@cli.command()
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
    from tokenstats.inspect import sweep_table
    from tokenstats.masking.sweep import sweep as run
    from tokenstats.masking.variants import parse_vary

    if plot is not None:
        from tokenstats.inspect import check_picture, plot_sweep

        check_picture(plot)  # before the work, not after it
    numbers = dict(pairs := [parse_vary(text) for text in vary])
    if len(numbers) < len(pairs):
        raise InputError("expected each name in one --vary only; write its numbers as t=1,2,5")
    fields = _fields(rule, drop, keep, weight=weight, protect=protect, min_kept=min_kept, too_few=too_few, budget=budget)
    found = run(Store(store), fields, numbers, scoring=scoring, workers=workers)
    if plot is not None:
        plot_sweep(found, plot)
    if as_json:
        _print_json({"store": str(store), **asdict(found)})
    else:
        print(sweep_table(found))


@cli.command()
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
    from tokenstats import Store, compare_masks
    from tokenstats.inspect import render_comparison

    opened = Store(store)
    found = compare_masks(opened, a, b, scoring=scoring, scoring_b=scoring_b)
    if as_json:
        _print_json(asdict(found))
    else:
        _console().print(render_comparison(found, opened))


@cli.command()
def show(
    store: StorePath,
    mask: Annotated[str | None, typer.Option(help="whose decisions to show; without one, all targets are learned")] = None,
    row: Annotated[int, typer.Option(help="the first sequence to show, counted from 0")] = 0,
    count: Annotated[int, typer.Option(help="how many sequences", min=1)] = 1,
    scoring: Scoring = None,
    details: Annotated[bool, typer.Option("--details", help="a line for each token with its statistics")] = False,
    text: Annotated[bool, typer.Option("--text", help="plain ASCII, to search, compare and pipe")] = False,
) -> None:
    """Show sequences, their tokens and which of them are learned."""
    from tokenstats import Store
    from tokenstats.inspect import plain_sequence, render_sequence

    opened = Store(store)
    for number in range(row, min(row + count, max(row + 1, opened.manifest.sequences))):
        if text:
            print(plain_sequence(opened, number, mask, scoring, details))
        else:
            _console().print(render_sequence(opened, number, mask, scoring, details))


@cli.command()
def audit(
    store: StorePath,
    mask: Annotated[str | None, typer.Option(help="a mask; without one, plain SFT is audited")] = None,
    scoring: Scoring = None,
    fail_on: Annotated[
        str | None,
        typer.Option(metavar="LEVEL|CHECK,…", help="exit with 1 on this verdict (note, warning, problem) or on these checks"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what will be learned, and what looks wrong."""
    from tokenstats import Store
    from tokenstats.inspect import Gate, render_audit
    from tokenstats.inspect import audit as run

    gate = Gate.parse(fail_on) if fail_on is not None else Gate()
    found = run(Store(store), mask, scoring)
    failing = gate.failing(found.findings)
    if as_json:
        _print_json(found.to_dict())
    else:
        _console().print(render_audit(found))
    if failing:
        named = [f"{f.name}{f' of {f.about}' if f.about else ''} ({f.verdict})" for f in failing]
        print(f"failed: {', '.join(named)}", file=sys.stderr)
        sys.exit(1)


@cli.command()
def report(
    store: StorePath,
    to: Annotated[Path, typer.Option(help="folder for the page and its pictures; a former report is replaced")],
    scoring: Scoring = None,
) -> None:
    """Write plots and a page about a store, its scoring and its masks."""
    from tokenstats import Store
    from tokenstats.inspect import report as run

    print(f"wrote {run(Store(store), to, scoring=scoring)}")


@cli.command()
def app(
    store: Annotated[Path | None, typer.Argument(metavar="[STORE]", help="the store to open with")] = None,
    port: Annotated[int, typer.Option(help="where the app listens, on this machine only", min=1, max=65535)] = 8501,
) -> None:
    """Open the app: tokens, thresholds, masks."""
    import subprocess

    from tokenstats.inspect import app_command

    sys.exit(subprocess.call(app_command(store, port)))


@cli.command()
def train(
    store: StorePath,
    mask: Annotated[str, typer.Option(help="the tokens to learn: a mask of the store, or none for plain SFT")],
    model: Annotated[str, typer.Option(help="what to fine-tune: folder, Hub id or adapter folder")],
    out: Annotated[Path, typer.Option(help="folder for the result; new or empty")],
    epochs: Annotated[float, typer.Option(help="passes over the rows")] = _DEFAULTS.epochs,
    max_steps: Annotated[int | None, typer.Option(help="optimizer steps, instead of epochs")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="the peak [2e-5, or 2e-4 with LoRA]")] = None,
    batch_size: Annotated[int, typer.Option(help="sequences in one forward pass")] = _DEFAULTS.batch_size,
    accumulation: Annotated[int, typer.Option(help="forward passes in one optimizer step")] = _DEFAULTS.accumulation,
    schedule: Annotated[str, typer.Option(help="cosine, linear or constant")] = _DEFAULTS.schedule,
    warmup_ratio: Annotated[float, typer.Option(help="share of the steps that the rate rises over")] = _DEFAULTS.warmup_ratio,
    weight_decay: Annotated[float, typer.Option(help="decoupled, as in AdamW")] = _DEFAULTS.weight_decay,
    normalise: Annotated[
        str, typer.Option(help="divide a weighted mask's loss by: weights (their sum) or targets (the kept tokens)")
    ] = _DEFAULTS.normalise,
    max_grad_norm: Annotated[float, typer.Option(help="gradients are scaled down to it; 0: never")] = _DEFAULTS.max_grad_norm,
    lora_rank: Annotated[int | None, typer.Option(help="train an adapter of this rank instead")] = None,
    lora_alpha: Annotated[float | None, typer.Option(help="scale of the adapter [twice the rank]")] = None,
    lora_targets: Annotated[str, typer.Option(help="modules, by name, separated by commas")] = _DEFAULTS.lora_targets,
    eval_share: Annotated[float, typer.Option(help="share of the rows held out")] = _DEFAULTS.eval_share,
    eval_steps: Annotated[int | None, typer.Option(help="evaluate every so many steps, not only at the ends")] = None,
    save_steps: Annotated[int | None, typer.Option(help="write a checkpoint every so many steps")] = None,
    logging_steps: Annotated[int, typer.Option(help="steps averaged in one entry of the history")] = _DEFAULTS.logging_steps,
    report_to: Annotated[str, typer.Option(help="none, or tensorboard, wandb, … as installed")] = _DEFAULTS.report_to,
    seed: Annotated[int, typer.Option(help="of the order of rows, dropout and a new adapter")] = _DEFAULTS.seed,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16")] = _DEFAULTS.dtype,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = _DEFAULTS.device,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="trade time for memory")
    ] = _DEFAULTS.gradient_checkpointing,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in --out")] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on the tokens that a mask keeps."""
    options = TrainOptions(
        epochs=epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        accumulation=accumulation,
        schedule=schedule,
        warmup_ratio=warmup_ratio,
        weight_decay=weight_decay,
        normalise=normalise,
        max_grad_norm=max_grad_norm,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=lora_targets,
        eval_share=eval_share,
        eval_steps=eval_steps,
        save_steps=save_steps,
        logging_steps=logging_steps,
        report_to=report_to,
        seed=seed,
        dtype=dtype,
        device=device,
        gradient_checkpointing=gradient_checkpointing,
    )
    from tokenstats import Store
    from tokenstats.training import train as run

    try:
        done = run(Store(store), model=model, out=out, mask=mask, options=options, resume=resume)
    finally:
        _leave_process_group()
    if as_json:
        _print_json(asdict(done))
        return
    print(f"{done.out}: {done.steps:,} steps over {done.rows:,} rows, {done.kept_tokens:,} tokens learned in an epoch")
    if done.rows_left_out:
        print(f"  left out {done.rows_left_out:,} rows with nothing to learn")
    print(f"  loss {done.loss:.4f} nats: {done.loss_formula} of each optimizer batch")
    if done.eval_loss is not None:
        before = f"{done.eval_loss_before:.4f} before, " if done.eval_loss_before is not None else ""
        print(f"  {done.eval_rows:,} rows held out, all their targets: {before}{done.eval_loss:.4f} after")


@cli.command()
def export(
    store: StorePath,
    mask: Annotated[str, typer.Option(help="the tokens to learn: a mask of the store, or none for all targets")],
    to: Annotated[Path, typer.Option(help="folder for the files; new or empty")],
    form: Annotated[str | None, typer.Option(help="labels, loss-mask or weights [what the trainer reads, or labels]")] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            "--for", help="whose config to print: trl, transformers, axolotl, llama-factory, unsloth, skyrl, verl or tinker"
        ),
    ] = None,
    save_to_disk: Annotated[bool, typer.Option("--save-to-disk", help="also as datasets.load_from_disk reads it")] = False,
    compat: Annotated[str | None, typer.Option(help="trl-legacy: also what TRL 0.24 to 1.6 keeps when it packs")] = None,
    ignore_weights: Annotated[
        bool, typer.Option("--ignore-weights", help="of a mask that weighs, export only which tokens it keeps")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the store's rows and what is learned of them for another trainer."""
    from tokenstats import Store
    from tokenstats.training import export as run

    done = run(
        Store(store),
        mask=mask,
        to=to,
        form=form,
        trainer=trainer,
        save_to_disk=save_to_disk,
        compat=compat,
        ignore_weights=ignore_weights,
    )
    if as_json:
        _print_json(asdict(done))
        return
    print(
        f"{done.to}: {done.rows:,} rows, {done.tokens:,} tokens, {done.kept_tokens:,} learned, the longest row {done.longest:,}"
    )
    if done.rows_left_out:
        print(f"  left out {done.rows_left_out:,} rows with nothing to learn")
    print(f"\n{done.how_to_read.rstrip()}")


def _leave_process_group() -> None:
    """Under torchrun: a process that leaves while others still talk to it is aborted at its own exit, now and then."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _console() -> "Console":
    from rich.console import Console

    return Console(soft_wrap=False)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    main()
