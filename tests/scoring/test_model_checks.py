"""What is tried on models before a dataset is scored: refusals by name, and rows kept apart that would disturb each other."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from disk import write_jsonl
from test_scoring import assert_scoring_is_true, save
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from pipelines.matrix import as_tokens, definitions
from pipelines.tiny_models import VOCABULARY, tiny_model
from tokenstats.computing import compute
from tokenstats.corpus.options import CorpusOptions
from tokenstats.errors import InputError, TokenstatsWarning
from tokenstats.modeling.batches import Budget
from tokenstats.modeling.load import LoadedModel, _described, load_model
from tokenstats.modeling.positions import forget_widths, max_positions, width_classes
from tokenstats.scoring.model_checks import probe_ids
from tokenstats.scoring.options import ScoringOptions
from tokenstats.scoring.pair import ModelPair, Sharing
from tokenstats.scoring.score_part import score_part

CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "initializer_range": 0.5}
PROBE = torch.arange(5, 105)[None]


def rope_model(kind: str) -> PreTrainedModel:
    """Pre-trained on 64 positions, as its configuration says, and made to go beyond."""
    torch.manual_seed(0)
    if kind == "longrope":
        factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 64}
        rope = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors}
        long = {"max_position_embeddings": 512, "original_max_position_embeddings": 64, "pad_token_id": 0}
        return Phi3ForCausalLM(Phi3Config(vocab_size=VOCABULARY, **SIZES, **long, rope_parameters=rope)).eval()
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    config = LlamaConfig(vocab_size=VOCABULARY, **SIZES, max_position_embeddings=64, rope_parameters=rope)
    return LlamaForCausalLM(config).eval()


def as_loaded(model: PreTrainedModel) -> LoadedModel:
    return _described(model.eval(), "the model")


def random_rows(lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCABULARY, n).astype(np.int32) for n in lengths]


def logprobs(pair: ModelPair, rows: list[np.ndarray], budget: int = 8192) -> np.ndarray:
    table, _ = score_part(as_tokens(rows), pair, topk=0, score_all=True, budget=Budget(budget))
    return table["logprob"].combine_chunks().flatten().drop_null().to_numpy()


def own_logprobs(model: PreTrainedModel, rows: list[np.ndarray]) -> np.ndarray:
    """Each row alone, in a model that was never asked before."""
    pieces = []
    for row in rows:
        ids = torch.from_numpy(row[None]).long()
        with torch.no_grad():
            z = copy.deepcopy(model)(input_ids=ids, use_cache=False).logits[0].double()
        pieces.append(definitions(z[:-1], z[:-1], ids[0, 1:])["logprob"])
    return np.concatenate(pieces)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_row_scores_as_in_a_fresh_model_whatever_was_scored_before(kind, tmp_path):
    """Dynamic scaling keeps the frequencies of the longest row it has met: a row of 64 after one of 150 was off by 19 nats."""
    model = rope_model(kind)
    model.save_pretrained(tmp_path)
    rows = random_rows([40, 64, 65, 80, 150, 64, 80, 30, 100, 80])
    loaded = load_model(str(tmp_path), "float32", CPU)
    pair = ModelPair(loaded, None, VOCABULARY, CPU)
    expected = own_logprobs(model, rows)
    np.testing.assert_allclose(logprobs(pair, rows), expected, atol=5e-5)
    for row, own in zip(rows, np.split(expected, np.cumsum([len(r) - 1 for r in rows])[:-1]), strict=True):
        np.testing.assert_allclose(logprobs(pair, [row]), own, atol=5e-5)


def test_what_is_forgotten_is_not_what_was_learned(tmp_path):
    model = rope_model("dynamic")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forget_widths(model)
    with torch.no_grad():
        model(input_ids=torch.arange(100)[None], use_cache=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rows_share_batches_as_far_as_their_frequencies_are_the_same():
    lengths = np.array([10, 64, 65, 80, 80, 3])
    dynamic = width_classes(rope_model("dynamic"), lengths)
    assert dynamic[0] == dynamic[1] == dynamic[5]
    assert dynamic[3] == dynamic[4]
    assert len(set(dynamic[[0, 2, 3]])) == 3
    longrope = width_classes(rope_model("longrope"), lengths)
    assert len(set(longrope[[0, 1, 5]])) == len(set(longrope[2:5])) == 1
    assert longrope[0] != longrope[2]


SPARSE = {"deepseek_v32": {"index_topk": 210}, "deepseek_v4": {"index_topk": 53}, "doge": {"keep_window_size": 210}}
"""Tokens up to which all keys are seen: 210 to 212, more than the probe has, padded too. V4 picks groups of four."""


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_attention_picks_the_same_keys_whatever_shares_the_batch(kind, tmp_path):
    """Of equal keys it picks by how many there are: longer rows than it keeps were off by 0.13 nats beside others."""
    model = tiny_model(kind, **SPARSE[kind])
    model.save_pretrained(tmp_path)
    pair = ModelPair(load_model(str(tmp_path), "float32", CPU), None, VOCABULARY, CPU)
    pair.check(PROBE)
    assert pair.sharing is Sharing.ANY, "no probe of this length can see it"
    rows = random_rows([250, 249, 240, 225, 213, 210, 100, 240])
    classes = pair.classes(np.array([len(row) for row in rows]))
    assert classes[5] == classes[6], "where all keys are seen, rows share"
    np.testing.assert_allclose(logprobs(pair, rows), own_logprobs(model, rows), atol=5e-5)


class EightBits(nn.Linear):
    """Activations in 8 bits, by one scale for the whole batch, as int8 kernels have it."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax() / 127
        return super().forward((x / scale).round() * scale)


