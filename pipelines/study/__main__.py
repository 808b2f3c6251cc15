"""Run the study, or go on with it; or print what its results say.

    python -m pipelines.study --pilot          # the primary cell in small, with a table: within 15 minutes on two cores
    python -m pipelines.study                  # all runs that have no result yet, in the order of their worth
    python -m pipelines.study --table          # the tables of docs/STUDY.md, from the committed results

Kill it anywhere: the same command goes on. Results are lines in ``data/study/``; scratch is in ``runs/study/``. The matrices
are small: two processes of one thread (OMP_NUM_THREADS=1), one with ``--base base`` and one with ``--base base-1``, are faster
than one process of two.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import transformers

from pipelines.study.design import CELLS, PRIMARY, SEARCH_SEED, plan
from pipelines.study.results import BASES, FOLDER, KINDS, Results, committed
from pipelines.study.tables import study_tables
from pipelines.tinymath import MODELS, ROOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pilot", action="store_true", help="a few runs of the first base, apart from those that count")
    parser.add_argument("--table", action="store_true", help="train nothing: print what is there")
    parser.add_argument("--base", choices=BASES, help="only this base: two processes then share the work, one core each")
    parser.add_argument("--cell", choices=[cell.name for cell in CELLS], help="only this cell, after SFT")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "study", help="scratch folder")
    args = parser.parse_args()
    bases = [name for name in BASES if (MODELS / name).exists() and args.base in (None, name)]
    if not args.table:
        transformers.utils.logging.disable_progress_bar()
        if args.pilot:
            do_pilot(args.work)
        else:
            for base in bases:
                do_base(base, args.work, args.cell)
    tables = study_tables(list(Results(FOLDER / "pilot.jsonl")), [], []) if args.pilot else committed_tables()
    for title, table in tables.items():
        print(f"\n{title}\n\n{table}")


def committed_tables() -> dict[str, str]:
    """Of the results that lie in ``data/study/``."""
    return study_tables(*map(committed, KINDS))


def do_pilot(work: Path) -> None:
    from pipelines.study.runner import PILOT_SIZE, Runner

    Runner(Results(FOLDER / "pilot.jsonl"), work, _clock(), PILOT_SIZE).do_all(plan(BASES[:1], pilot=True))


def do_base(base: str, work: Path, cell: str | None) -> None:
    """What the primary comparisons need, RL from there, the other arms of the primary cell, the other cells; or one cell."""
    from pipelines.study.rl_runs import do_rl, rl_plan
    from pipelines.study.runner import Runner
    from pipelines.study.stores import do_stores, stores_plan
    from pipelines.study.wording import do_wording, wording_plan

    runner, runs = Runner(Results(FOLDER / f"sft-{base}.jsonl"), work, _clock()), list(plan((base,)))
    if cell is not None:
        wanted = next(known for known in CELLS if known.name == cell)
        searches = [run for run in runs if run.cell == wanted.searched and run.seed == SEARCH_SEED]
        runner.do_all(searches + [run for run in runs if run.cell == wanted])
        return
    runner.do_all(run for run in runs if run.cell == PRIMARY and run.arm.starts_rl)
    do_wording(wording_plan(base), runner, Results(FOLDER / f"wording-{base}.jsonl"))
    do_rl(rl_plan((base,)), runner, Results(FOLDER / f"rl-{base}.jsonl"))
    do_stores(stores_plan(base), runner, Results(FOLDER / f"stores-{base}.jsonl"))
    runner.do_all(runs)


def _clock() -> Callable[[str], None]:
    started = time.monotonic()
    return lambda line: print(f"{time.monotonic() - started:6.0f} s  {line}", flush=True)


if __name__ == "__main__":
    main()
