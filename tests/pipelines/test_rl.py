"""GRPO from a small start: what is rewarded, what is sampled, and that it moves."""

import pytest
import torch
from transformers import Qwen3ForCausalLM

pytest.importorskip("trl")

from trl import GRPOTrainer

from pipelines.study import by_length
from pipelines.study.by_length import ROWS_AT_ONCE, ByLength
from pipelines.study.design import PRIMARY
from pipelines.study.measures import Policy
from pipelines.study.rl import Grpo, _Rollout, exact_answer, reinforce, rl_problems
from pipelines.tinymath import held_out_questions


def test_a_reward_is_one_for_the_exact_answer_and_zero_for_any_other():
    replies = [[{"role": "assistant", "content": text}] for text in ("So it is 12 pens.", "12. 13", "none", "Answer: 12")]
    assert exact_answer(replies, [12, 12, 12, 12]) == [1.0, 0.0, 0.0, 1.0]


def test_prompts_are_new_ones_and_the_same_for_every_start():
    rows = list(rl_problems(PRIMARY, 60, seed=3))
    assert rows == list(rl_problems(PRIMARY, 60, seed=3))
    questions = {row["prompt"][0]["content"] for row in rows}
    assert len(questions) == 60
    assert not questions & held_out_questions()


def test_samples_come_in_the_order_of_the_prompts_and_a_short_group_is_refused(base):
    policy = Policy.load(base)
    conversations = [row["prompt"] for row in rl_problems(PRIMARY, 3, seed=1) for _ in range(4)]
    found = _Rollout(policy, 4, seed=0)(conversations, None)
    assert found["prompt_ids"] == policy.prompts([{"messages": c} for c in conversations])
    assert len(found["completion_ids"]) == 12
    assert all(ids[-1] == policy.tokenizer.eos_token_id for ids in found["completion_ids"] if len(ids) < 100)
    with pytest.raises(ValueError, match="every prompt 4 times"):
        _Rollout(policy, 4, seed=0)(conversations[1:], None)


def test_two_steps_give_two_rewards_and_move_the_weights_the_same_way_again(base, tmp_path):
    how = Grpo(steps=2, prompts=4, samples=4)
    curves = [reinforce(base, PRIMARY, 5, tmp_path / name, how) for name in ("one", "two")]
    assert curves[0] == curves[1]
    assert [len(curve) for curve in curves[0].values()] == [2, 2, 2]
    assert all(0 <= share <= 1 for name in ("reward", "mixed") for share in curves[0][name])
    start, one, two = (
        Qwen3ForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (base, tmp_path / "one", tmp_path / "two")
    )
    moved = [(a - b).abs().max().item() for a, b in zip(start.parameters(), one.parameters(), strict=True)]
    assert max(moved) > 0
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_replies_taken_by_length_have_the_log_probabilities_that_trl_itself_gives_them(base, tmp_path, monkeypatch):
    compared = []

    class Both(ByLength):
        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **options):
            mine, theirs = (
                kind._get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **options)
                for kind in (ByLength, GRPOTrainer)
            )
            is_reply = attention_mask[:, -logits_to_keep:].bool()
            compared.extend((a[is_reply] - b[is_reply]).abs().max().item() for a, b in zip(mine[:2], theirs[:2], strict=True))
            assert len(is_reply) > 2 * ROWS_AT_ONCE
            assert not attention_mask.all(0)[[0, -1]].any()  # padding on both sides
            return mine

    monkeypatch.setattr(by_length, "ByLength", Both)
    reinforce(base, PRIMARY, 5, tmp_path / "out", Grpo(steps=1, prompts=10, samples=8))
    assert len(compared) == 2
    assert max(compared) < 1e-4
