"""The numbers against an independent float64 computation, and against what mathematics says."""

import math

import numpy as np
import pytest
import torch

from tokenstats.scoring.reductions.whole_logits import token_statistics


def truth(logits: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Straight from the definitions, one row at a time, in float64."""
    out: dict[str, list] = {"logprob": [], "rank": [], "entropy": [], "sum_p2": [], "top1_id": [], "log_p": []}
    for z, y in zip(logits.astype(np.float64), targets, strict=True):
        log_p = z - z.max() - np.log(np.sum(np.exp(z - z.max())))
        p = np.exp(log_p)
        inside = p > 0
        out["logprob"].append(log_p[y])
        out["rank"].append(np.sum(z > z[y]))
        out["entropy"].append(-np.sum(p[inside] * log_p[inside]))
        out["sum_p2"].append(np.sum(p**2))
        out["top1_id"].append(np.argmax(z))
        out["log_p"].append(log_p)
    return {k: np.array(v) for k, v in out.items()}


def true_kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


@pytest.mark.parametrize("vocabulary", [2, 7, 703, 1000, 32_000, 151_936])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_agrees_with_float64(vocabulary: int, scale: float):
    rng = np.random.default_rng(vocabulary)
    rows = 40 if vocabulary < 50_000 else 8
    z, r = (rng.normal(0, scale, (rows, vocabulary)).astype(np.float32) for _ in range(2))
    r = z + 0.1 * r  # a reference that is near, as after a fine-tune
    z[::3] -= 500.0  # all negative
    y = rng.integers(0, vocabulary, rows)
    found = {k: v.numpy() for k, v in token_statistics(torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(r)).items()}
    p, q = truth(z, y), truth(r, y)
    for name in ("logprob", "entropy", "sum_p2"):
        np.testing.assert_allclose(found[name], p[name], atol=1e-5, rtol=1e-6, err_msg=name)
    for name in ("logprob", "entropy"):
        np.testing.assert_allclose(found[f"ref_{name}"], q[name], atol=1e-5, rtol=1e-6, err_msg=f"ref_{name}")
    np.testing.assert_array_equal(found["rank"], p["rank"])
    np.testing.assert_array_equal(found["ref_rank"], q["rank"])
    np.testing.assert_array_equal(found["top1_id"], p["top1_id"])
    np.testing.assert_allclose(found["kl"], true_kl(p["log_p"], q["log_p"]), atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(found["reverse_kl"], true_kl(q["log_p"], p["log_p"]), atol=1e-5, rtol=1e-6)


def test_a_tiny_divergence_is_a_number_and_not_noise():
    """bfloat16 logits turn a KL of 2.6e-5 into 4.1e-4; float32 logits must keep three digits of it."""
    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, (50, 5000)).astype(np.float32) + 22.0
    r = z + rng.normal(0, 0.005, z.shape).astype(np.float32)
    y = np.zeros(50, int)
    found = token_statistics(torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(r))["kl"].numpy()
    expected = true_kl(truth(z, y)["log_p"], truth(r, y)["log_p"])
    assert expected.max() < 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-2)


def test_uniform_and_certain_distributions():
    vocabulary = 1000
    y = torch.tensor([3])
    flat = token_statistics(torch.zeros(1, vocabulary), y)
    assert flat["entropy"].item() == pytest.approx(math.log(vocabulary), abs=1e-5)
    assert flat["sum_p2"].item() == pytest.approx(1 / vocabulary)
    assert flat["rank"].item() == 0  # nothing is strictly larger
    assert flat["top1_id"].item() == 0  # the lowest id among equals
    sure = torch.full((1, vocabulary), -1e4)
    sure[0, 3] = 1e4
    certain = token_statistics(sure, y)
    assert certain["entropy"].item() == 0.0
    assert certain["logprob"].item() == 0.0
    assert certain["rank"].item() == 0


def test_a_model_does_not_diverge_from_itself_nor_from_a_shifted_self():
    z = torch.randn(20, 100, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20)
    for same in (z, z + 64.0):
        found = token_statistics(z, y, same)
        assert found["kl"].abs().max() < 1e-6
        assert found["reverse_kl"].abs().max() < 1e-6
        torch.testing.assert_close(found["entropy"], found["ref_entropy"], atol=1e-5, rtol=0)


def test_impossible_words_add_nothing():
    """A column at -inf leaves every number as if the column were not there."""
    z = torch.randn(10, 50, generator=torch.Generator().manual_seed(1))
    r = torch.randn(10, 50, generator=torch.Generator().manual_seed(2))
    y = torch.arange(10)
    wall = torch.full((10, 14), -torch.inf)
    plain = token_statistics(z, y, r)
    walled = token_statistics(torch.cat([z, wall], 1), y, torch.cat([r, wall], 1))
    for name, column in plain.items():
        torch.testing.assert_close(walled[name], column, atol=1e-6, rtol=1e-6)


def test_kl_is_infinite_where_the_reference_excludes_what_the_model_says():
    z, r = torch.zeros(1, 4), torch.tensor([[0.0, 0.0, 0.0, -torch.inf]])
    found = token_statistics(z, torch.tensor([0]), r)
    assert torch.isinf(found["kl"]).all()
    assert found["reverse_kl"].item() == pytest.approx(math.log(4 / 3), abs=1e-6)


def test_kl_goes_from_the_scored_model_to_the_reference():
    p, q = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    found = token_statistics(p.log(), torch.tensor([0]), q.log())
    assert found["kl"].item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)
    assert found["reverse_kl"].item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), abs=1e-6)


def test_half_precision_logits_are_summed_in_float32():
    z = torch.randn(5, 30_000, generator=torch.Generator().manual_seed(3)).bfloat16()
    y = torch.arange(5)
    expected = truth(z.float().numpy(), y.numpy())
    np.testing.assert_allclose(token_statistics(z, y)["entropy"], expected["entropy"], atol=1e-5)


def test_alternatives_come_in_order_of_probability():
    z = torch.randn(6, 40, generator=torch.Generator().manual_seed(4))
    found = token_statistics(z, torch.zeros(6, dtype=torch.long), topk=5)
    assert found["topk_ids"].tolist() == z.argsort(-1, descending=True)[:, :5].tolist()
    torch.testing.assert_close(found["topk_logprobs"][:, 0], found["top1_logprob"])