def with_neighbours(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SIZES))
    for layer in model.model.layers if kind == "eight bits" else ():
        old = layer.mlp.down_proj
        layer.mlp.down_proj = EightBits(old.in_features, old.out_features, bias=False)
        layer.mlp.down_proj.load_state_dict(old.state_dict())
    if kind == "width":
        real = model.model.forward

        def forward(input_ids: Tensor, **more: object):
            out = real(input_ids=input_ids, **more)
            out.last_hidden_state = out.last_hidden_state * (1 + 0.01 * (input_ids.shape[1] > 110))
            return out

        model.model.forward = forward
    return model


def test_rows_that_would_change_each_other_are_scored_apart_and_it_is_said():
    model = with_neighbours("width")
    pair = ModelPair(as_loaded(model), None, VOCABULARY, CPU)
    ways, notes = pair.check(PROBE)
    assert pair.sharing is Sharing.ALIKE
    assert "only rows of one length" in notes[0]
    rows = random_rows([120, 60, 120, 60, 5])
    np.testing.assert_allclose(logprobs(pair, rows), np.concatenate([logprobs(pair, [row]) for row in rows]), atol=1e-5)
    assert set(ways.values()) == {"split"}


def test_eight_bit_activations_are_refused_where_later_tokens_reach_earlier_ones():
    """One scale for a batch lets every token see the largest of all others: within a row that is the future."""
    pair = ModelPair(as_loaded(with_neighbours("eight bits")), None, VOCABULARY, CPU)
    with pytest.raises(InputError, match=r"not causal.*later tokens"):
        pair.check(PROBE)


