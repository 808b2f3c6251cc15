"""A scoring on disk against an independent float64 computation; what it refuses; what must not change it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from disk import write_jsonl
from flat_options import grouped
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from tokenstats.computing import compute
from tokenstats.corpus.options import CorpusOptions
from tokenstats.errors import InputError, StoreError, TokenstatsWarning
from tokenstats.modeling.head import SplitModel
from tokenstats.schema import STATISTICS
from tokenstats.scoring.options import ScoringOptions
from tokenstats.store import Store

CLOSE = {s.name for s in STATISTICS if s.is_float}


def expected_columns(ids: list[int], models: list, vocabulary: int) -> dict[str, np.ndarray]:
    """One sequence, from full float32 logits of each model, in float64, straight from the definitions.

    Written without tokenstats: position t of each array is about the prediction of token t; position 0 is NaN. Zeros behind
    the sequence bring it to a width whose attention has no remainder of a block, where float32 logits differ by 2e-5.
    """
    padded = torch.tensor([ids + [0] * (-len(ids) % 32)])
    log_probs, ranks, tops, unsure = [], [], [], np.zeros(len(ids), bool)
    for model in models:
        with torch.no_grad():
            logits = model(input_ids=padded).logits[0, : len(ids), :vocabulary].double().numpy()
        top = logits.max(-1, keepdims=True)
        log_probs.append(logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True)))
        ranks.append([np.nan] + [int((logits[t - 1] > logits[t - 1, ids[t]]).sum()) for t in range(1, len(ids))])
        tops.append([np.nan, *logits[:-1].argmax(-1)])
        for t in range(1, len(ids)):  # another entry within float32 rounding of the target's, or of the top, logit
            others = np.delete(logits[t - 1], ids[t])
            second, first = np.partition(logits[t - 1], -2)[-2:]
            unsure[t] |= np.abs(others - logits[t - 1, ids[t]]).min() < 5e-6 or first - second < 5e-6
    out: dict[str, list] = {}
    for t in range(len(ids)):
        lp, lq = ((d[t - 1] if t else np.full(vocabulary, np.nan)) for d in log_probs)
        p, q = np.exp(lp), np.exp(lq)
        for name, value in {
            "logprob": lp[ids[t]],
            "ref_logprob": lq[ids[t]],
            "entropy": -(p * lp).sum(),
            "ref_entropy": -(q * lq).sum(),
            "kl": (p * (lp - lq)).sum(),
            "reverse_kl": (q * (lq - lp)).sum(),
            "sum_p2": (p * p).sum(),
            "top1_logprob": lp.max(),
        }.items():
            out.setdefault(name, []).append(value)
    return {
        **{k: np.array(v) for k, v in out.items()},
        "rank": ranks[0],
        "ref_rank": ranks[1],
        "top1_id": tops[0],
        "unsure": unsure,
    }


def assert_scoring_is_true(store: Store, scoring: str, model, reference: str, rows: int, most_unsure: float = 0.05) -> None:
    vocabulary = store.manifest.tokenizer.size
    models = [
        AutoModelForCausalLM.from_pretrained(m, dtype=torch.float32).eval() if isinstance(m, str) else m
        for m in (model, reference)
    ]
    unsure = 0
    for number in range(rows):
        row = store.sequence(number, {"tokens": ["input_ids", "is_target"], f"stats/{scoring}": [s.name for s in STATISTICS]})
        tokens, found = row["tokens"], row[f"stats/{scoring}"]
        expected = expected_columns(tokens["input_ids"], models, vocabulary)
        unsure += expected["unsure"].sum()
        for name, column in found.items():
            assert [v is not None for v in column] == tokens["is_target"], f"{name} is null exactly where nothing is learned"
            # ranks compare logits: where two are equal up to rounding, a batch of another shape may swap them
            scored = np.flatnonzero(tokens["is_target"] & ~(expected["unsure"] & (name not in CLOSE)))
            values, truth = np.array([column[t] for t in scored]), np.array([expected[name][t] for t in scored])
            np.testing.assert_allclose(
                values, truth, atol=1e-5 if name in CLOSE else 0, rtol=0, err_msg=f"{name}, row {number}"
            )
    assert unsure <= most_unsure * store.manifest.tokens


def test_every_statistic_of_two_hundred_sequences(tmp_path, chats, base, warmup):
    data = write_jsonl(tmp_path / "d.jsonl", chats[:200])
    done = compute(data, model=warmup, reference=base, store=tmp_path / "store")
    store, name = done.store, done.name
    assert name == "warmup"
    assert store.manifest.sequences == 200
    assert_scoring_is_true(store, name, warmup, base, 200, most_unsure=0.001)


def test_padding_columns_of_the_vocabulary_are_cut(scored, base):
    """The bundled models have more columns than their tokenizer has words."""
    columns = json.loads((Path(base) / "config.json").read_text())["vocab_size"]
    assert scored.scorings.choose().manifest.vocabulary == scored.manifest.tokenizer.size < columns


def table(store: Store, name: str) -> pa.Table:
    return pa.concat_tables(store.part(f"stats/{name}", i) for i in range(store.part_count))


def assert_tables_close(a: pa.Table, b: pa.Table) -> None:
    assert a["seq_id"].equals(b["seq_id"])
    for name in a.column_names[1:]:
        x, y = (t[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(float) for t in (a, b))
        np.testing.assert_allclose(x, y, atol=1e-5 if name in CLOSE else 0, rtol=0, err_msg=name)


def test_batch_budget_and_part_size_change_nothing(scored, tmp_path, chats, base, warmup):
    data = write_jsonl(tmp_path / "d.jsonl", chats[:60])
    reference = table(scored, "warmup")
    for folder, options in {"one by one": {"batch_tokens": 1}, "at once": {"batch_tokens": 10**6}}.items():
        done = compute(data, **grouped(**options), model=warmup, reference=base, store=tmp_path / folder)
        store, name = done.store, done.name
        assert store.part_count == 1
        assert_tables_close(table(store, name), reference)


def test_score_all_scores_prompts_and_leaves_targets_as_they_were(scored, tmp_path, chats, base, warmup):
    done = compute(
        write_jsonl(tmp_path / "d.jsonl", chats[:5]),
        model=warmup,
        reference=base,
        store=tmp_path / "s",
        scoring=ScoringOptions(score_all=True, topk=3),
    )
    store, name = done.store, done.name
    for number in range(5):
        row = store.sequence(number, {"tokens": ["is_target"], f"stats/{name}": ["entropy", "topk_ids", "top1_id"]})
        entropy, target = row[f"stats/{name}"]["entropy"], row["tokens"]["is_target"]
        assert entropy[0] is None
        assert all(v is not None for v in entropy[1:])
        assert [len(k) for k in row[f"stats/{name}"]["topk_ids"][1:]] == [3] * (len(target) - 1)
        assert [k[0] for k in row[f"stats/{name}"]["topk_ids"][1:]] == row[f"stats/{name}"]["top1_id"][1:]
        before = scored.sequence(number, {"stats/warmup": ["entropy"]})["stats/warmup"]["entropy"]
        pairs = [(a, b) for a, b, t in zip(entropy, before, target, strict=True) if t]
        np.testing.assert_allclose(*zip(*pairs, strict=True), atol=1e-5)


def test_without_reference_there_are_no_columns_of_one(tmp_path, chats, base):
    done = compute(write_jsonl(tmp_path / "d.jsonl", chats[:3]), model=base, store=tmp_path / "s", name="alone")
    store, name = done.store, done.name
    assert name == "alone"
    assert store.part("stats/alone", 0).column_names == ["seq_id", *(s.name for s in STATISTICS if not s.of_reference)]


def small(architecture: str, vocabulary: int):
    """Random models whose heads do more than a product: caps, scales, tied weights, learned positions."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    if architecture == "gemma2":
        return Gemma2ForCausalLM(
            Gemma2Config(**sizes, **heads, head_dim=16, final_logit_softcapping=2.0, initializer_range=0.3)
        )
    if architecture == "cohere":
        return CohereForCausalLM(CohereConfig(**sizes, **heads, logit_scale=0.25, initializer_range=0.3))
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=512, initializer_range=0.3)
    )


