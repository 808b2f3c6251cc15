"""A report: pictures and a page about a store, its statistics and its masks.

report(Store("runs/gsm8k"), "runs/gsm8k-report")  # returns runs/gsm8k-report/index.html
"""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from tokenstats.errors import InputError, one_line
from tokenstats.inspect.audit.audit import Audit, audit
from tokenstats.inspect.histograms import Distributions, measure
from tokenstats.inspect.render import figures
from tokenstats.inspect.render.audit_blocks import findings_table, means_table, summary_table, worth_saying
from tokenstats.inspect.render.blocks import Block, Look, Note, Shares, Table
from tokenstats.inspect.render.comparison_blocks import jaccard_table
from tokenstats.inspect.render.figure_training import figure_of_run
from tokenstats.inspect.render.html_report import Example, Picture, Section, report_page
from tokenstats.inspect.render.store_blocks import store_facts
from tokenstats.inspect.threshold_lines import cuts
from tokenstats.inspect.tokens.payload import decisions_payload, row_payload
from tokenstats.inspect.tokens.sequence import choose_scoring, read_sequence
from tokenstats.inspect.tokens.shown_row import row_of_mask
from tokenstats.masking.compare import compare
from tokenstats.masking.rule import Rule, rule_text
from tokenstats.store import Store, open_store
from tokenstats.store.drafts import draft_of, put_in_place
from tokenstats.store.manifests import now

MARKER = ".tokenstats-report"
"""A file that lists what a report is made of: a folder with it may be replaced by a newer report."""

_EXAMPLES = 3


def report(
    store: Store | str | Path,
    to: str | Path,
    scoring: str | None = None,
    masks: Sequence[str] | None = None,
    run: str | Path | None = None,
) -> Path:
    """Write a report. Its folder appears whole or not at all; a former report there is replaced, in one step where it can be.

    Args:
        store: A store, or its path.
        to: The folder.
        scoring: Whose statistics; None: those that the masks read, or the store's only scoring.
        masks: Names of masks; None: all of the store's.
        run: A folder of weights that were trained on this store, whose course is drawn.

    Returns:
        The path of its ``index.html``.

    Raises:
        InputError: The folder holds anything else, or the run's holds none of this store.
        StoreError: A mask or scoring is not there.
    """
    store, page, to = open_store(store), Path(to) / "index.html", Path(to).resolve()
    _check_place(to)
    if masks is None:
        store.masks.check_all_listed()
    names = list(store.masks) if masks is None else [store.masks[name].name for name in dict.fromkeys(masks)]
    scoring = _scoring_for(store, names, scoring)
    try:
        with draft_of(to) as draft:
            (draft / "img").mkdir()
            _write(store, draft, scoring, names, Path(run) if run is not None else None)
            _check_place(to)
            put_in_place(draft, to)
    except OSError as error:
        raise InputError(f"cannot write the report to {to}: {error.strerror or error}") from error
    return page


def _check_place(to: Path) -> None:
    """InputError where ``to`` holds anything that a former report did not write."""
    if not to.exists():
        return
    if not to.is_dir():
        raise InputError(f"{to} is a file; expected a folder for the report")
    there = {p.relative_to(to).as_posix() for p in to.rglob("*") if not p.is_dir() or p.is_symlink()}
    if not there:
        return
    try:
        known = set(json.loads((to / MARKER).read_text(encoding="utf-8"))["files"]) | {MARKER}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{to} holds files that are not a report; choose a new folder, or empty it") from None
    if foreign := sorted(there - known):
        raise InputError(f"{to} is a report, but {foreign[0]} in it is not part of it; move it away, or choose another folder")


def _scoring_for(store: Store, masks: Sequence[str], scoring: str | None) -> str | None:
    if scoring is not None or len(store.scorings) <= 1:
        return choose_scoring(store, None, scoring)
    read = {choose_scoring(store, store.masks[name].manifest, None) for name in masks} - {None}
    return read.pop() if len(read) == 1 else store.scorings.choose(None).name  # which says that it needs to be chosen


def _write(store: Store, folder: Path, scoring: str | None, masks: list[str], run: Path | None) -> None:
    with tqdm(desc="report", total=2 * len(masks) + 3, unit=" steps", disable=None) as bar:
        found = measure(store, scoring, masks)
        bar.update()
        plain, audits = audit(store, None, scoring), []
        for name in masks:
            audits.append(audit(store, name, scoring))
            bar.update()
        facts = store_facts(store.manifest, store.scorings[scoring] if scoring is not None else None)
        sections = [
            Section("overview", "Overview", [facts, summary_table(plain, audits)]),
            Section("checks", "Checks", [findings_table(worth_saying(plain, audits))]),
        ]
        if found.columns:
            sections.append(Section("statistics", "Statistics", list(_statistics(found, folder))))
        if masks:
            sections.append(Section("place", "Place in the reply", [_place(found, masks, folder)]))
        bar.update()
        for name, of_mask in zip(masks, audits, strict=True):
            sections.append(Section(f"mask-{name}", f"Mask {name}", list(_mask(store, found, of_mask, scoring, folder))))
            bar.update()
        if len(masks) > 1:
            sections.append(Section("comparison", "Comparison", list(_comparison(store, masks))))
        if run is not None:
            sections.append(Section("training", "Training", [_training(store, run, folder)]))
        sections.append(Section("examples", "Examples", list(_examples(store, scoring, masks))))
        bar.update()
    title, footer = f"tokenstats report: {store.path.resolve().name}", f"made by tokenstats, {now()}, store {store.fingerprint}"
    (folder / "index.html").write_text(report_page(title, sections, footer), encoding="utf-8")
    written = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    (folder / MARKER).write_text(json.dumps({"files": written}) + "\n", encoding="utf-8")