class Neighbourly(nn.Linear):
    """Rows of a batch see each other, tokens of a row do not see later ones."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * x.mean(0, keepdim=True))


def test_a_model_whose_rows_see_each_other_is_scored_row_by_row():
    model = with_neighbours("none")
    old = model.model.layers[0].mlp.down_proj
    model.model.layers[0].mlp.down_proj = Neighbourly(old.in_features, old.out_features, bias=False)
    model.model.layers[0].mlp.down_proj.load_state_dict(old.state_dict())
    pair = ModelPair(as_loaded(model), None, VOCABULARY, CPU)
    _, notes = pair.check(PROBE)
    assert pair.sharing is Sharing.NONE
    assert "every row is scored alone" in notes[0]
    rows = random_rows([9, 9, 30, 12])
    np.testing.assert_allclose(logprobs(pair, rows), np.concatenate([logprobs(pair, [row]) for row in rows]), atol=1e-6)


def test_a_model_that_answers_otherwise_each_time_is_said():
    """Reformer hashes with random rotations."""
    pair = ModelPair(as_loaded(tiny_model("reformer", max_position_embeddings=1024)), None, VOCABULARY, CPU)
    _, notes = pair.check(torch.arange(5, 325)[None])  # several of its chunks of 64
    assert "asked the same again" in notes[0]


@pytest.mark.parametrize("kind", ["xlnet", "cpmant"])
def test_models_that_look_ahead_are_refused(kind):
    pair = ModelPair(as_loaded(tiny_model(kind)), None, VOCABULARY, CPU)
    with pytest.raises(InputError, match="not causal"):
        pair.check(PROBE)


def test_states_of_another_shape_than_the_halves_know_are_scored_whole():
    """ProphetNet's head sees states of several streams."""
    model = tiny_model("prophetnet")
    pair = ModelPair(as_loaded(model), None, VOCABULARY, CPU)
    ways, _ = pair.check(PROBE)
    assert next(iter(ways.values())).startswith("whole")
    rows = random_rows([20, 11])
    np.testing.assert_allclose(logprobs(pair, rows), own_logprobs(model, rows), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "most"), [("roberta", 255), ("opt", 256), ("gpt2", 256), ("xlnet", None), ("bart", 256), ("mpt", 256)]
)
def test_the_tokens_that_a_model_reads_are_counted_from_its_tables(kind, most):
    """RoBERTa's positions begin behind that of the padding; XLNet says -1 and means any number; MPT has a name of its own."""
    model = tiny_model(kind)
    assert max_positions(model) == most
    if most is not None:
        with torch.no_grad():
            model(input_ids=torch.full((1, most), 5), use_cache=False)
        with pytest.raises((IndexError, RuntimeError)), torch.no_grad():
            model(input_ids=torch.full((1, most + 4), 5), use_cache=False)


def test_the_probe_is_the_same_in_every_process_and_of_many_kinds(base):
    """Sets of words are in another order in each process."""
    code = (
        "from transformers import AutoTokenizer; from tokenstats.scoring.model_checks import probe_ids; import sys\n"
        "print(probe_ids(AutoTokenizer.from_pretrained(sys.argv[1]), 703).tolist())"
    )
    runs = [subprocess.run([sys.executable, "-c", code, base], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    probe = json.loads(runs[0].stdout)[0]
    assert len(probe) > 32
    assert len(set(probe)) > 20
    assert max(probe) < 703


def test_a_tokenizer_of_a_single_word_still_gives_a_probe(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert probe_ids(tokenizer, 3).shape[1] >= 2


@pytest.mark.parametrize("special", [False, True])
def test_a_word_that_was_added_and_has_no_embedding_is_no_reason_to_refuse_a_model(special, base, chats, tmp_path):
    """Only a row with that word is."""
    tokenizer, folder = AutoTokenizer.from_pretrained(base), tmp_path / "model"
    (model := AutoModelForCausalLM.from_pretrained(base)).save_pretrained(folder)
    known = model.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"<extra {i}>" for i in range(known + 1 - len(tokenizer))], special_tokens=special)
    tokenizer.save_pretrained(folder)
    said = f"its tokenizer has {known + 1} ids: statistics are over the first {known}"
    with pytest.warns(TokenstatsWarning, match=said):
        done = compute(write_jsonl(tmp_path / "chats.jsonl", chats[:4]), model=folder, store=tmp_path / "store")
    assert done.store.manifest.sequences == 4
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": f"b {tokenizer.decode([known])} c"}])
    with (
        pytest.warns(TokenstatsWarning, match=said),
        pytest.raises(InputError, match=f"holds id {known}, but the model knows {known} tokens"),
    ):
        compute(rows, model=folder, store=tmp_path / "other")


@pytest.mark.parametrize("word", [70, 402, 650])
def test_a_policy_that_differs_in_one_word_is_scored(word, base, chats, tmp_path):
    """Only texts with that word tell the two apart, or the word's own probability where the head is tied."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # of its own
    model.config.tie_word_embeddings = False
    reference = save(model, tmp_path / "reference", base)
    with torch.no_grad():
        model.model.embed_tokens.weight[word] += 0.5
    policy = save(model, tmp_path / "policy", base)
    done = compute(write_jsonl(tmp_path / "d.jsonl", chats[:6]), model=policy, reference=reference, store=tmp_path / "s")
    store, name = done.store, done.name
    assert_scoring_is_true(store, name, policy, reference, 6)


@pytest.mark.parametrize("reference_pass", ["together", "separate"])
def test_an_adapter_of_one_word_that_the_probe_lacks_is_scored_in_one_pass_or_two(reference_pass, base, chats, tmp_path):
    """Its reference is gone by the time that the two are compared; what its words were is kept."""
    peft = pytest.importorskip("peft", reason="needs the peft extra")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # of its own
    model.config.tie_word_embeddings = False
    reference = save(model, tmp_path / "reference", base)
    config = peft.TrainableTokensConfig(token_indices=[402], target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    policy = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    policy.save_pretrained(tmp_path / "policy")
    data = write_jsonl(tmp_path / "d.jsonl", chats[:6])
    scored = compute(
        data,
        model=str(tmp_path / "policy"),
        reference=reference,
        store=tmp_path / "s",
        scoring=ScoringOptions(reference_pass=reference_pass),
    )
    assert scored is not None
    assert scored.manifest.notes == ()


def test_other_settings_with_the_same_weights_and_answers_are_refused(base, chats, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(base, tmp_path / name)
    path = tmp_path / "two" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"a_note": "the same model"}))
    data = write_jsonl(tmp_path / "d.jsonl", chats[:3])
    with pytest.raises(InputError, match=r"same (logits|weights)"):
        compute(data, model=str(tmp_path / "one"), reference=str(tmp_path / "two"), store=tmp_path / "s")


def with_one_word_more(base: str, folder: Path) -> str:
    """The base model whose tokenizer got a padding token that its head does not know, as Llama 2's often has."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    save(model, folder, base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_larger_than_the_head_is_scored_as_long_as_such_a_word_does_not_occur(base, chats, tmp_path):
    model = with_one_word_more(base, tmp_path / "model")
    data = write_jsonl(tmp_path / "d.jsonl", chats[:4])
    with pytest.warns(TokenstatsWarning, match="its tokenizer has"):
        done = compute(data, model=model, store=tmp_path / "s")
    store, name = done.store, done.name
    assert store.scorings[name].manifest.vocabulary < store.manifest.tokenizer.size
    assert store.scorings[name].manifest.notes
    done = compute(data, model=base, store=tmp_path / "plain")
    plain, plain_name = done.store, done.name
    assert plain.part(f"stats/{plain_name}", 0)["entropy"].equals(store.part(f"stats/{name}", 0)["entropy"])
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "an <extra> word"}]
    data = write_jsonl(tmp_path / "e.jsonl", [*chats[:4], {"messages": chat}])
    with (
        pytest.warns(TokenstatsWarning, match="its tokenizer has"),
        pytest.raises(InputError, match=r"sequence 000000004-.* holds id \d+, but the model knows"),
    ):
        compute(data, model=model, store=tmp_path / "t")