def save(model, folder: Path, tokenizer_from: str) -> str:
    model.save_pretrained(folder)
    for file in Path(tokenizer_from).iterdir():
        if "token" in file.name or "template" in file.name:
            shutil.copy(file, folder)
    return str(folder)


@pytest.mark.parametrize("architecture", ["gemma2", "cohere", "gpt2"])
def test_heads_of_other_architectures(tmp_path, chats, base, architecture):
    """Scale and soft-capping are part of a model's logits."""
    first = small(architecture, 704)
    one = save(first, tmp_path / "one", base)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.05 * torch.randn_like(p))
    two = save(first, tmp_path / "two", base)
    done = compute(write_jsonl(tmp_path / "d.jsonl", chats[:4]), model=two, reference=one, store=tmp_path / "s")
    store, name = done.store, done.name
    assert set(store.scorings[name].manifest.head.values()) == {"split"}
    assert_scoring_is_true(store, name, two, one, 4)


def test_a_head_that_cannot_be_split_off_is_scored_whole_and_said(tmp_path, chats, base, monkeypatch):
    """Take away what is known about soft-capping: the check at the start must notice, and the numbers stay true."""
    import tokenstats.modeling.head as module

    model = save(small("gemma2", 704), tmp_path / "one", base)
    other = small("gemma2", 704)
    torch.nn.init.normal_(other.model.layers[0].mlp.up_proj.weight)
    reference = save(other, tmp_path / "two", base)
    monkeypatch.setattr(module, "_after_head", lambda config: lambda logits: logits)
    data = write_jsonl(tmp_path / "d.jsonl", chats[:3])
    with pytest.warns(TokenstatsWarning, match="full logits"):
        done = compute(data, model=model, reference=reference, store=tmp_path / "s")
    store, name = done.store, done.name
    assert all(way.startswith("whole") for way in store.scorings[name].manifest.head.values())
    assert_scoring_is_true(store, name, model, reference, 3)


