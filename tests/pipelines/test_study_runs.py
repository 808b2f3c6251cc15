"""Rows, masks and runs of the study, with the bundled base."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from pipelines.labels import Label
from pipelines.study import design, masks, measures
from pipelines.study.design import ARMS, CELLS, PRIMARY, SEARCH_SEED, Cell, Run, arm_named, plan
from pipelines.study.masks import WARM, Rows, moved_runs
from pipelines.study.measures import Policy, entropy_at_forks, kl_on_own_samples
from pipelines.study.results import Results
from pipelines.study.rows import prepare_rows, worked_problems
from pipelines.study.runner import Runner
from pipelines.study.stores import STATISTICS, do_stores
from pipelines.study.training import about_mask, fine_tune, mask_name, precision_and_recall, prepare_mask, steps_that_match
from pipelines.tinymath import held_out_questions
from tokenstats import Rule, Store

SMALL = Cell("A", 16, 0.5)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def rows(base, work) -> Rows:
    return prepare_rows(Run("base", SMALL, arm_named("plain SFT"), 0), AutoTokenizer.from_pretrained(base), work)


def test_every_arm_has_a_name_of_its_own_and_every_run_a_key_of_its_own():
    assert len({arm.name for arm in ARMS}) == len(ARMS)
    keys = [run.key for run in plan(("base", "base-1"))]
    assert len(set(keys)) == len(keys)
    assert CELLS[0] == PRIMARY


def test_a_run_comes_after_what_it_needs():
    seen: set[str] = set()
    for run in plan(("base", "base-1")):
        if run.arm.matches is not None:
            assert replace(run, arm=arm_named(run.arm.matches)).key in seen
        if run.rate is None and run.arm.passes != 0 and run.arm.matches is None:
            searched = replace(run, cell=run.cell.searched, seed=SEARCH_SEED)
            assert {replace(searched, rate=rate).key for rate in run.arm.rates} <= seen
        seen.add(run.key)


def test_arms_have_equal_steps_but_for_a_warm_up_that_is_charged():
    run = Run("base", PRIMARY, arm_named("plain SFT"), 0)
    assert run.steps() == 8 * 4  # 50 rows in batches of 16
    assert {replace(run, arm=arm).steps() for arm in ARMS if arm.charged} == {7 * 4}
    assert replace(run, arm=arm_named("one epoch")).steps() == 4


def test_no_training_row_has_a_question_that_is_held_out_and_larger_cells_hold_the_smaller():
    for cell in (PRIMARY, Cell("B", 50)):
        few, many = (worked_problems(replace(cell, rows=count), seed=1) for count in (20, 60))
        assert [s.text for _, s in few] == [s.text for _, s in many[:20]]
        assert not {p.question for p, _ in many} & held_out_questions()


def test_what_a_store_says_is_of_its_targets_and_said_once(rows, work, tmp_path):
    heard, results = [], Results(tmp_path / "stores.jsonl")
    runner = Runner(Results(tmp_path / "sft.jsonl"), work, heard.append)
    for _ in range(2):
        do_stores([Run("base", SMALL, arm_named("EKSFT"), 0)], runner, results)
    (said,) = results
    assert len(heard) == 1
    views = [rows.store.row(number, scoring=WARM) for number in range(SMALL.rows)]
    for name in STATISTICS:
        values = [v for view in views for v, t in zip(view.statistics[name], view.is_target, strict=True) if t]
        assert said[name] == pytest.approx(np.mean(np.array(values, float)), rel=1e-6)
    assert said["ref_logprob"] < said["logprob"] < 0, "a pass has learned something"


def test_labels_lie_on_the_targets_of_the_store(rows, base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = rows.of_targets("tokens", "input_ids")
    for row, (_, solution) in zip(rows.each(), worked_problems(SMALL, 0), strict=True):
        assert tokenizer.decode(ids[row][:-1]) == solution.text
        assert ids[row][-1] == tokenizer.eos_token_id
        assert len(rows.label[row]) == len(ids[row])


@pytest.mark.parametrize("name", ["random", "random runs", "highest loss"])
def test_controls_leave_out_as_many_tokens_of_each_row_as_eksft_and_never_its_end(rows, name):
    run = Run("base", SMALL, arm_named(name), 0)
    mine, theirs = rows.dropped(prepare_mask(run, rows)), rows.dropped("eksft")
    assert any((mine != theirs).tolist())
    for row in rows.each():
        assert mine[row].sum() == theirs[row].sum() > 0
        assert not mine[row][-1]


def run_lengths(dropped: np.ndarray) -> list[int]:
    return sorted(len(run) for run in "".join("x" if d else " " for d in dropped).split())


def test_random_runs_are_as_long_as_eksfts(rows):
    mine = rows.dropped(prepare_mask(Run("base", SMALL, arm_named("random runs"), 0), rows))
    for row in rows.each():
        assert run_lengths(mine[row]) == run_lengths(rows.dropped("eksft")[row])


def test_every_arrangement_of_runs_is_as_likely():
    dropped, random = np.array([True, True, False, True, False]), np.random.default_rng(0)
    found = [tuple(moved_runs(dropped, random)) for _ in range(6000)]
    # two kept tokens leave three gaps, two of them taken, and the runs come in two orders
    assert len(set(found)) == 3 * 2
    assert all(abs(found.count(one) / 6000 - 1 / 6) < 0.025 for one in set(found))
    assert not moved_runs(np.zeros(4, bool), random).any()


def test_highest_loss_leaves_out_no_token_of_lower_loss_than_one_it_keeps(rows):
    dropped = rows.dropped(prepare_mask(Run("base", SMALL, arm_named("highest loss"), 0), rows))
    for row in rows.each():
        nll, out = rows.nll[row][:-1], dropped[row][:-1]
        assert nll[out].min() >= nll[~out].max()


def test_the_oracle_leaves_out_just_what_is_labelled_style_or_noise(rows):
    about = about_mask(rows, prepare_mask(Run("base", SMALL, arm_named("oracle"), 0), rows))
    assert precision_and_recall(about) == (1.0, 1.0)
    assert about["dropped"]["forced"] == about["dropped"]["fork"] == 0


def test_precision_and_recall_by_hand():
    about = {
        "targets": {"forced": 50, "fork": 10, "style": 30, "noise": 10},
        "dropped": {"forced": 5, "fork": 5, "style": 6, "noise": 4},
    }
    assert precision_and_recall(about) == (0.5, 0.25)


def test_steps_are_found_where_the_kl_is_nearest():
    curve = {n: n**2 / 10 for n in range(1, 33)}
    assert steps_that_match(10.1, 32, curve.__getitem__) == (10, 10.0)
    assert steps_that_match(0.0, 32, curve.__getitem__) == (1, 0.1)
    assert steps_that_match(1e9, 32, curve.__getitem__) == (32, curve[32])
    assert steps_that_match(curve[31], 32, curve.__getitem__) == (31, curve[31])


def test_kl_on_own_samples_is_zero_for_the_base_itself_and_a_mean_of_exact_sums_otherwise(base, warmup, monkeypatch):
    monkeypatch.setattr(measures, "FEW_PROMPTS", 3)
    one, other = Policy.load(warmup), Policy.load(base)
    assert kl_on_own_samples(other, other, PRIMARY) == 0.0
    replies = one.sample(prompts := one.prompts(measures.problems_for(PRIMARY, "test")[:3]), measures.FEW_SAMPLES, 500)
    terms: list[float] = []
    for prompt, of_prompt in zip(prompts, replies, strict=True):
        for reply in of_prompt:
            whole = torch.tensor([prompt + [*reply, one.tokenizer.eos_token_id][: measures.MOST_TOKENS]])
            with torch.no_grad():
                p, q = (
                    m.model(input_ids=whole).logits[0, :, : len(one.tokenizer)].double().log_softmax(-1) for m in (one, other)
                )
            terms += (p.exp() * (p - q)).sum(-1)[len(prompt) - 1 : -1].tolist()
    assert kl_on_own_samples(one, other, PRIMARY) == pytest.approx(np.mean(terms), rel=1e-3)


def test_entropy_at_forks_lies_between_certainty_and_chance(base, monkeypatch):
    monkeypatch.setattr(measures, "FEW_PROMPTS", 10)
    assert 0 < entropy_at_forks(Policy.load(base), PRIMARY) < np.log(700)


def test_a_result_is_kept_and_a_line_cut_short_is_not(tmp_path):
    results = Results(tmp_path / "r.jsonl")
    results.add({"key": "a", "pass@1": 0.5})
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"key": "b", "pas')
    again = Results(tmp_path / "r.jsonl")
    assert "a" in again
    assert "b" not in again
    again.add({"key": "b"})
    assert [json.loads(line)["key"] for line in (tmp_path / "r.jsonl").read_text().splitlines()] == ["a", "b"]
    with pytest.raises(ValueError, match="has a line for 'b' already"):
        again.add({"key": "b"})


def test_a_run_that_has_a_result_is_not_done_again(work, tmp_path, monkeypatch):
    said: list[str] = []
    results = Results(tmp_path / "r.jsonl")
    every = measures.problem_set
    monkeypatch.setattr(measures, "problem_set", lambda name: every(name)[:6])
    run = Run("base", SMALL, arm_named("one epoch"), 0, 3e-4)
    Runner(results, work, said.append).do_all([run])
    record = results[run.key]
    assert len(record["correct"]) == 6
    assert record["steps"] == 1
    Runner(Results(tmp_path / "r.jsonl"), work, said.append).do_all([run])
    assert len(said) == 1


@pytest.mark.filterwarnings("ignore:the training starts from the reference itself")  # so it does, and has no warm-up
@pytest.mark.parametrize("name", ["both terms", "followed", "in rounds"])
def test_an_arm_trains_in_the_way_that_it_is_named_for(name, rows, work, monkeypatch):
    monkeypatch.setattr(design, "PASSES", 3)
    run = Run("base", SMALL, arm_named(name), 0)
    out, before = work / name, list(rows.store.scorings)
    fine_tune(run, rows, prepare_mask(run, rows), 1e-4, out)
    record = json.loads((out / "tokenstats.json").read_text())
    options = record["training"]
    assert options["max_steps"] == run.steps()
    assert name == "in rounds" or record["reference"] == record["base_model"]  # rounds only score with it
    assert list(Store(rows.store.path).scorings) == before  # what rounds add is theirs alone
    if name == "both terms":
        assert options["entropy_bonus"] == options["kl_penalty"] == 0.05
        assert (options["entropy_on"], options["kl_on"]) == ("clause 1", "clause 2")
    elif name == "followed":
        assert record["follow"]["fingerprint"] == Rule.load("eksft").fingerprint
    else:
        made = [None, *(f"round-{number}" for number in range(run.steps() - 1))]  # a pass is one step here
        assert [leg["mask"] for leg in record["legs"]] == made


def test_a_mask_may_be_made_in_any_order_and_is_called_by_its_arm(rows):
    assert mask_name("EKSFT") == masks.EKSFT_MASK
    for arm in ARMS:
        if arm.mask is not None:
            name = prepare_mask(Run("base", SMALL, arm, 0), rows)
            assert name in rows.store.masks
    assert set(np.unique(rows.label)) == set(Label)
