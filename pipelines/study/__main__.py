"""Run the study, or go on with it; or print what its results say.

    python -m pipelines.study --pilot          # the primary cell in small, with a table: within 15 minutes on two cores
    python -m pipelines.study                  # all runs that have no result yet, in the order of their worth
    python -m pipelines.study --table          # the tables of docs/STUDY.md, from the committed results

Kill it anywhere: the same command goes on. Results are lines in ``data/study/``; scratch is in ``runs/study/``.
"""

import argparse
import time
from pathlib import Path

import transformers

from pipelines.study.design import plan
from pipelines.study.results import FOLDER, Results
from pipelines.study.tables import print_tables
from pipelines.tinymath import MODELS, ROOT

BASES = ("base", "base-1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pilot", action="store_true", help="a few runs of the first base, apart from those that count")
    parser.add_argument("--table", action="store_true", help="train nothing: print what is there")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "study", help="scratch folder")
    args = parser.parse_args()
    results = Results(FOLDER / ("pilot.jsonl" if args.pilot else "sft.jsonl"))
    if not args.table:
        from pipelines.study.runner import Runner

        transformers.utils.logging.disable_progress_bar()
        bases = tuple(name for name in BASES if (MODELS / name).exists())
        started = time.monotonic()
        say = lambda line: print(f"{time.monotonic() - started:6.0f} s  {line}", flush=True)  # noqa: E731
        Runner(results, args.work, say).do_all(plan(bases, args.pilot))
    print_tables(results)


if __name__ == "__main__":
    main()
