"""tokenstats compute."""

from pathlib import Path
from typing import Annotated

import typer

from tokenstats.cli.options import AsJson, TrustRemoteCode
from tokenstats.cli.printing import many, print_json


def compute(
    dataset: Annotated[str, typer.Argument(help=".json, .jsonl or .parquet file, a folder of them, or a Hub dataset id")],
    model: Annotated[str, typer.Option(help="the scored model: folder, Hub id or adapter folder")],
    store: Annotated[Path, typer.Option(help="folder of the store; made where it is not there")],
    reference: Annotated[str | None, typer.Option(help="the model that KL is measured from")] = None,
    name: Annotated[str | None, typer.Option(help="name of the scoring; by default the model folder's")] = None,
    columns: Annotated[str | None, typer.Option(help="the dataset's own names: prompt=question,completion=answer")] = None,
    split: Annotated[str | None, typer.Option(help="split of a Hub dataset [train]")] = None,
    chat: Annotated[bool, typer.Option(help="put plain prompts and completions into the chat template")] = True,
    template: Annotated[
        str, typer.Option(help="chat template: own, training (the one trl ships in its place) or a Jinja file")
    ] = "own",
    special_text: Annotated[
        str, typer.Option(help="special tokens written out in the data: as-is (they are tokens) or plain (characters)")
    ] = "as-is",
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
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Tokenize a dataset and score it with one model, or with a model and its reference."""
    from tokenstats.computing import compute as run
    from tokenstats.corpus.formats import parse_columns

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
        template=template,
        special_text=special_text,
        trust_remote_code=trust_remote_code,
    )
    if not built.has(f"stats/{scoring}"):
        if as_json:
            print_json({"store": str(store), "scoring": scoring, "complete": False})
        else:
            print(f"{store}: the parts of this worker are done; the last worker writes the manifest")
        return
    manifest = built.scorings[scoring].manifest
    if as_json:
        print_json({"store": str(store), "scoring": scoring, **manifest.model_dump(mode="json", exclude={"parts"})})
        return
    whole, data = built.manifest, built.manifest.dataset
    print(
        f"{store}: {many(whole.sequences, 'sequence')}, {whole.tokens:,} tokens, {whole.targets:,} targets "
        f"(by {whole.template.targets})"
    )
    if data.truncated:
        print(f"  {many(data.truncated, 'sequence')} cut at {whole.template.max_length} tokens")
    for reason, count in data.dropped.items():
        print(f"  left out {many(count, 'row')}: {reason} (first: row {data.first_dropped[reason]})")
    for remark, count in data.noted.items():
        print(f"  note: {many(count, 'row')}: {remark} (first: row {data.first_noted[remark]})")
    if manifest.batch_tokens is not None and manifest.batch_tokens < batch_tokens:
        print(f"  memory ran out: batches came down from {batch_tokens:,} to {manifest.batch_tokens:,} tokens")
    means = "  ".join(f"{c} {manifest.means[c]:.4f}" for c in ("logprob", "entropy", "kl", "reverse_kl") if c in manifest.means)
    print(
        f"scoring {scoring}: {manifest.scored:,} tokens scored in {manifest.dtype} on {manifest.device}, "
        f"padding {manifest.padding:.1%}, sums by {manifest.reduction}"
    )
    print(f"  means in nats: {means}")