def _statistics(found: Distributions, folder: Path) -> Iterator[Picture]:
    caption = "All targets; counts on a logarithmic scale."
    yield _picture(folder, "distribution", figures.distribution_figure(found, None), "Histograms", caption)
    if found.has_kl:
        caption = "Each cell counts targets of about this entropy and KL, on a logarithmic colour scale."
        yield _picture(folder, "joint", figures.joint_figure(found, None), "Entropy against KL", caption)
    caption = "Median and 80 % of the targets, for each of a reply's first tokens."
    yield _picture(folder, "profile", figures.profile_figure(found), "By place in the reply", caption)


def _place(found: Distributions, masks: list[str], folder: Path) -> Picture:
    caption = "A level line: the mask prefers no place. Beginnings decide how a reply is laid out, ends whether it stops."
    return _picture(folder, "place", figures.position_figure(found, masks), "Share dropped by place in the reply", caption)


def _mask(store: Store, found: Distributions, of_mask: Audit, scoring: str | None, folder: Path) -> Iterator[Block | Picture]:
    assert of_mask.mask is not None
    name, manifest = of_mask.mask, store.masks[of_mask.mask].manifest
    rule = Rule.from_dict(manifest.rule)
    about = [text.rstrip(".") + "." for text in (rule.description, rule.source and f"Source: {rule.source}") if text]
    yield Note(rule_text(of_mask.rule or {}), Look.CODE)
    yield Note(" ".join(about))
    yield Shares("clause", of_mask.by_clause, numbered=True)
    yield Shares("class of token", of_mask.by_class)
    if of_mask.means:
        yield means_table(of_mask)
    if found.columns:
        lines = cuts(rule, manifest.thresholds, scoring)
        per_group = "The rule has no threshold over the whole dataset that could be marked."
        caption = "Dashed: thresholds over the whole dataset." if any(lines.values()) else per_group
        figure = figures.distribution_figure(found, name, lines)
        yield _picture(folder, f"distribution-{name}", figure, f"Histograms under {name}", caption)
    if found.has_kl:
        caption = "Left: how many targets there are; right: how many of them the mask drops."
        yield _picture(folder, f"joint-{name}", figures.joint_figure(found, name), f"Entropy and KL under {name}", caption)
    caption = "A dot stands for a space. A long grey bar with little orange: a frequent word that the mask mostly leaves alone."
    figure = figures.dropped_tokens_figure(of_mask.most_dropped)
    yield _picture(folder, f"tokens-{name}", figure, f"Tokens most often dropped by {name}", caption)


def _comparison(store: Store, masks: list[str]) -> Iterator[Note | Table]:
    same = "Jaccard index of what two masks drop: 1 where they drop the same tokens."
    yield Note(f"{same} In brackets: two random masks of these sizes.", Look.PLAIN)
    yield jaccard_table(masks, {(a, b): compare(store, a, b) for a, b in combinations(masks, 2)})


def _training(store: Store, run: Path, folder: Path) -> Picture:
    figure = figure_of_run(run, store.fingerprint)
    caption = f"The run {one_line(run.resolve().name, 80)}, by optimizer step. Dashed: rows held out."
    return _picture(folder, "training", figure, "The course of the training", caption)


def _examples(store: Store, scoring: str | None, masks: list[str]) -> Iterator[Example]:
    count = store.manifest.sequences
    subjects: Sequence[str | None] = masks or [None]
    for number in sorted({i * count // _EXAMPLES for i in range(_EXAMPLES)}):
        rows = [row_of_mask(store, name, number, scoring) for name in subjects]
        decisions = [decisions_payload(row.view, row.name, reasons=row.reasons, weight=row.weight) for row in rows]
        yield Example(f"Row {number}", row_payload(read_sequence(store, number, scoring=scoring)), decisions)


def _picture(folder: Path, name: str, figure: Figure, alt: str, caption: str) -> Picture:
    path = f"img/{re.sub(r'[^A-Za-z0-9._-]', '-', name)}.png"
    figure.savefig(folder / path)
    return Picture(path, alt, caption, *figure.canvas.get_width_height())
