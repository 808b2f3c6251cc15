"""The sums over the vocabulary, taken in three ways, against an independent float64 computation."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tokenstats.modeling.head import SplitModel
from tokenstats.schema import stats_schema
from tokenstats.scoring.reductions import rows as rows_module
from tokenstats.scoring.reductions.rows import row_statistics
from tokenstats.scoring.reductions.whole_logits import token_statistics

# Triton's interpreter computes with numpy, which warns of inf - inf and of sums beyond float32 where a GPU does not
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
]

CUDA = torch.cuda.is_available()  # without: conftest has Triton run its kernels step by step, on tensors of the CPU
WAYS = ["torch", "numba", "triton"]
VOCABULARIES = [7, 1000, 4097, 32_000, 151_936]
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(params=WAYS)
def way(request) -> str:
    pytest.importorskip({"numba": "numba", "triton": "triton"}.get(request.param, "torch"), reason="an optional package")
    return request.param


@pytest.fixture
def nothing_done_again(monkeypatch) -> None:
    """Rows whose sums fail are done again from whole logits, which would hide a wrong sum."""

    def refuse(*_: object) -> None:
        raise AssertionError("a row was done again")

    monkeypatch.setattr(rows_module, "token_statistics", refuse)


@pytest.fixture
def only_small_kls_done_again(monkeypatch) -> None:
    """Rows with a KL that rounding leaves too little of are meant to be done again, no others."""

    def refuse(logits: Tensor, targets: Tensor, ref_logits: Tensor, topk: int) -> dict[str, Tensor]:
        again = token_statistics(logits, targets, ref_logits, topk)
        assert torch.minimum(again["kl"], again["reverse_kl"]).max() < 4e-6
        return again

    monkeypatch.setattr(rows_module, "token_statistics", refuse)


def truth(z: np.ndarray, y: np.ndarray, r: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Straight from the definitions, in float64."""
    log_p, of_p = _distribution(z, y)
    p = np.exp(log_p)
    columns = {**of_p, "sum_p2": (p**2).sum(-1), "top1_id": z.argmax(-1), "top1_logprob": log_p.max(-1)}
    if r is not None:
        log_q, of_q = _distribution(r, y)
        columns |= {f"ref_{name}": column for name, column in of_q.items()}
        columns |= {"kl": _kl(log_p, log_q), "reverse_kl": _kl(log_q, log_p)}
    return columns