def test_a_quantised_models_fingerprint_is_that_of_the_numbers_it_is_made_of():
    """Tensors of torchao are made of others, and cannot be looked at as bytes."""
    from torch.testing._internal.two_tensor import TwoTensor

    from tokenstats.modeling.load import model_fingerprint

    def model(add: float) -> PreTrainedModel:
        made = tiny_model("llama")
        weight = made.model.layers[0].mlp.up_proj.weight.detach()
        made.model.layers[0].mlp.up_proj.weight = nn.Parameter(TwoTensor(weight.clone(), weight + add), requires_grad=False)
        return made

    one, same, other = model(1.0), model(1.0), model(2.0)
    assert model_fingerprint(one) == model_fingerprint(same) != model_fingerprint(other)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_virtual_tokens_of_an_adapter_count_into_the_width(kind, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the peft extra")
    torch.manual_seed(0)
    model = rope_model(kind)
    model.save_pretrained(tmp_path / "base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    adapter = peft.get_peft_model(model, config)
    adapter.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    pair = ModelPair(load_model(str(tmp_path / "adapter"), "float32", CPU), None, VOCABULARY, CPU)
    rows = random_rows([30, 43, 44, 45, 46, 60, 64, 70, 90])  # 44 and 20 are the 64 it was trained on
    np.testing.assert_allclose(logprobs(pair, rows), np.concatenate([logprobs(pair, [row]) for row in rows]), atol=5e-5)


def test_virtual_tokens_take_their_positions(tmp_path):
    peft = pytest.importorskip("peft", reason="needs the peft extra")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    assert max_positions(peft.get_peft_model(tiny_model("gpt2"), config)) == 236


@pytest.mark.parametrize("kind", ["llama4_text", "llama", "gpt2", "cohere"])
def test_only_the_head_stays_of_a_reference_that_was_released(kind):
    """Some architectures are their own decoder: what is moved away must not be the head."""
    from tokenstats.scoring.reference_pass import ReferencePass

    first = ReferencePass.__new__(ReferencePass)
    first.loaded = as_loaded(tiny_model(kind))
    first._pair = ModelPair(first.loaded, None, VOCABULARY, CPU)
    split = first._pair.split[0]
    with torch.no_grad():
        states = split.hidden(PROBE)[0]
        before = split.logits(states)
        first.release()
        assert torch.equal(split.logits(states), before)
    on_meta = [p.is_meta for p in first.loaded.model.parameters()]
    assert sum(on_meta) >= len(on_meta) - 2


@pytest.mark.parametrize("changed", ["a note in the configuration", "an adapter that does nothing"])
def test_two_passes_too_refuse_models_that_answer_the_same(changed, base, chats, tmp_path):
    policy = tmp_path / "policy"
    if changed.startswith("a note"):
        shutil.copytree(base, policy)
        path = policy / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"a_note": "the same model"}))
    else:
        peft = pytest.importorskip("peft", reason="needs the peft extra")
        bare = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        peft.get_peft_model(bare, peft.LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(policy)
    data = write_jsonl(tmp_path / "d.jsonl", chats[:3])
    with pytest.raises(InputError, match="same logits"):
        compute(
            data, model=str(policy), reference=base, store=tmp_path / "s", scoring=ScoringOptions(reference_pass="separate")
        )


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "nemotron_h"])
@pytest.mark.filterwarnings("ignore")
def test_half_precision_models_that_raise_their_logits_are_held_to_half_precision(kind):
    loaded = as_loaded(tiny_model(kind).bfloat16())
    pair = ModelPair(loaded, None, VOCABULARY, CPU)
    ways, _ = pair.check(PROBE)
    assert pair.sharing is not Sharing.NONE
    assert set(ways.values()) == {"split"}