def test_half_precision_models_get_float32_logits(base, scored):
    """The head's product is done in float32: more exact than the model's own half-precision logits."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    ids = torch.tensor([scored.sequence(0, {"tokens": ["input_ids"]})["tokens"]["input_ids"]])
    split = SplitModel(model)
    with torch.no_grad():
        hidden = split.hidden(ids)
        exact = hidden.double() @ model.get_output_embeddings().weight.double().T
        ours, theirs = split.logits(hidden[0]), model(ids).logits[0]
    assert ours.dtype == torch.float32
    assert (ours - exact[0]).abs().max() < 1e-4 < (theirs.double() - exact[0]).abs().max()


def test_an_adapter_is_scored_with_its_base(tmp_path, chats, base):
    peft = pytest.importorskip("peft", reason="needs the peft extra")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapter = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "adapter")
    data = write_jsonl(tmp_path / "d.jsonl", chats[:3])
    done = compute(data, model=str(tmp_path / "adapter"), reference=base, store=tmp_path / "s")
    store, name = done.store, done.name
    assert_scoring_is_true(store, name, adapter.eval(), base, 3)

    fresh = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), peft.LoraConfig(r=4, target_modules=["q_proj"])
    )
    fresh.save_pretrained(tmp_path / "untrained")
    with pytest.raises(InputError, match="same logits"):
        compute(data, model=str(tmp_path / "untrained"), reference=base, store=tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_copy_of_the_reference_is_refused(tmp_path, chats, base):
    shutil.copytree(base, tmp_path / "copy")
    with pytest.raises(InputError, match=r"same weights.*warm-up checkpoint"):
        compute(
            write_jsonl(tmp_path / "d.jsonl", chats[:3]), model=str(tmp_path / "copy"), reference=base, store=tmp_path / "s"
        )
    assert not (tmp_path / "s").exists()


def test_other_tokenizers_are_refused(tmp_path, chats, base, warmup):
    shutil.copytree(base, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    words = json.loads(path.read_text())
    vocabulary = words["model"]["vocab"]
    a, b = sorted(vocabulary)[50:52]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(words))
    with pytest.raises(InputError, match="different tokenizers"):
        compute(
            write_jsonl(tmp_path / "d.jsonl", chats[:3]), model=warmup, reference=str(tmp_path / "other"), store=tmp_path / "s"
        )
    assert not (tmp_path / "s").exists()


def test_numbers_that_are_none_never_reach_the_disk(tmp_path, chats, base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    broken = save(model, tmp_path / "broken", base)
    with (
        pytest.warns(TokenstatsWarning, match="full logits"),  # the halves of a model without numbers agree in nothing
        pytest.raises(StoreError, match=r"logprob of sequence 00000.* is nan"),
    ):
        compute(write_jsonl(tmp_path / "d.jsonl", chats[:3]), model=broken, store=tmp_path / "s")
    assert not list((tmp_path / "s" / "stats").glob("*/part*"))


def test_missing_weights_are_an_error_and_not_random_numbers(tmp_path, chats, base):
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, tmp_path / "holes")
    weights = load_file(tmp_path / "holes" / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "holes" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="lacks weights"):
        compute(write_jsonl(tmp_path / "d.jsonl", chats[:3]), model=str(tmp_path / "holes"), store=tmp_path / "s")


def test_a_sequence_longer_than_the_model_reads_is_named_and_once_it_is_cut_the_run_goes_on(tmp_path, chats, base):
    long = {"messages": [{"role": "user", "content": "7 " * 1500}, {"role": "assistant", "content": "1"}]}
    options = {"model": base, "store": tmp_path / "s", "part_tokens": 200}
    data = write_jsonl(tmp_path / "d.jsonl", [*chats[:5], long])
    with pytest.raises(InputError, match=r"row 5 has \d+ tokens, but the model reads at most 2048; .*max_length=2048"):
        compute(data, **grouped(**options))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("part-*")}
    assert before, "the parts before the bad row stay"
    write_jsonl(data, chats[:6])
    done = compute(data, **grouped(**options))
    store, name = done.store, done.name
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    fresh = compute(data, **grouped(**{**options, "store": tmp_path / "fresh"})).store
    assert store.fingerprint == fresh.fingerprint
    assert table(store, name).equals(table(fresh, name))


def test_a_second_scoring_shares_the_tokens(tmp_path, chats, base, warmup):
    data = write_jsonl(tmp_path / "d.jsonl", chats[:5])
    store = compute(data, model=warmup, store=tmp_path / "s", name="a").store
    before = (store.path / "tokens" / "part-00000.parquet").stat().st_mtime_ns
    again = compute(data, model=base, store=tmp_path / "s", name="b").store
    assert list(again.scorings) == ["a", "b"]
    assert (store.path / "tokens" / "part-00000.parquet").stat().st_mtime_ns == before
    with pytest.raises(StoreError, match="model: there"):
        compute(data, model=base, store=tmp_path / "s", name="a")


def test_more_alternatives_than_there_are_tokens_are_refused(tmp_path, chats, base):
    with pytest.raises(InputError, match="topk got 5000; expected at most the vocabulary's 703 tokens"):
        compute(
            write_jsonl(tmp_path / "d.jsonl", chats[:3]), model=base, store=tmp_path / "s", scoring=ScoringOptions(topk=5000)
        )


def test_other_settings_of_the_tokens_are_named_before_those_of_the_scoring(tmp_path, chats, base):
    data = write_jsonl(tmp_path / "d.jsonl", chats[:10])
    compute(data, model=base, store=tmp_path / "s", corpus=CorpusOptions(part_tokens=500))
    with pytest.raises(StoreError, match=r"part_tokens: there 500, asked for 600; ask for the same again, or choose another"):
        compute(data, model=base, store=tmp_path / "s", corpus=CorpusOptions(part_tokens=600))


def test_a_model_that_looks_ahead_is_refused(tmp_path, chats, base):
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    model = BertLMHeadModel(
        BertConfig(
            vocab_size=704,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            initializer_range=0.5,
        )
    )
    folder = save(model, tmp_path / "bert", base)
    with pytest.raises(InputError, match="is not causal"):
        compute(write_jsonl(tmp_path / "d.jsonl", chats[:3]), model=folder, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_positions_that_depend_on_the_width_of_a_batch_do_not_change_results(tmp_path, chats, base):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=704,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=90,
            rope_parameters=rope,
            initializer_range=0.5,
        )
    )
    folder = save(model, tmp_path / "dynamic", base)
    done = compute(write_jsonl(tmp_path / "d.jsonl", chats[:6]), model=folder, store=tmp_path / "a")
    together, name = done.store, done.name
    alone = compute(tmp_path / "d.jsonl", model=folder, store=tmp_path / "b", scoring=ScoringOptions(batch_tokens=1)).store
    assert_tables_close(table(together, name), table(alone, name))


def test_an_edited_configuration_is_another_model(tmp_path, chats, base):
    shutil.copytree(base, tmp_path / "model")
    data = write_jsonl(tmp_path / "d.jsonl", chats[:10])
    done = compute(data, model=str(tmp_path / "model"), store=tmp_path / "s", corpus=CorpusOptions(part_tokens=500))
    store, name = done.store, done.name
    (store.path / "stats" / name / "part-00001.parquet").unlink()
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["rms_norm_eps"] = 0.5
    path.write_text(json.dumps(config))
    with pytest.raises(StoreError, match="model: there"):
        compute(data, model=str(tmp_path / "model"), store=tmp_path / "s", corpus=CorpusOptions(part_tokens=500))


def test_a_scoring_is_not_called_like_a_column(tmp_path, chats, base):
    with pytest.raises(InputError, match="rules read that as a column"):
        compute(write_jsonl(tmp_path / "d.jsonl", chats[:3]), model=base, store=tmp_path / "s", name="entropy")


def test_a_store_is_not_made_within_its_dataset(tmp_path, chats, base):
    """Its own parts would be rows of the dataset when the command is run again."""
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "d.jsonl", chats[:3])
    with pytest.raises(InputError, match="within the dataset"):
        compute(tmp_path / "data", model=base, store=tmp_path / "data" / "deep" / "store")
