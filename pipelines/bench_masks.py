"""Masks and sweeps over a store of any size, beside the same in polars: time, tokens a second, peak memory.

    python -m pipelines.bench_masks --tokens 10000000 100000000

Makes stores without a model (pipelines/made_up_store.py) and deletes them. Every job runs in a process of its own, so that
its peak memory is its own; the files are in the page cache. Times are of the job alone, without starting Python; for each
job the median of the rounds. Masks of both kinds are written as Parquet; sweeps write nothing. Needs Linux, for /proc.

polars is used as one would who knows it: lazily over all parts, lists exploded, thresholds from a sorted column, the
streaming engine writing the result. It takes all values equal to a threshold where ours takes exactly the share, and it
proves no seq_ids, names no clauses, and counts nothing but what is kept.
"""

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.made_up_store import END_OF_TURN, made_up_store
from tokenstats import Rule, Store, build_mask
from tokenstats.masking.rule import rule_fields
from tokenstats.masking.sweep import sweep
from tokenstats.masking.variants import parse_vary

ABSOLUTE, DATASET = "kl > 0.5", "top(entropy, 0.2) or top(kl, 0.2)"
SHARES = "f=0.02:0.4:0.02"
COLUMNS = ("entropy", "kl")


def our_mask(rule: Rule, store: Store, workers: int) -> int:
    """How many tokens a mask keeps."""
    return build_mask(store, rule, "bench", replace=True, workers=workers).manifest.kept


def our_sweep(fields: dict[str, Any], vary: str, store: Store, workers: int) -> int:
    """How many tokens the last line of a sweep keeps."""
    found = sweep(store, fields, dict([parse_vary(vary)]), workers=workers)
    assert len(found.lines) == 20
    return found.targets - found.lines[-1].dropped


def polars_tokens(store: Store, *columns: str) -> pl.LazyFrame:
    """One row a token; a statistic is null where the token is no target."""
    tokens, stats = store.scan("tokens").select("seq_id", "input_ids"), store.scan("stats/warm").select(*columns)
    return pl.concat([tokens, stats], how="horizontal").explode("input_ids", *columns)


def polars_mask(drop: pl.Expr, store: Store, *columns: str) -> int:
    keep = pl.col(columns[0]).is_not_null() & (~drop | (pl.col("input_ids") == END_OF_TURN))
    masked = polars_tokens(store, *columns).with_columns(keep=keep).group_by("seq_id", maintain_order=True).agg("keep")
    path = store.path / "polars.parquet"
    masked.sink_parquet(path)
    return int(pl.scan_parquet(path).select(pl.col("keep").list.sum().sum()).collect().item())


def polars_absolute(store: Store, workers: int) -> int:
    return polars_mask(pl.col("kl") > 0.5, store, "kl")


def polars_largest(store: Store, shares: list[float]) -> dict[str, list[float]]:
    """The smallest of the values that each share takes, by column."""
    limits = {}
    for column in COLUMNS:
        values = store.scan("stats/warm").select(pl.col(column).explode()).drop_nulls().collect().to_series().sort()
        limits[column] = [float(values[len(values) - int(share * len(values))]) for share in shares]
    return limits


def polars_dataset(store: Store, workers: int) -> int:
    limits = polars_largest(store, [0.2])
    return polars_mask(pl.any_horizontal(pl.col(c) >= limits[c][0] for c in COLUMNS), store, *COLUMNS)


def polars_eksft(store: Store, workers: int) -> int:
    def top(column: str) -> pl.Expr:
        place = pl.col(column).rank("ordinal", descending=True).over("seq_id")
        return place <= (0.2 * pl.col(column).count().over("seq_id")).floor()

    return polars_mask(pl.any_horizontal(top(c) for c in COLUMNS), store, *COLUMNS)


def polars_sweep(store: Store, workers: int) -> int:
    """Only how many tokens each of the twenty rules keeps: no clauses, overlaps, ends, rows."""
    shares = [float(number) for number in parse_vary(SHARES)[1]]
    limits = polars_largest(store, shares)
    is_end, is_target = pl.col("input_ids") == END_OF_TURN, pl.col("kl").is_not_null()
    kept = [
        (is_target & (is_end | ~pl.any_horizontal(pl.col(c) >= limits[c][i] for c in COLUMNS))).sum().alias(str(i))
        for i in range(len(shares))
    ]
    counted = polars_tokens(store, *COLUMNS).select(kept).collect(engine="streaming")
    return int(counted.row(0)[-1])


