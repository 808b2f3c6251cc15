"""Several scorings at once on one machine: what threads that wait for each other cost, by how they wait.

    python -m pipelines.bench_load --runs 1,4,7 --rounds 3

Each run scores the bundled data with the bundled pair, in a process of its own; all of them begin at the same moment, with
models, code and caches warm. Variants take turns within each round, so that other work on the machine meets all alike.
Seconds of CPU (user and system) are what a run burns, waiting threads that spin included; wall is until the last one is done.
Page faults are those of a run, without reading from a disk; peak is the most memory it had resident.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipelines.bench_scoring import cpu_name

DATA = Path(__file__).resolve().parent.parent / "data"
VARIANTS = {
    "libgomp's own": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "short spin": {"GOMP_SPINCOUNT": "1000"},
    "one thread": {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    "numba: workqueue": {"NUMBA_THREADING_LAYER": "workqueue"},
    "memory given back": {"BENCH_MEMORY": "given back"},
}


def score_when_told(folder: Path, rows: int, alone: bool) -> None:
    """What a run is: warm up, say so, wait for a line, score, say what it took."""
    from tokenstats.computing import compute
    from tokenstats.corpus.options import CorpusOptions
    from tokenstats.scoring import scorer

    if os.environ.get("BENCH_MEMORY") == "given back":
        scorer.keep_freed_memory = lambda: None
    lines = (DATA / "sft.jsonl").read_text().splitlines(keepends=True)
    for name, count in (("few", 8), ("many", rows)):
        (folder / f"{name}.jsonl").write_text("".join(lines[:count]))
    models = {"model": str(DATA / "models" / "warmup"), "reference": str(DATA / "models" / "base")}
    compute(folder / "few.jsonl", **models, store=folder / "few")
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in os.listdir("/proc/self/task") if alone else ():
        os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(1))
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    compute(folder / "many.jsonl", **models, store=folder / "many", corpus=CorpusOptions(part_tokens=20_000))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    faults, peak = after.ru_minflt - before.ru_minflt, after.ru_maxrss / 2**10
    print(json.dumps([time.perf_counter() - started, cpu, faults / 1e6, peak]))


Taken = tuple[float, float, float, float]
"""Seconds, seconds of CPU, millions of page faults, MiB."""


def at_once(count: int, environment: dict[str, str], rows: int, alone: bool) -> Taken:
    """Until the last of the runs is done; of the rest the mean over them."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "NUMBA_"))}
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pipelines.bench_load", "--rows", str(rows), *["--alone"] * alone, "--inside"]
        runs = []
        for i in range(count):
            folder = Path(place, str(i))
            folder.mkdir()
            runs.append(
                subprocess.Popen(
                    [*command, str(folder)],
                    env=own | environment,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )
        for run in runs:
            assert run.stdout is not None
            if run.stdout.readline() != "ready\n":
                raise SystemExit("a run did not get ready")
        for run in runs:
            assert run.stdin is not None
            run.stdin.write("\n")
            run.stdin.flush()
        results = [json.loads(run.communicate()[0]) for run in runs]
    walls, *others = zip(*results, strict=True)
    cpu, faults, peak = map(statistics.mean, others)
    return max(walls), cpu, faults, peak


def show(what: str, wall: float, cpu: float, faults: float, peak: float) -> None:
    of_run = f"CPU of a run {cpu:6.1f} s   page faults {faults:6.2f} million   peak {peak:6.0f} MiB"
    print(f"{what:40} wall {wall:6.1f} s   {of_run}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="1,4,7", help="how many at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--alone", action="store_true", help="above all else that runs, as if nothing did; for root")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        score_when_told(Path(args.inside), args.rows, args.alone)
        return
    print(f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.rows} rows")
    for count in map(int, args.runs.split(",")):
        found: dict[str, list[Taken]] = {name: [] for name in args.variants.split(",")}
        for _ in range(args.rounds):
            for name, taken in found.items():
                taken.append(at_once(count, VARIANTS[name], args.rows, args.alone))
                show(f"  {count} at once  {name}", *taken[-1])
        for name, taken in found.items():
            show(f"{count} at once  {name}, medians", *map(statistics.median, zip(*taken, strict=True)))


if __name__ == "__main__":
    main()
