"""Pre-training goes on where it was stopped, and draws what it would have drawn."""

from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines import pretrain
from pipelines.chats import Mix
from pipelines.pretrain import Pretraining, Stage, batches, learning_rate, new_model
from pipelines.tinymath import held_out_questions

STAGES = (Stage("capability", Mix(), 3, 1e-3), Stage("habit", Mix(flawed=0.6, requests=0.5), 2, 1e-3))


@pytest.fixture(scope="module")
def tokenizer(base) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    monkeypatch.setattr(pretrain, "STAGES", STAGES)
    monkeypatch.setattr(pretrain, "BATCH", 4)
    monkeypatch.setattr(pretrain, "WINDOW", 2)


class Killed(BaseException):
    pass


def go_on(checkpoint: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    run = Pretraining(new_model(tokenizer, seed=0), 0, checkpoint)
    run.run(tokenizer, set(), say=lambda line: None)
    return run.model.state_dict()


@pytest.mark.parametrize("kill_after", [1, 2, 3, 4])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path, tokenizer, monkeypatch, kill_after):
    monkeypatch.setattr(pretrain, "CHECKPOINT_SECONDS", -1.0)  # every step is written
    whole = go_on(tmp_path / "whole.pt", tokenizer)
    one_step, steps = Pretraining._one_step, iter(range(kill_after))

    def one_step_or_none(run, *arguments):
        if next(steps, None) is None:
            raise Killed
        one_step(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "_one_step", one_step_or_none)
        with pytest.raises(Killed):
            go_on(tmp_path / "killed.pt", tokenizer)
    resumed = go_on(tmp_path / "killed.pt", tokenizer)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_batches_begin_anywhere_and_pad_only_at_the_end(tokenizer):
    stage = STAGES[1]
    from_start = list(islice(batches(tokenizer, stage, 0, set(), 0), 5))
    for first in range(5):
        assert torch.equal(next(batches(tokenizer, stage, 0, set(), first)), from_start[first])
    for ids in from_start:
        padding = ids == tokenizer.pad_token_id
        assert ids.shape[0] == 4
        assert not (padding[:, :-1] & ~padding[:, 1:]).any()
    assert not torch.equal(next(batches(tokenizer, stage, 1, set(), 0)), from_start[0])


def test_no_question_that_is_held_out_is_drawn(tokenizer):
    drawn = next(batches(tokenizer, STAGES[0], 0, set(), 0))
    question = tokenizer.decode(drawn[0]).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    again = next(batches(tokenizer, STAGES[0], 0, {question}, 0))
    assert question not in "".join(tokenizer.batch_decode(again))
    assert len(held_out_questions()) == 800


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    stage = Stage("any", Mix(), 100, 2.0)
    rates = [learning_rate(stage, step) for step in range(100)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[-1] == pytest.approx(2 / 98)
    assert all(one >= other for one, other in pairwise(rates[2:]))


def test_a_checkpoint_of_another_seed_is_refused(tmp_path, tokenizer):
    run = Pretraining(new_model(tokenizer, 0), 0, tmp_path / "c.pt")
    run._save()
    with pytest.raises(SystemExit, match="is of seed 0, not 1"):
        Pretraining(new_model(tokenizer, 1), 1, tmp_path / "c.pt")