JOBS: dict[str, Callable[[Store, int], int]] = {
    f"mask, {ABSOLUTE}": partial(our_mask, Rule(drop=ABSOLUTE)),
    f"mask, {DATASET}": partial(our_mask, Rule(drop=DATASET)),
    "mask, eksft": partial(our_mask, Rule.load("eksft")),
    "mask, rho-1": partial(our_mask, Rule.load("rho-1")),
    "sweep of 20, kl > t": partial(our_sweep, {"drop": "kl > t"}, "t=0.05:1:0.05"),
    "sweep of 20, top(entropy, f) or top(kl, f)": partial(our_sweep, {"drop": DATASET.replace("0.2", "f")}, SHARES),
    "sweep of 20, eksft": partial(our_sweep, rule_fields("eksft"), SHARES),
    f"polars mask, {ABSOLUTE}": polars_absolute,
    f"polars mask, {DATASET}": polars_dataset,
    "polars mask, eksft": polars_eksft,
    "polars sweep of 20, top(entropy, f) or top(kl, f)": polars_sweep,
}
ONE_OF = {  # what a sweep is held against
    "sweep of 20, kl > t": f"mask, {ABSOLUTE}",
    "sweep of 20, top(entropy, f) or top(kl, f)": f"mask, {DATASET}",
    "sweep of 20, eksft": "mask, eksft",
}


def run_job(name: str, path: Path, workers: int) -> None:
    """In a process of its own: prints what one job took, as JSON."""
    store = Store(path)
    started = time.perf_counter()
    kept = JOBS[name](store, workers)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak": peak_memory(), "kept": kept}))


def peak_memory() -> float:
    """GiB that this process held at most. Not ``ru_maxrss``: on Linux that begins at what the parent process held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 2**20


def measured(name: str, path: Path, workers: int, rounds: int) -> dict[str, Any] | None:
    """Medians over the rounds, and the range of the times; None where the job does not come to its end."""
    runs = []
    for _ in range(rounds):
        command = [
            sys.executable,
            "-m",
            "pipelines.bench_masks",
            "--job",
            name,
            "--store",
            str(path),
            "--workers",
            str(workers),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: ended with {done.returncode}: {done.stderr[-300:]}", file=sys.stderr)
            return None
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = [run["seconds"] for run in runs]
    return {
        "seconds": statistics.median(seconds),
        "range": (min(seconds), max(seconds)),
        "peak": max(run["peak"] for run in runs),
        "kept": runs[0]["kept"],
    }


def bench(path: Path, tokens: int, workers: int, rounds: int, only: str) -> None:
    started = time.perf_counter()
    store = made_up_store(path, tokens)
    whole = store.manifest
    print(
        f"\n{whole.tokens:,} tokens, {whole.targets:,} targets, {whole.sequences:,} sequences, {store.part_count} parts", end=""
    )
    print(f" (made in {time.perf_counter() - started:.0f} s); {workers} workers, {rounds} rounds\n")
    print("| job | s | range | M tokens/s | peak GiB | beside | kept |\n|---|---|---|---|---|---|---|")
    times: dict[str, float] = {}
    for name in (name for name in JOBS if only in name):
        found = measured(name, path, workers, rounds)
        if found is None:
            print(f"| {name} | did not end | | | | | |", flush=True)
            continue
        times[name] = found["seconds"]
        other = ONE_OF.get(name, name.removeprefix("polars "))
        beside = f"{found['seconds'] / times[other]:.1f} x" if other != name and other in times else ""
        low, high = found["range"]
        print(
            f"| {name} | {found['seconds']:.2f} | {low:.2f} to {high:.2f} | {whole.tokens / found['seconds'] / 1e6:.1f} "
            f"| {found['peak']:.2f} | {beside} | {found['kept']:,} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="jobs whose name contains this text")
    parser.add_argument("--folder", type=Path, help="where the stores are made, and deleted again")
    parser.add_argument("--job", choices=list(JOBS), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job is not None:
        run_job(args.job, args.store, args.workers)
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, polars {pl.__version__}")
    for tokens in args.tokens:
        folder = Path(tempfile.mkdtemp(prefix="bench-masks-", dir=args.folder))
        try:
            bench(folder / "store", tokens, args.workers, args.rounds, args.only)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
