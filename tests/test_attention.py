"""A sequence gets the same logits whatever it shares its batch with: to the last bit, on one machine."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import MistralConfig, MistralForCausalLM

from tokenstats.modeling.attention import EvenAttention
from tokenstats.modeling.load import load_model
from tokenstats.scoring.pair import ModelPair

WIDTHS = [33, 75, 96, 150, 217, 333, 447, 478, 769]


def naive(query, key, value, hidden) -> torch.Tensor:
    """Softmax of the scaled products in float64, from the definition; ``hidden``: [T, T] what a query may not see."""
    scores = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value.double()


@pytest.mark.parametrize("mask", ["causal", "bool", "float", "lowest", "sliding window"])
@pytest.mark.parametrize("width", [2, 63, 64, 150])
def test_attention_in_blocks_is_attention(width, mask):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, width, 16).unbind()
    hidden = torch.ones(width, width, dtype=torch.bool).triu(1)
    if mask == "sliding window":
        hidden |= torch.ones(width, width, dtype=torch.bool).tril(-20)
    given = {
        "causal": {"is_causal": True},
        "bool": {"attn_mask": ~hidden},
        "float": {"attn_mask": torch.zeros(1, 1, width, width).masked_fill(hidden, -torch.inf)},
        "lowest": {"attn_mask": torch.zeros(1, 1, width, width).masked_fill(hidden, torch.finfo().min)},
        "sliding window": {"attn_mask": ~hidden.expand(2, 1, width, width)},
    }[mask]
    with EvenAttention():
        ours = scaled_dot_product_attention(q, k, v, **given)
    assert (ours - naive(q, k, v, hidden)).abs().max() < 2e-6


def test_attention_to_other_places_is_left_alone():
    """Every query sees every key: zeros behind the keys would be seen too."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 7, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    with EvenAttention():
        across = scaled_dot_product_attention(q, k, v)
        within = scaled_dot_product_attention(k, k, v)
    assert torch.equal(across, scaled_dot_product_attention(q, k, v))
    assert torch.equal(within, scaled_dot_product_attention(k, k, v))


@pytest.mark.parametrize(
    "mask", ["all is seen", "the future of one query is seen", "padding is hidden from all", "a bias for all"]
)
def test_a_mask_that_shows_the_future_is_obeyed(mask):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 150, 16).unbind()
    hidden = torch.ones(150, 150, dtype=torch.bool).triu(1)
    if mask == "the future of one query is seen":
        hidden[3, 149] = False
    else:
        hidden[:] = False
    if mask.startswith("padding"):
        hidden[:, 140:] = True
    given = {
        "padding is hidden": ~hidden[:1],  # one row of the mask, spread over the queries
        "a bias for all": torch.zeros(1, 150),
    }.get(mask, ~hidden)
    with EvenAttention():
        ours = scaled_dot_product_attention(q, k, v, given)
    assert (ours - naive(q, k, v, hidden)).abs().max() < 2e-6


@pytest.fixture
def sliding_window(tmp_path) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=300, num_key_value_heads=2, sliding_window=24, **sizes)
    MistralForCausalLM(config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("kind", ["warmup", "sliding_window"])
def test_hidden_states_do_not_depend_on_the_batch(kind, request):
    loaded = load_model(request.getfixturevalue(kind), "float32", torch.device("cpu"))
    pair = ModelPair(loaded, None, 300, torch.device("cpu"))
    torch.manual_seed(0)
    rows = [torch.randint(0, 300, (width,)) for width in WIDTHS]
    batch, chosen = torch.zeros(2, len(rows), max(WIDTHS), dtype=torch.long)
    for i, row in enumerate(rows):
        batch[i, : len(row)], chosen[i, 1 : len(row)] = row, 1
    with torch.inference_mode():
        together = pair.states(pair.split[0], batch, chosen.bool()).split([len(row) - 1 for row in rows])
        for row, among_others in zip(rows, together, strict=True):
            every = torch.arange(len(row))[None] > 0
            alone = pair.states(pair.split[0], row[None], every)
            assert (alone - among_others).abs().max() < 1e-6
            plain = loaded.model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0, :-1]
            assert (alone - plain).abs().max() < 1e-4, "and they are the model's own, up to rounding"