def test_a_model_in_half_precision_that_looks_ahead_a_little_is_refused():
    model = with_neighbours("none")
    real = model.model.forward

    def forward(input_ids: Tensor, **more: object):
        out = real(input_ids=input_ids, **more)
        out.last_hidden_state = out.last_hidden_state + 0.01 * out.last_hidden_state.mean(1, keepdim=True)
        return out

    model.model.forward = forward
    pair = ModelPair(as_loaded(model.bfloat16()), None, VOCABULARY, CPU)
    with pytest.raises(InputError, match="not causal"):
        pair.check(PROBE)


def test_a_probe_that_does_not_fit_in_memory_is_made_shorter(monkeypatch):
    model = with_neighbours("none")
    real = model.forward

    def forward(input_ids: Tensor, **more: object):
        if input_ids.numel() > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(input_ids=input_ids, **more)

    model.forward = forward
    pair = ModelPair(as_loaded(model), None, VOCABULARY, CPU)
    assert pair.check(PROBE[:, :60])[0]


def test_a_dataset_whose_scoring_is_refused_is_not_tokenized_behind_its_back(base, chats, tmp_path):
    import threading

    from tokenstats.errors import StoreError

    data = write_jsonl(tmp_path / "d.jsonl", chats[:40])
    compute(data, model=base, store=tmp_path / "s", name="it", corpus=CorpusOptions(part_tokens=200))
    (tmp_path / "s" / "manifest.json").unlink()
    before = threading.active_count()
    with pytest.raises(StoreError, match="other settings"):
        compute(
            data,
            model=base,
            store=tmp_path / "s",
            name="it",
            corpus=CorpusOptions(part_tokens=200),
            scoring=ScoringOptions(topk=3),
        )
    assert threading.active_count() <= before


def test_a_full_memory_is_no_reason_to_take_a_head_for_one_that_cannot_be_split(monkeypatch):
    split = ModelPair(as_loaded(with_neighbours("none")), None, VOCABULARY, CPU).split[0]

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(split, "logits", full)
    with pytest.raises(torch.OutOfMemoryError):
        split.check(PROBE)
    assert split.is_split
