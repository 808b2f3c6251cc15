"""The whole road on the bundled data: warm up, score, mask, train three ways, measure, report.

    make demo            or            python -m pipelines.demo --out runs/demo

    1  warm up     the base learns the SFT set for a moment: a policy that has moved
    2  compute     every target token of the SFT set, warm-up against base
    3  mask        eksft, and a random control that drops as many tokens in every row
    4  train       from the base: plain SFT, EKSFT, random; with the warm-up, as many optimizer steps each
    5  evaluate    pass@1 and pass@16 on held-out problems
    6  report      pictures and a page

The base solves nearly every problem, and is right in a third of its samples. The SFT set is scarce and noisy: 50 right
solutions in a new wording, half of their steps behind a sentence that nobody needs. This is the regime in which the choice of
tokens matters; docs/STUDY.md says over many runs how much, and where it does not.
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

import numpy as np
import transformers
from rich.console import Console
from rich.table import Table

from pipelines.chats import load_chats
from pipelines.study.measures import SAMPLES, Policy, mean_pass_at
from pipelines.study.statistics import paired_bootstrap
from tokenstats import Rule, Store, build_mask, compare
from tokenstats.computing import compute
from tokenstats.inspect.report import report
from tokenstats.training import TrainOptions, train

DATA = Path(__file__).resolve().parent.parent / "data"
BASE = DATA / "models" / "base"
SFT, TEST = DATA / "scarce.jsonl", DATA / "test.jsonl"
PASSES = 8
FINE_TUNE = TrainOptions(learning_rate=3e-4, batch_size=16, accumulation=1, beta2=0.95, weight_decay=0.1, warmup_ratio=0.0)
MARKER = "made-by-demo"
WHAT_IT_SHOWS = """
What to see: fifty noisy solutions, learned whole, cost the base right samples, which it keeps without the tokens that EKSFT
leaves out; the random control tells whether that is the choice of tokens or their number.
Where not to see it: where the uncertain tokens are what there is to learn, as with the larger numbers of data/sft.jsonl. And
this is one seed of a small model: docs/STUDY.md has more."""
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


def warm_up(folder: Path, base: Path, sft: Path, options: TrainOptions) -> Path:
    """Fine-tune the base on all targets. The store that this needs is scratch and goes."""
    scratch = folder.parent / f"{folder.name}-store"
    store = compute(sft, model=str(base), store=scratch).store
    train(store, model=str(base), mask="none", out=folder, options=options)
    shutil.rmtree(scratch)
    return folder


def measure(folder: Path, rows: list[dict]) -> list[int]:
    """How many of the samples are right, of each problem."""
    return Policy.load(folder).count_correct(rows, SAMPLES, seed=1)[0]


def print_results(correct: dict[str, list[int]], shares: dict[str, float]) -> None:
    problems = len(next(iter(correct.values())))
    table = Table(title=f"Held-out problems: {problems}, with {SAMPLES} samples each")
    for heading in ("model", "tokens learned", "pass@1", f"pass@{SAMPLES}"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, counts in correct.items():
        learned = f"{shares[name]:.0%}" if name in shares else "-"
        table.add_row(name, learned, *(f"{mean_pass_at(k, counts, SAMPLES):.1%}" for k in (1, SAMPLES)))
    console.print(table)
    for other in ("plain SFT", "random control"):
        pairs = (np.array(correct["EKSFT"]) - np.array(correct[other])) / SAMPLES
        found = paired_bootstrap([pairs[None]])
        console.print(
            f"EKSFT − {other}: {found.estimate:+.1%} pass@1, from {found.low:+.1%} to {found.high:+.1%} "
            "(95 %, over problems; one seed)",
            highlight=False,
            soft_wrap=True,
        )
    console.print(WHAT_IT_SHOWS, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--problems", type=int, default=200, help="held-out problems to evaluate on")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    started, out = time.time(), args.out
    fresh_folder(out)
    a_pass = math.ceil(len(load_chats(SFT)) / FINE_TUNE.batch_size)

    with step("1  warm-up: the base, one pass of plain SFT"):
        warm_up(out / "warmup", BASE, SFT, replace(FINE_TUNE, max_steps=a_pass, seed=1))
    with step("2  compute: warm-up against base"):
        scoring = compute(SFT, model=str(out / "warmup"), reference=str(BASE), store=out / "store")
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
    masks = {"plain SFT": "none", "EKSFT": "eksft", "random control": "random"}
    with step("4  train: three times from the base"):
        for name, mask in masks.items():
            steps = a_pass * (PASSES - (mask != "none"))  # the warm-up is charged to whoever needs it
            options = replace(FINE_TUNE, max_steps=steps)
            summary = train(Store(store.path), model=str(BASE), mask=mask, out=out / f"model-{mask}", options=options)
            print(f"  {name}: {summary.steps} steps, loss {summary.loss:.4f}")
    with step(f"5  evaluate: {SAMPLES} samples each"):
        folders = {"base": BASE, **{name: out / f"model-{mask}" for name, mask in masks.items()}}
        rows = load_chats(TEST)[: args.problems]
        correct = {name: measure(folder, rows) for name, folder in folders.items()}
    with step("6  report"):
        report(store, out / "report")
    (out / "results.json").write_text(json.dumps({"samples": SAMPLES, "correct": correct}) + "\n")

    print_results(
        correct, {"plain SFT": 1.0, "EKSFT": eksft.kept / eksft.targets, "random control": random.kept / random.targets}
    )
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
