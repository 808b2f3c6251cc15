"""tokenstats compute."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenstats.cli.printing import Answer, many, with_json
from tokenstats.corpus.options import CorpusOptions
from tokenstats.scoring.options import EngineOptions, ScoringOptions

if TYPE_CHECKING:
    from tokenstats.store.manifests import ScoringManifest, StoreManifest


@with_json
def compute(
    dataset: Annotated[str, typer.Argument(help=".json, .jsonl or .parquet file, a folder of them, or a Hub dataset id")],
    model: Annotated[str, typer.Option(help="the scored model: folder, Hub id or adapter folder")],
    store: Annotated[Path, typer.Option(help="folder of the store; made where it is not there")],
    *,
    reference: Annotated[str | None, typer.Option(help="the model that KL is measured from")] = None,
    name: Annotated[str | None, typer.Option(help="name of the scoring; by default the model folder's")] = None,
    corpus: CorpusOptions,
    scoring: ScoringOptions,
    engine: EngineOptions,
) -> Answer:
    """Tokenize a dataset and score it with one model, or with a model and its reference."""
    from tokenstats.computing import compute as run
    from tokenstats.computing import scoring_name

    done = run(dataset, model=model, store=store, reference=reference, name=name, corpus=corpus, scoring=scoring, engine=engine)
    if done is None:
        facts = {"store": str(store), "scoring": scoring_name(model, name), "complete": False}
        return Answer(facts, lambda: f"{store}: the parts of this worker are done; the last worker writes the manifest")
    facts = {"store": str(store), "scoring": done.name, **done.manifest.model_dump(mode="json", exclude={"parts"})}
    whole, manifest = done.store.manifest, done.manifest
    return Answer(
        facts, lambda: "\n".join([*_tokens(store, whole), *_scoring(done.name, manifest, asked_for=scoring.batch_tokens)])
    )


def _tokens(store: Path, whole: "StoreManifest") -> list[str]:
    data = whole.dataset
    lines = [
        f"{store}: {many(whole.sequences, 'sequence')}, {whole.tokens:,} tokens, {whole.targets:,} targets "
        f"(by {whole.template.found_by})"
    ]
    if data.truncated:
        lines.append(f"  {many(data.truncated, 'sequence')} cut at {whole.template.max_length} tokens")
    for reason, count in data.dropped.items():
        lines.append(f"  left out {many(count, 'row')}: {reason} (first: row {data.first_dropped[reason]})")
    for remark, count in data.noted.items():
        lines.append(f"  note: {many(count, 'row')}: {remark} (first: row {data.first_noted[remark]})")
    return lines


def _scoring(name: str, manifest: "ScoringManifest", asked_for: int) -> list[str]:
    lines = []
    if manifest.batch_tokens is not None and manifest.batch_tokens < asked_for:
        lines.append(f"  memory ran out: batches came down from {asked_for:,} to {manifest.batch_tokens:,} tokens")
    means = "  ".join(f"{c} {manifest.means[c]:.4f}" for c in ("logprob", "entropy", "kl", "reverse_kl") if c in manifest.means)
    return [
        *lines,
        f"scoring {name}: {manifest.scored:,} tokens scored in {manifest.dtype} on {manifest.device}, "
        f"padding {manifest.padding:.1%}, sums by {manifest.reduction}",
        f"  means in nats: {means}",
    ]
