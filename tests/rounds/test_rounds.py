"""Rounds are one run: same weights as without them where the masks are the same, each mask of the policy of its step."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rounds_fixtures import ALWAYS_THE_SAME, arguments_of, copied, rows_of
from training_fixtures import (
    QUICK,
    ROWS,
    add_mask,
    largest_difference,
    losses,
    nll_of,
    run_on_two_processes,
    saved_parameters,
    sequences,
)

from tokenstats.computing import compute
from tokenstats.corpus.options import CorpusOptions
from tokenstats.errors import InputError
from tokenstats.masking.build import build_mask
from tokenstats.masking.rule import Rule
from tokenstats.rounds.options import RoundOptions
from tokenstats.rounds.record import Record
from tokenstats.rounds.run import RoundsSummary, train_rounds
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train
from tokenstats.training.batching import BatchPlan, OptimizerBatches
from tokenstats.training.data import TrainingData, load_training_data
from tokenstats.training.legs import Leg
from tokenstats.training.loop import MaskedTrainer
from tokenstats.training.rows import choose_mask
from tokenstats.training.trainer import train_leg

# ---- one run


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 4, "lora_dropout": 0.2}], ids=["whole", "adapter"])
def test_rounds_whose_masks_are_equal_end_at_the_weights_of_one_run_with_that_mask(
    store: Store, model: str, tmp_path: Path, lora: dict
) -> None:
    # 24 rows are 6 batches: masks are made within an epoch and at its end
    options = replace(QUICK, max_steps=9, **lora)
    found = train_rounds(store, model=model, rule=ALWAYS_THE_SAME, every=3, out=tmp_path / "rounds", options=options)
    assert [(each.step, each.jaccard) for each in found.rounds] == [(0, None), (3, 1.0), (6, 1.0)]
    build_mask(store, ALWAYS_THE_SAME, "hand", scoring="round-0")
    whole = train(store, model=model, mask="hand", out=tmp_path / "whole", options=options)
    assert largest_difference(tmp_path / "rounds", tmp_path / "whole") == 0.0
    assert losses(tmp_path / "rounds") == losses(tmp_path / "whole")
    assert replace(found.training, out="") == replace(whole, out="")


def test_a_mask_that_is_like_the_last_one_stays_to_the_end(store: Store, model: str, tmp_path: Path) -> None:
    rounds, options = RoundOptions(until_jaccard=0.95), replace(QUICK, max_steps=7)
    found = train_rounds(
        store, model=model, rule=ALWAYS_THE_SAME, every=2, out=tmp_path / "out", rounds=rounds, options=options
    )
    assert [each.settled for each in found.rounds] == [False, True]
    assert sorted(store.masks) == ["round-0", "round-1"]
    assert found.training.steps == 7
    train(store, model=model, mask="round-1", out=tmp_path / "whole", options=options)
    assert largest_difference(tmp_path / "out", tmp_path / "whole") == 0.0


def test_two_processes_make_the_rounds_of_one(unscored: Path, store: Store, model: str, tmp_path: Path) -> None:
    """Half of each batch on each; the parts of a scoring are shared, and the masks are those of one process."""
    rounds, options = RoundOptions(warmup_steps=2), replace(QUICK, max_steps=6, reference=model, learning_rate=5e-3)
    asked = f"model={model!r}, rule='eksft', every=2, rounds={rounds!r}"
    alone = train_rounds(store, model=model, rule="eksft", every=2, out=tmp_path / "alone", rounds=rounds, options=options)
    shared, half = copied(unscored, tmp_path / "shared"), replace(options, batch_size=options.resolved.batch_size // 2)
    run_on_two_processes(
        "from tokenstats.rounds.options import RoundOptions; from tokenstats.rounds.run import train_rounds; "
        "from tokenstats.training import TrainOptions; "
        f"train_rounds({str(shared.path)!r}, {asked}, out={str(tmp_path / 'both')!r}, options={half!r})"
    )
    found = Record.read(tmp_path / "both").rounds
    assert [(each.name, each.step) for each in found] == [("round-0", 2), ("round-1", 4)]
    for one, two in zip(alone.rounds, found, strict=True):
        assert two.entropy.now == pytest.approx(one.entropy.now, rel=1e-4)
        assert two.kl is not None
        assert one.kl is not None
        assert two.kl.now == pytest.approx(one.kl.now, rel=1e-3)
        assert two.kept == one.kept
    assert largest_difference(tmp_path / "alone", tmp_path / "both") < 1e-4


def test_rows_held_out_are_evaluated_at_the_ends_of_the_run_and_not_of_each_round(
    store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated, usual = [], MaskedTrainer.evaluate

    def evaluate(self: MaskedTrainer, *arguments: object, **options: object) -> dict[str, float]:
        evaluated.append(self.state.global_step)
        return usual(self, *arguments, **options)

    monkeypatch.setattr(MaskedTrainer, "evaluate", evaluate)
    options = replace(QUICK, max_steps=4, eval_share=0.25)
    found = train_rounds(store, model=model, rule=ALWAYS_THE_SAME, every=2, out=tmp_path / "out", options=options)
    evaluation = json.loads((tmp_path / "out" / "history.json").read_text())["evaluation"]
    assert evaluated == [entry["step"] for entry in evaluation] == [0, 4]
    assert (found.training.eval_rows, found.training.eval_loss) == (6, evaluation[1]["loss"])


# ---- each mask of the policy of its step


@pytest.fixture(scope="module")
def moving(unscored: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path, RoundsSummary]:
    """All rows in each step. The last checkpoints are 3, which round 1 is made of, and 4."""
    folder = tmp_path_factory.mktemp("moving")
    store, rounds = copied(unscored, folder), RoundOptions(warmup_steps=2)
    arguments = arguments_of(model, batch_size=ROWS, max_steps=4) | {"every": 1}
    return store, folder / "out", train_rounds(store, out=folder / "out", rounds=rounds, **arguments)


def test_a_rounds_mask_is_what_scoring_and_masking_the_checkpoint_by_hand_give(
    moving: tuple[Store, Path, RoundsSummary], unscored: Path, model: str, tmp_path: Path
) -> None:
    own, out, found = moving
    store = copied(own.path, tmp_path)
    scoring = compute(
        unscored.parent / "chats.jsonl",
        model=str(out / "checkpoint-3"),
        reference=model,
        store=store.path,
        name="hand",
        corpus=CorpusOptions(part_tokens=600),
    )
    assert scoring is not None
    assert scoring.manifest.fingerprint == found.rounds[1].scoring == store.scorings["round-1"].manifest.fingerprint
    mask = build_mask(store, Rule.load("eksft"), "hand", scoring="hand")
    for index in range(store.part_count):
        assert store.part("masks/round-1", index).equals(store.part("masks/hand", index))
        assert not store.part("masks/round-0", index).equals(store.part("masks/hand", index))
    assert mask.manifest.kept == found.rounds[1].kept


def test_a_round_learns_what_its_mask_keeps_and_the_warm_up_all_targets(
    moving: tuple[Store, Path, RoundsSummary], model: str
) -> None:
    store, out, _ = moving
    kept = rows_of(store, "masks/round-1", "keep")
    total, weight = nll_of(store, str(out / "checkpoint-3"), lambda row, _: kept[row])
    assert losses(out)[3] == pytest.approx(total / weight, rel=1e-6)
    total, weight = nll_of(store, model, lambda _, is_target: is_target)
    assert losses(out)[0] == pytest.approx(total / weight, rel=1e-6)


def test_what_is_recorded_of_a_round_is_what_can_be_counted_in_the_store(moving: tuple[Store, Path, RoundsSummary]) -> None:
    store, out, found = moving
    targets = np.concatenate([flags & (np.arange(len(flags)) > 0) for _, flags in sequences(store)])
    last, now = (np.concatenate(rows_of(store, f"masks/round-{i}", "reason"))[targets] for i in (0, 1))
    first, second = found.rounds
    assert (second.targets, second.kept) == (targets.sum(), (now == 0).sum())
    assert second.jaccard == np.sum((last > 0) & (now > 0)) / np.sum((last > 0) | (now > 0))
    assert 0 < second.jaccard < 1
    for bit, clause in enumerate(second.clauses):
        dropped = now & (1 << bit) > 0
        assert (clause.dropped, clause.dropped_before) == (dropped.sum(), np.sum(dropped & (last > 0)))
    assert second.overlap == np.sum(now == 3) / np.sum(now > 0)
    for name in ("entropy", "kl"):
        means = [np.concatenate(rows_of(store, f"stats/round-{i}", name))[targets].astype(float).mean() for i in (0, 1)]
        moved = getattr(second, name)
        assert [moved.last, moved.now] == pytest.approx(means, rel=1e-6)
        assert (getattr(first, name).last, getattr(first, name).now) == (None, moved.last)
    assert (first.jaccard, first.clauses[0].dropped_before) == (None, None)
    written = json.loads((out / "rounds.json").read_text())["rounds"]
    assert [each["scoring"] for each in written] == [store.scorings[f"round-{i}"].manifest.fingerprint for i in (0, 1)]
    assert [each["mask"] for each in written] == [store.masks[f"round-{i}"].manifest.fingerprint for i in (0, 1)]


def test_of_a_rule_that_weighs_a_round_tells_how_the_weights_moved(store: Store, model: str, tmp_path: Path) -> None:
    told = {**arguments_of(model, reference=None, max_steps=4), "rule": "dft"}
    first, second = train_rounds(store, out=tmp_path / "out", **told).rounds
    targets = rows_of(store, "tokens", "is_target")
    now, before = (
        np.concatenate([w[f] for w, f in zip(rows_of(store, f"masks/{r}", "weight"), targets, strict=True)])
        for r in ("round-1", "round-0")
    )
    assert (first.weight, first.weight_change) == (pytest.approx(before.mean(), rel=1e-6), None)
    assert second.weight == pytest.approx(now.mean(), rel=1e-6)
    assert second.weight_change == pytest.approx(np.abs(now - before).mean(), rel=1e-5)
    assert f"mean weight {second.weight:.4f}, moved by {second.weight_change:.4f} since" in str(second)
    assert "Jaccard" not in str(second), "nothing is dropped"


def test_the_weights_say_which_masks_they_learned_from(moving: tuple[Store, Path, RoundsSummary]) -> None:
    _, out, found = moving
    first, second = found.rounds
    legs = [
        {"mask": None, "mask_fingerprint": None, "until_step": 2},
        {"mask": "round-0", "mask_fingerprint": first.mask, "until_step": 3},
        {"mask": "round-1", "mask_fingerprint": second.mask, "until_step": 4},
    ]
    assert json.loads((out / "tokenstats.json").read_text())["legs"] == legs
    assert json.loads((out / "config.json").read_text())["tokenstats"]["legs"] == legs


def test_an_adapter_is_scored_against_the_model_below_it(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(QUICK, max_steps=4, lora_rank=4)
    found = train_rounds(
        store, model=model, rule="kl-only", every=2, out=tmp_path / "out", rounds=RoundOptions(warmup_steps=2), options=options
    )
    manifest = store.scorings["round-0"].manifest
    assert manifest.model.architecture == manifest.reference.architecture == "Qwen3ForCausalLM"
    assert manifest.model.parameters > manifest.reference.parameters
    assert found.rounds[0].kl.now > 0
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_terms_are_over_the_clauses_of_each_rounds_own_mask_and_not_in_the_warm_up(
    store: Store, model: str, tmp_path: Path
) -> None:
    terms = {"entropy_bonus": 0.1, "entropy_on": "clause 1", "kl_penalty": 0.1, "kl_on": "clause 2"}
    rule = Rule(drop="top(entropy, 2, per=sequence) or top(kl, 2, per=sequence)", weight="prob")
    arguments = arguments_of(model, batch_size=ROWS, max_steps=4, normalise="targets", **terms) | {"rule": rule}
    train_rounds(store, out=tmp_path / "out", rounds=RoundOptions(warmup_steps=2), **arguments)
    entries = json.loads((tmp_path / "out" / "history.json").read_text())["training"]
    assert ["loss_entropy" in entry for entry in entries] == [False, False, True, True]
    # step 3 is the first of round 0: its policy is the one that was scored
    reason = rows_of(store, "masks/round-0", "reason")
    entropy, kl = (rows_of(store, "stats/round-0", name) for name in ("entropy", "kl"))
    over_clause = [
        np.concatenate([v[r & bit > 0].astype(float) for v, r in zip(values, reason, strict=True)]).mean()
        for values, bit in ((entropy, 1), (kl, 2))
    ]
    size = store.manifest.tokenizer.size
    assert entries[2]["loss_entropy"] == pytest.approx(over_clause[0] / np.log(size), rel=1e-4)
    assert entries[2]["loss_kl"] == pytest.approx(over_clause[1], rel=1e-3)


# ---- rows that a mask leaves empty


def every_other_row(row: int, is_target: np.ndarray) -> np.ndarray:
    return is_target & bool(row % 2)


def order_of(data: TrainingData, seed: int, epoch: int, batch_size: int = 4) -> list[int]:
    batches = OptimizerBatches(data.train, seed, BatchPlan.of(TrainOptions(batch_size=batch_size, accumulation=1), 1))
    batches.epoch = epoch
    return [data.train.keys[row] for step in batches for rows in step for row in rows]


def test_empty_rows_keep_the_order_and_the_length_of_an_epoch(store: Store, model: str, tmp_path: Path) -> None:
    add_mask(store, "half", every_other_row)
    plain = load_training_data(store, choose_mask(store, None))
    half = load_training_data(store, choose_mask(store, "half"), keep_empty=True)
    assert [order_of(half, 3, epoch) for epoch in (0, 1)] == [order_of(plain, 3, epoch) for epoch in (0, 1)]
    assert (half.left_out, half.empty, plain.empty) == (0, ROWS // 2, 0)
    assert half.train.learned.sum() == sum(int(flags[1:].sum()) for row, (_, flags) in enumerate(sequences(store)) if row % 2)

    rule = Rule(drop="entropy > -1 and length > 12", protect="")
    found = train_rounds(store, model=model, rule=rule, every=2, out=tmp_path / "out", options=replace(QUICK, max_steps=6))
    keep = rows_of(store, "masks/round-0", "keep")
    empty = sum(not flags.any() for flags in keep)
    assert 0 < empty < ROWS
    assert (found.training.rows, found.training.rows_left_out) == (ROWS, 0)
    assert json.loads((tmp_path / "out" / "tokenstats.json").read_text())["rows_with_nothing_kept"] == empty
    state = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["epoch"] == 1.0, "6 steps of 4 rows are the 24 rows of the store, empty ones too"


def test_a_step_of_which_nothing_is_kept_has_no_gradient(store: Store, model: str, tmp_path: Path) -> None:
    options = replace(QUICK, max_steps=2, batch_size=1)
    data = load_training_data(store, choose_mask(store, None))
    first = data.train.keys.tolist().index(order_of(data, options.seed, 0, batch_size=1)[0])
    add_mask(store, "later", lambda row, is_target: is_target & (row != first))
    done = train_leg(store, model=model, out=tmp_path / "out", mask="later", options=options, leg=Leg(last_step=1))
    assert (done.loss, done.metrics["grad_norm"]) == (0.0, 0.0)
    before, after = saved_parameters(Path(model)), saved_parameters(tmp_path / "out" / "checkpoint-1")
    assert all(bool((before[name] == after[name]).all()) for name in before)


def test_a_round_that_keeps_nothing_at_all_is_refused(store: Store, model: str, tmp_path: Path) -> None:
    rule = Rule(drop="entropy > -1", protect="")
    with pytest.raises(InputError, match="mask 'round-0' keeps no token of the 24 rows"):
        train_rounds(store, model=model, rule=rule, every=2, out=tmp_path / "out", options=replace(QUICK, max_steps=6))
