"""The whole road on the bundled data: warm up, score, mask, train three ways, measure, report.

    make demo            or            python -m pipelines.demo --out runs/demo

    1  warm up     the base learns the SFT set for a moment: a policy that has moved
    2  compute     every target token of the SFT set, warm-up against base
    3  mask        eksft, and a random control that drops as many tokens in every row
    4  train       from the base: plain SFT, EKSFT, random; the same number of steps each
    5  evaluate    greedy accuracy and pass@8 on held-out problems
    6  report      pictures and a page

One run of a model of 1.3 million parameters shows how the road goes, not which method wins: differences of a few
points between the three are within the noise that the table states.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipelines.evaluate import evaluate, load_chats
from tokenstats import Rule, Store, build_mask, compare
from tokenstats.computing import compute
from tokenstats.inspect.report import report
from tokenstats.training import TrainOptions, train

DATA = Path(__file__).resolve().parent.parent / "data"
BASE = DATA / "models" / "base"
WARM_UP = TrainOptions(epochs=1, learning_rate=3e-4, batch_size=16, accumulation=1, seed=1)
FINE_TUNE = TrainOptions(epochs=3, learning_rate=5e-4, batch_size=16, accumulation=1)
MARKER = "made-by-demo"
console = Console()


@contextmanager
def step(title: str) -> Iterator[None]:
    started = time.time()
    console.print(f"[bold]{title}[/bold]")
    yield
    console.print(f"  [dim]{time.time() - started:.0f} s[/dim]")


def fresh_folder(out: Path) -> None:
    """Begin anew, but never delete a folder that a demo did not make."""
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise SystemExit(f"{out} exists and was not made by the demo; choose another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / MARKER).touch()


def warm_up(folder: Path, sft: Path = DATA / "sft.jsonl", base: Path = BASE) -> Path:
    """Fine-tune the base for one epoch on all targets. The store that this needs is scratch and goes."""
    scratch = folder.parent / f"{folder.name}-store"
    store = compute(sft, model=str(base), store=scratch).store
    train(store, model=str(base), mask="none", out=folder, options=WARM_UP)
    shutil.rmtree(scratch)
    return folder


def measure(folder: Path, rows: list[dict]) -> dict[str, float]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return evaluate(model, AutoTokenizer.from_pretrained(folder), rows)


def print_results(results: dict[str, dict[str, float]], shares: dict[str, float], problems: int) -> None:
    table = Table(title=f"Held-out problems: {problems}")
    for heading in ("model", "tokens learned", "greedy", "pass@1", "pass@8"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, result in results.items():
        learned = f"{shares[name]:.0%}" if name in shares else "-"
        table.add_row(name, learned, *(f"{result[k]:.1%}" for k in ("greedy", "pass@1", "pass@8")))
    console.print(table)
    error = 1.96 * math.sqrt(0.25 / problems)
    console.print(f"[dim]One seed; a share measured on {problems} problems is uncertain by up to ± {error:.1%} (95 %).[/dim]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--problems", type=int, default=200, help="held-out problems to evaluate on")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    started, out = time.time(), args.out
    fresh_folder(out)
    rows = load_chats(DATA / "test.jsonl")[: args.problems]

    with step("1  warm-up: the base, one epoch of plain SFT"):
        warm_up(out / "warmup")
    with step("2  compute: warm-up against base"):
        scoring = compute(DATA / "sft.jsonl", model=str(out / "warmup"), reference=str(BASE), store=out / "store")
        store, means = scoring.store, scoring.manifest.means
        print(
            f"  {store.manifest.targets:,} target tokens; mean entropy {means['entropy']:.3f}, mean KL {means['kl']:.4f} nats"
        )
    with step("3  mask: eksft, and random with its budget"):
        eksft = build_mask(store, Rule.load("eksft"), "eksft").manifest
        random = build_mask(store, replace(Rule.load("random"), budget="same as eksft"), "random").manifest
        overlap = compare(store, "eksft", "random")
        print(f"  each drops {eksft.targets - eksft.kept:,} of {eksft.targets:,} targets")
        print(f"  Jaccard of the two {overlap.jaccard:.2f}, by chance {overlap.by_chance:.2f}")
    shares = {"plain SFT": 1.0, "EKSFT": eksft.kept / eksft.targets, "random control": random.kept / random.targets}
    masks = {"plain SFT": "none", "EKSFT": "eksft", "random control": "random"}
    results: dict[str, dict[str, float]] = {}
    with step("4  train: three times from the base"):
        for name, mask in masks.items():
            summary = train(Store(store.path), model=str(BASE), mask=mask, out=out / f"model-{mask}", options=FINE_TUNE)
            print(f"  {name}: {summary.steps} steps, loss {summary.loss:.4f}")
    with step("5  evaluate: greedy and 8 samples each"):
        for name, folder in {
            "base": BASE,
            "warm-up": out / "warmup",
            **{n: out / f"model-{m}" for n, m in masks.items()},
        }.items():
            results[name] = measure(folder, rows)
    with step("6  report"):
        report(store, out / "report")
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")

    print_results(results, shares, len(rows))
    console.print(f"Store    {store.path}\nReport   {out / 'report' / 'index.html'}\nResults  {out / 'results.json'}")
    console.print(f"Done in {time.time() - started:.0f} s. Next:")
    for command in (
        f"tokenstats show {store.path} --mask eksft --row 3",
        f"tokenstats audit {store.path} --mask eksft",
        f"tokenstats mask {store.path} --drop 'entropy > 1 and kl > 0.1' --name mine",
        f"tokenstats app {store.path}",
    ):
        console.print(f"  .venv/bin/{command}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