def _distribution(z: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    z = z.astype(np.float64)
    x = z - z.max(-1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
    own = z[np.arange(len(y)), y]
    return log_p, {
        "logprob": log_p[np.arange(len(y)), y],
        "rank": (z > own[:, None]).sum(-1),
        "entropy": -_expected(log_p, log_p),
    }


def _kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return _expected(log_p, log_p - log_q)


def _expected(log_p: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Σ p·v, where a probability of 0 adds nothing."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.where(p > 0, p * values, 0.0).sum(-1)


def assert_true(found: dict[str, Tensor], expected: dict[str, np.ndarray], exact: bool = True, case: str = "") -> None:
    """Within 1e-5; above 10 within 1e-6 of the value, because float32 stores no more. ``exact``: ranks and ids too."""
    assert set(found) == set(expected)
    for name, column in found.items():
        values = column.cpu().double().numpy()
        if name in ("rank", "ref_rank", "top1_id"):
            if exact:
                np.testing.assert_array_equal(values, expected[name], err_msg=f"{name} {case}")
            continue
        finite = np.isfinite(expected[name])
        np.testing.assert_array_equal(values[~finite], expected[name][~finite], err_msg=f"{name} {case}")
        off = np.abs(values[finite] - expected[name][finite]) / np.maximum(1e-5, 1e-6 * np.abs(expected[name][finite]))
        assert (off <= 1.0).all(), f"{name} {case}: {off.max():.2f} times what is allowed, in row {off.argmax()}"
        if name.endswith("kl"):
            assert (values >= -1e-7).all()


def whole() -> SplitModel:
    """A model that is scored through its own logits: its 'hidden states' are logits, of any vocabulary."""
    split = SplitModel(LlamaForCausalLM(LlamaConfig(vocab_size=7, **SIZES)))
    split.is_split = False
    return split


def statistics(way: str, z: np.ndarray, y: np.ndarray, r: np.ndarray | None = None, topk: int = 0) -> dict[str, Tensor]:
    device = "cuda" if CUDA and way == "triton" else "cpu"
    logits = [torch.from_numpy(a).to(device) for a in (z, r) if a is not None]
    return row_statistics([whole()] * len(logits), logits, torch.from_numpy(y).to(device), z.shape[1], topk, way)


def kinds_of_logits(vocabulary: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, logits of the model, of its reference), one row each."""
    rng = np.random.default_rng(vocabulary)

    def noise(scale: float) -> np.ndarray:
        return rng.normal(0, scale, vocabulary).astype(np.float32)

    for scale in (0.01, 1.0, 5.0, 30.0):
        z = noise(scale)
        yield f"scale {scale}, a reference that is near", z, z + noise(0.05 * scale)
        yield f"scale {scale}, a reference that is far", noise(scale), noise(scale)
    ten_thousand = np.float32(1e4)
    for sign in (1, -1):
        yield f"both {sign:+}e4", noise(3) + sign * ten_thousand, noise(3) + sign * ten_thousand
        yield f"the model {sign:+}e4", noise(3) + sign * ten_thousand, noise(3)
        yield f"the reference {sign:+}e4", noise(3), noise(3) + sign * ten_thousand
    yield "one at +1e4, all others at -1e4", *(np.where(np.arange(vocabulary) == i, 1e4, -1e4).astype("f4") for i in (3, 3))
    yield "all negative", -1 - np.abs(noise(3)), -50 - np.abs(noise(3))
    yield "ties", np.round(noise(1)), np.round(noise(1))
    yield "all the same", np.full(vocabulary, 2.5, np.float32), np.full(vocabulary, -3.5, np.float32)
    yield "rising", np.linspace(-40, 40, vocabulary, dtype=np.float32), np.linspace(40, -40, vocabulary, dtype=np.float32)


@pytest.mark.parametrize("models", [1, 2])
def test_every_way_gives_the_columns_of_the_schema_and_no_others(way, models):
    z = np.random.default_rng(0).normal(0, 3, (2, 4, 50)).astype(np.float32)
    y, r = np.arange(4), z[1] if models == 2 else None
    of_schema = set(stats_schema(with_reference=models == 2, topk=3).names) - {"seq_id"}
    assert set(statistics(way, z[0], y, r, topk=3)) == of_schema, "schema.STATISTICS and by_torch.finish should name the same"
    whole_logits = token_statistics(*map(torch.from_numpy, (z[0], y)), None if r is None else torch.from_numpy(r), topk=3)
    assert set(whole_logits) == of_schema, "schema.STATISTICS and whole_logits.token_statistics should name the same"


# step by step on a CPU the widest takes half a minute; 32,000 columns are several blocks too
SLOW = {("triton", 151_936)} if not CUDA else set()


@pytest.mark.parametrize(
    ("way", "vocabulary"),
    [
        pytest.param(way, size, marks=[pytest.mark.thorough] if (way, size) in SLOW else [])
        for way in WAYS
        for size in VOCABULARIES
    ],
    indirect=["way"],
)
def test_sums_over_logits_are_those_of_float64(way, vocabulary, only_small_kls_done_again):
    names, z, r = zip(*kinds_of_logits(vocabulary), strict=True)
    z, r = np.stack(z), np.stack(r)
    # targets at both ends, the first at its row's maximum
    y = np.random.default_rng(0).integers(0, vocabulary, len(z))
    y[:3] = [z[0].argmax(), 0, vocabulary - 1]
    found, expected = statistics(way, z, y, r), truth(z, y, r)
    for row, name in enumerate(names):
        pick = slice(row, row + 1)
        assert_true({k: v[pick] for k, v in found.items()}, {k: v[pick] for k, v in expected.items()}, case=f"({name})")


@pytest.mark.parametrize("vocabulary", [7, 4097])
@pytest.mark.parametrize("rows", [0, 1, 13])
def test_one_model_alone_and_few_rows(way, vocabulary, rows, nothing_done_again):
    rng = np.random.default_rng(rows)
    z, r = (rng.normal(0, 3, (rows, vocabulary)).astype(np.float32) for _ in range(2))
    y = rng.integers(0, vocabulary, rows)
    assert_true(statistics(way, z, y), truth(z, y))
    assert_true(statistics(way, z, y, r), truth(z, y, r))
    topk = statistics(way, z, y, topk=3)
    assert topk["topk_ids"].shape == topk["topk_logprobs"].shape == (rows, 3)


def test_rows_and_columns_may_be_cut_anywhere(way, monkeypatch, nothing_done_again):
    """Row blocks of 5 and column blocks of 17, or chunks of 4 rows: 13 rows and 200 columns fit neither."""
    rng = np.random.default_rng(0)
    z, r = (rng.normal(0, 3, (13, 200)).astype(np.float32) for _ in range(2))
    y = rng.integers(0, 200, 13)
    monkeypatch.setattr(rows_module, "_ROWS", {"cpu": 5, "cuda": 5})
    monkeypatch.setattr(rows_module, "_COLUMNS", {"cpu": 17, "cuda": 17})
    monkeypatch.setattr(rows_module, "_CHUNK", 4 * 200)
    assert_true(statistics(way, z, y, r), truth(z, y, r))


def test_maxima_that_rise_and_fall_by_thousands_between_blocks(way, nothing_done_again):
    """What is summed already must be brought to each new maximum, and what comes after a peak adds next to nothing."""
    rng = np.random.default_rng(0)
    steps = np.repeat([-5000, -20, 0, 3, -20, 9, -5000, 9], 4096).astype(np.float32)
    z, r = (rng.normal(0, 3, (3, len(steps))).astype(np.float32) + sign * steps for sign in (1, 1))
    r[1] = r[1, ::-1]  # where one model's maximum rises the other's falls
    y = np.array([5, 20_000, len(steps) - 1])
    assert_true(statistics(way, z, y, r), truth(z, y, r))


@pytest.mark.parametrize("vocabulary", [1000, 6000])
def test_a_logit_of_minus_infinity_is_a_probability_of_zero(way, vocabulary):
    rng = np.random.default_rng(vocabulary)
    z, r = (rng.normal(0, 3, (6, vocabulary)).astype(np.float32) for _ in range(2))
    y = np.full(6, 500)
    z[:4, 900:], r[:3, 900:] = -np.inf, -np.inf
    z[1, :400], r[1, :400] = -np.inf, -np.inf  # the first columns of all: nothing finite has been met yet
    z[2, y[2]] = -np.inf  # the token itself is impossible: log 0
    expected = truth(z, y, r)
    assert np.isneginf(expected["logprob"][2])
    assert np.isposinf(expected["reverse_kl"][3])
    assert_true(statistics(way, z, y, r), expected)
    assert_true(statistics(way, z, y), truth(z, y))


@pytest.mark.parametrize("vocabulary", [1000, 6000])
@pytest.mark.parametrize("whose", ["both", "the model's", "the reference's"])
def test_words_masked_with_the_lowest_number_add_nothing(way, vocabulary, whose):
    """As models mask words that do not exist: finite, and so low that times any probability above 0 they would be felt."""
    rng = np.random.default_rng(vocabulary)
    z, r = (rng.normal(0, 3, (6, vocabulary)).astype(np.float32) for _ in range(2))
    y = np.full(6, 500)
    lowest = np.finfo(np.float32).min
    for logits, masks in ((z, whose != "the reference's"), (r, whose != "the model's")):
        logits[:, 900 if masks else vocabulary :] = lowest
        logits[3, : 400 if masks else 0] = lowest
    expected, found = truth(z, y, r), statistics(way, z, y, r)
    finite = [name for name in expected if (np.abs(expected[name]) < 1e30).all()]  # a word that only one of them knows
    assert set(expected) - set(finite) <= {"kl", "reverse_kl"}
    assert_true({name: found[name] for name in finite}, {name: expected[name] for name in finite})
    assert_true(statistics(way, z, y), truth(z, y))


@pytest.mark.parametrize("vocabulary", [1000, 32_000])
@pytest.mark.parametrize("apart", [1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
def test_a_small_kl_is_a_number_and_no_noise(way, vocabulary, apart, nothing_done_again):
    """Logits that are ``apart`` nats from each other have a KL of about its square, down to 5e-11.

    The bound is what the float32 of logits of size 30 leaves of it; sums that cancel are off by 2e-7 whatever the KL.
    """
    if way == "triton" and vocabulary > 1000 and not CUDA:
        pytest.skip("Triton's interpreter takes minutes")
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, (24, vocabulary)).astype(np.float32)
    z[:8, 5] += 20  # nearly sure of one word, and the reference's logits all higher or lower
    r = (z + rng.normal(0, apart, z.shape) + rng.normal(0, 3, (24, 1))).astype(np.float32)
    y = np.concatenate([np.full(4, 5), rng.integers(0, vocabulary, 20)])
    found, expected = statistics(way, z, y, r), truth(z, y, r)
    for name in ("kl", "reverse_kl"):
        assert np.abs(found[name].cpu().double().numpy() - expected[name]).max() < 2e-6 * apart
        assert (found[name] >= 0).all()
    whole_rows = token_statistics(torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(r))
    assert np.abs(whole_rows["kl"].double().numpy() - expected["kl"]).max() < 2e-6 * apart


@pytest.mark.parametrize("moved", [0.03, 0.3, 2.0, -3.0])
@pytest.mark.parametrize("elsewhere", [0.0, 1e-4])
def test_the_kl_of_models_that_differ_in_the_targets_word_is_a_number_too(way, moved, elsewhere):
    """Training moved that word, the others hardly: of the sums over blocks rounding left 1e-8 nats of noise, or 0."""
    rng = np.random.default_rng(0)
    vocabulary = 32_000 if way != "triton" or CUDA else 1000
    z = rng.normal(0, 3, (16, vocabulary)).astype(np.float32)
    y = rng.integers(0, vocabulary, 16)
    z[np.arange(16), y] -= 8  # nobody expected it
    r = z + rng.normal(0, 1, z.shape) * elsewhere
    r[np.arange(16), y] += moved
    r = r.astype(np.float32)
    found, expected = statistics(way, z, y, r), truth(z, y, r)
    assert expected["kl"].min() < 1e-7
    for name in ("kl", "reverse_kl"):
        np.testing.assert_allclose(found[name].cpu(), expected[name], rtol=0.05, atol=2e-9)
    assert_true(found, expected)


@pytest.mark.parametrize("far", [70.0, 100.0, 1e4])
@pytest.mark.parametrize("share", [4e-3, 1e-5])
def test_near_models_that_are_far_apart_in_one_word(way, far, share, nothing_done_again):
    """The word has little of the mass, and much of the KL."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1, (4, 3000)).astype(np.float32)
    r = z.copy()
    z[:, 7] = np.log(share * np.exp(z).sum(-1))
    r[:2, 7] = z[:2, 7] - np.float32(far)
    r[2:, 7], z[2:, 7] = z[2:, 7], z[2:, 7] - np.float32(far)
    y = np.array([5, 2900, 5, 2900])
    assert_true(statistics(way, z, y, r), truth(z, y, r))


def test_logits_that_are_no_numbers_stay_none(way):
    rng = np.random.default_rng(0)
    z, r = (rng.normal(0, 3, (5, 5000)).astype(np.float32) for _ in range(2))
    y = rng.integers(0, 5000, 5)
    clean = statistics(way, z, y, r)
    z[1, 2500], r[3, 10] = np.nan, np.nan
    found = statistics(way, z, y, r)
    for name in ("logprob", "entropy", "sum_p2", "kl", "reverse_kl"):
        assert found[name][1].isnan(), name
    for name in ("ref_logprob", "ref_entropy", "kl", "reverse_kl"):
        assert found[name][3].isnan(), name
    for name, column in found.items():
        assert torch.equal(column[[0, 2, 4]], clean[name][[0, 2, 4]]), f"{name} of other rows"


@pytest.mark.parametrize("vocabulary", [7, 5000])
def test_the_most_likely_alternatives(way, vocabulary, nothing_done_again):
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, (9, vocabulary)).astype(np.float32)
    y = rng.integers(0, vocabulary, 9)
    found = statistics(way, z, y, topk=10)  # at most the vocabulary
    k = min(10, vocabulary)
    order = np.argsort(-z, axis=-1)[:, :k]
    np.testing.assert_array_equal(found["topk_ids"].cpu(), order)
    log_p, _ = _distribution(z, y)
    np.testing.assert_allclose(found["topk_logprobs"].cpu(), np.take_along_axis(log_p, order, -1), atol=1e-5, rtol=1e-6)
    np.testing.assert_array_equal(found["topk_ids"][:, 0].cpu(), found["top1_id"].cpu())


# ---- from hidden states and weights


def model_with(head: str, vocabulary: int, seed: int):
    """A small random model; ``head`` says what is done between its hidden states and its logits."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": vocabulary, **SIZES}
    if head == "soft-capping":
        return Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=16, final_logit_softcapping=5.0, initializer_range=0.3))
    if head == "logit scale":
        return CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.25, initializer_range=0.3))
    model = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.3))
    if head == "bias":
        model.set_output_embeddings(nn.Linear(32, vocabulary))
        nn.init.normal_(model.lm_head.bias)
    if head == "no linear layer":
        model.set_output_embeddings(nn.Sequential(nn.Linear(32, 16, bias=False), nn.Tanh(), nn.Linear(16, vocabulary)))
    return model


def exact_logits(model, head: str, hidden: Tensor) -> np.ndarray:
    """[N, H] → [N, V] in float64, from the same tensors."""
    hidden, layer = hidden.double().cpu(), model.get_output_embeddings()
    if head == "no linear layer":
        first, last = (layer[i].weight.detach().double().cpu() for i in (0, 2))
        return (torch.tanh(hidden @ first.T) @ last.T + layer[2].bias.detach().double().cpu()).numpy()
    logits = hidden @ layer.weight.detach().double().cpu().T
    if head == "bias":
        logits += layer.bias.detach().double().cpu()
    if head == "logit scale":
        logits *= 0.25
    if head == "soft-capping":
        logits = 5.0 * torch.tanh(logits / 5.0)
    return logits.numpy()


def from_hidden(way: str, head: str, vocabulary: int, dtype: torch.dtype, rows: int, padding: int = 0):
    """(statistics, the same in float64 from the same hidden states and weights)."""
    device = "cuda" if CUDA and way == "triton" else "cpu"
    models = [model_with(head, vocabulary + padding, seed).to(device, dtype).eval() for seed in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(rows, 32, generator=generator).to(device, dtype) for _ in models]
    y = torch.randint(0, vocabulary, (rows,), generator=generator)
    with torch.inference_mode():
        found = row_statistics([SplitModel(m) for m in models], hidden, y.to(device), vocabulary, way=way)
    z, r = (exact_logits(m, head, h)[:, :vocabulary] for m, h in zip(models, hidden, strict=True))
    return found, truth(z, y.numpy(), r), (z, r, y.numpy())


HEADS = ["linear", "bias", "soft-capping", "logit scale", "no linear layer"]


def assert_ranks_true(found: dict[str, Tensor], logits: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Within the logits that float32 products cannot tell from the target's own."""
    z, r, y = logits
    for name, values in (("rank", z), ("ref_rank", r)):
        own = values[np.arange(len(y)), y][:, None]
        close = (np.abs(values - own) < 1e-5 * np.maximum(1.0, np.abs(own))).sum(-1) - 1
        assert (np.abs(found[name].cpu().numpy() - (values > own).sum(-1)) <= close).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("head", HEADS)
def test_sums_from_hidden_states_are_those_of_float64_products(way, head, dtype, nothing_done_again):
    found, expected, logits = from_hidden(way, head, 4999, dtype, rows=7, padding=73)  # the 73 pad the embedding
    assert_true(found, expected, exact=False)
    assert_ranks_true(found, logits)


@pytest.mark.parametrize("vocabulary", [7, 32_000, 151_936])
def test_sums_from_hidden_states_of_any_vocabulary(way, vocabulary):
    found, expected, logits = from_hidden(way, "linear", vocabulary, torch.bfloat16, rows=3)
    assert_true(found, expected, exact=False)
    assert_ranks_true(found, logits)


def test_a_bias_of_minus_infinity_forbids_words(way):
    models = [model_with("bias", 5000, seed).eval() for seed in (0, 1)]
    hidden = [torch.randn(4, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    y = torch.tensor([0, 5, 1700, 2899])
    with torch.no_grad():
        for model in models:
            model.lm_head.bias[2900:] = -torch.inf
    device = "cuda" if CUDA and way == "triton" else "cpu"
    halves = [SplitModel(m.to(device)) for m in models]
    with torch.inference_mode():
        found = row_statistics(halves, [h.to(device) for h in hidden], y.to(device), 5000, way=way)
    z, r = (exact_logits(m, "bias", h) for m, h in zip(models, hidden, strict=True))
    assert_true(found, truth(z, y.numpy(), r), exact=False)


@pytest.mark.parametrize("way_in_blocks", ["torch", "numba"])
def test_a_row_whose_target_came_out_otherwise_in_its_block_is_done_again(way_in_blocks, monkeypatch):
    """The rank counts against a product of the targets alone; move that one, and the rank must not follow."""
    pytest.importorskip(way_in_blocks, reason="an optional package")
    monkeypatch.setattr(rows_module, "_ROWS_DONE_AGAIN", 2)
    undisturbed, expected, logits = from_hidden(way_in_blocks, "linear", 5000, torch.float32, rows=9)
    real, again = SplitModel.columns, []

    def columns(self, rows, block, out):
        out = real(self, rows, block, out)
        if isinstance(block, Tensor):
            out[::3] += 2.0
        return out

    def count(z, y, *rest, real=rows_module.token_statistics):
        again.append(len(y))
        return real(z, y, *rest)

    monkeypatch.setattr(SplitModel, "columns", columns)
    monkeypatch.setattr(rows_module, "token_statistics", count)
    found, _, _ = from_hidden(way_in_blocks, "linear", 5000, torch.float32, rows=9)
    assert again == [2, 1]
    assert_true(found, expected, exact=False)
    assert_ranks_true(found, logits)
    assert torch.equal(found["rank"], undisturbed["rank"])


@pytest.mark.parametrize("rows", [1, 36, 127, 300])
def test_every_product_has_the_same_shape(rows, monkeypatch):
    """Products of unlike shapes round otherwise: then every target would come out otherwise in its block, and be done again."""
    real, shapes = SplitModel.columns, set()

    def columns(self, hidden, block, out):
        shapes.add((*out.shape, len(self._head.weight[block])))
        return real(self, hidden, block, out)

    monkeypatch.setattr(SplitModel, "columns", columns)
    from_hidden("torch", "linear", 5000, torch.float32, rows=rows)
    assert shapes == {(rows, 2048, 2048)}


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from tokenstats.scoring.reductions.by_triton import _LANES, _STRETCH, _WARPS, _row_sums
kinds = dict(logits="*fp32", targets="*i64", sums="*fp64", counts="*i32", rows="i32", columns="i32",
             row_stride="i64", model_stride="i64", MODELS="constexpr", LANES="constexpr", STRETCH="constexpr")
for models in (1, 2):
    source = ASTSource(_row_sums, kinds, {"MODELS": models, "LANES": _LANES, "STRETCH": _STRETCH})
    for capability in (80, 90):
        built = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": _WARPS})
        assert len(built.asm["cubin"]) > 0
"""


def test_the_kernel_compiles_for_gpus_that_are_not_here(tmp_path):
    """For an A100 and an H100, down to machine code: the compiler comes with triton."""
    pytest.importorskip("triton", reason="Linux only")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
