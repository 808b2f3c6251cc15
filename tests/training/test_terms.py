"""The loss of three terms against whole float64 logits: values, gradients, and what each term leaves alone."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from loss_fixtures import VOCABULARY, assert_same_gradients, gradients, split_of
from torch import Tensor, nn
from training_fixtures import tiny_model

from tokenstats.modeling.head import SplitModel
from tokenstats.training import TrainOptions
from tokenstats.training.loss import masked_loss
from tokenstats.training.objective import Objective, OptimizerBatch
from tokenstats.training.reference import ModelBeside
from tokenstats.training.rows import IGNORED
from tokenstats.training.selection import Batch
from tokenstats.training.terms import plan_terms
from tokenstats.training.token_sets import ENTROPY, KEPT, KL, TARGET

IDS = 259
"""Of the tokenizer: the last five columns of the tiny models only pad their embedding."""
MODELS = {"untied": tiny_model, "tied": lambda: tiny_model(tie_word_embeddings=True)}
REFERENCE = tiny_model(seed=7, initializer_range=0.3).eval()
BOTH = {"entropy_bonus": 0.3, "entropy_on": "targets", "kl_penalty": 0.7, "kl_on": "targets", "reference": "q"}
TERMS = {
    "entropy": {"entropy_bonus": 0.3, "entropy_on": "targets"},
    "exact": {"kl_penalty": 0.7, "kl_on": "targets", "reference": "q"},
    "reverse": {"kl_penalty": 0.7, "kl_on": "targets", "reference": "q", "kl_term": "reverse"},
    "as-released": {"kl_penalty": 0.7, "kl_on": "targets", "reference": "q", "kl_term": "as-released"},
    "both": BOTH,
    "both, all told": {**BOTH, "metrics": "targets"},
}


def batch_of(seed: int = 0, rows: int = 4, length: int = 17) -> Batch:
    """Random tokens; of the targets some are kept, some of E, some of K, some nothing."""
    rng = np.random.default_rng(seed)
    target = rng.random((rows, length)) < 0.8
    target[:, 0] = False
    sets = np.where(target, TARGET, 0)
    for bit, share in ((KEPT, 0.6), (ENTROPY, 0.3), (KL, 0.3)):
        sets |= np.where(target & (rng.random((rows, length)) < share), bit, 0)
    ids = rng.integers(3, IDS, (rows, length))
    labels = np.where(sets & KEPT, ids, IGNORED)
    return {name: torch.from_numpy(values) for name, values in (("input_ids", ids), ("labels", labels), ("sets", sets))}


def part_of(batch: Batch, rows: slice) -> Batch:
    return {name: values[rows] for name, values in batch.items()}


def without(batch: Batch, bit: int) -> Batch:
    return {**batch, "sets": batch["sets"] & ~bit}


def objective_of(split: SplitModel, options: dict, rows_at_once: int = 1000) -> Objective:
    planned = TrainOptions(**options)
    terms = plan_terms(planned, has_reference=planned.reference is not None, by_weights=False, reads=None)
    reference = ModelBeside(split_of(REFERENCE)) if planned.reference is not None else None
    return Objective(split, terms, IDS, reference, logits_at_once=rows_at_once * VOCABULARY)


def loss_of(objective: Objective, batches: list[Batch]) -> Tensor:
    together = OptimizerBatch(objective)
    together.begin(batches, lambda divisors: divisors)
    return sum(together.loss(batch, lambda divisors: divisors)[0] for batch in batches)


def truth(model: nn.Module, batch: Batch, options: dict) -> Tensor:
    """The formula on whole float64 logits, token by token."""
    planned, sets = TrainOptions(**options), batch["sets"][:, 1:]
    every = model(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    nll = -every.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    log_p = every[..., :IDS].log_softmax(-1)
    with torch.no_grad():
        q = copy.deepcopy(REFERENCE).double()(input_ids=batch["input_ids"]).logits[:, :-1, :IDS].softmax(-1)
    p = log_p.exp()
    divergence = {
        "exact": p * (log_p - q.log()),
        "reverse": q * (q.log() - log_p),
        "as-released": p * (p - q.log()),
    }[planned.kl_term].sum(-1)
    loss = nll[sets & KEPT > 0].mean()
    if planned.entropy_bonus:
        loss = loss - planned.entropy_bonus * (-(p * log_p).sum(-1) / math.log(IDS))[sets & ENTROPY > 0].mean()
    if planned.kl_penalty:
        loss = loss + planned.kl_penalty * divergence[sets & KL > 0].mean()
    return loss


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("rows_at_once", [5, 1000])
def test_value_and_gradient_of_each_term_are_those_of_whole_float64_logits(model: str, name: str, rows_at_once: int) -> None:
    network, batch = MODELS[model](), batch_of()
    precise = copy.deepcopy(network).double()
    ours = loss_of(objective_of(split_of(network), TERMS[name], rows_at_once), [batch])
    expected = truth(precise, batch, TERMS[name])
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(gradients(network, ours), gradients(precise, expected))


@pytest.mark.parametrize("name", TERMS)
def test_micro_batches_share_their_divisors(name: str) -> None:
    network, batch = tiny_model(), batch_of(rows=8)
    batch["sets"][2] = 0  # a micro-batch with nothing to learn
    batch["labels"][2] = IGNORED
    objective = objective_of(split_of(network), TERMS[name])
    whole = loss_of(objective, [batch])
    expected = gradients(network, whole)
    for size in (1, 2, 4):
        parts = loss_of(objective, [part_of(batch, slice(i, i + size)) for i in range(0, 8, size)])
        assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
        assert_same_gradients(gradients(network, parts), expected)


@pytest.mark.parametrize(("bit", "left"), [(ENTROPY, "exact"), (KL, "entropy")])
def test_a_term_over_no_token_adds_exactly_0(bit: int, left: str) -> None:
    network = tiny_model()
    batch = without(batch_of(), bit)
    with_it = loss_of(objective_of(split_of(network), BOTH), [batch])
    without_it = loss_of(objective_of(split_of(network), TERMS[left]), [batch])
    assert with_it.item() == without_it.item()
    one, two = gradients(network, with_it), gradients(network, without_it)
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_a_batch_of_terms_alone_has_no_cross_entropy_and_one_of_nothing_has_loss_0() -> None:
    network, batch = tiny_model(), without(batch_of(), KEPT)
    batch["labels"][:] = IGNORED
    objective = objective_of(split_of(network), TERMS["entropy"])
    together = OptimizerBatch(objective)
    together.begin([batch], lambda divisors: divisors)
    loss, parts, _ = together.loss(batch, lambda divisors: divisors)
    assert (parts[0].item(), loss.item()) == (0.0, pytest.approx(-0.3 * parts[1].item(), rel=1e-6))
    nothing = loss_of(objective, [{**batch, "sets": torch.zeros_like(batch["sets"])}])
    assert nothing.item() == 0.0
    found = gradients(network, nothing)
    assert found.keys() == dict(network.named_parameters()).keys()
    assert all((gradient == 0).all() for gradient in found.values())


def test_as_released_is_the_published_formula_and_no_divergence() -> None:
    """Replayed in plain numpy, as the published code has it: softmax of the policy times (itself minus the reference's log)."""
    network, batch = tiny_model(), batch_of()
    together = OptimizerBatch(objective_of(split_of(network), {**TERMS["as-released"], "kl_penalty": 1.0}))
    together.begin([batch], lambda divisors: divisors)
    parts = together.loss(batch, lambda divisors: divisors)[1]
    total, count, by_parts = 0.0, 0, 0.0
    with torch.no_grad():
        logits = [m(input_ids=batch["input_ids"]).logits.double().numpy()[..., :IDS] for m in (network, REFERENCE)]
    for row, t in zip(*np.nonzero(batch["sets"].numpy() & KL), strict=True):
        p, q = (np.exp(z[row, t - 1] - z[row, t - 1].max()) for z in logits)
        p, q = p / p.sum(), q / q.sum()
        total += float((p * (p - np.log(q))).sum())
        by_parts += float((p**2).sum() - (p * np.log(p)).sum() + (p * (np.log(p) - np.log(q))).sum())
        count += 1
    assert parts[2].item() == pytest.approx(total / count, rel=1e-6)
    assert by_parts == pytest.approx(total, rel=1e-9), "Σp² + H + KL"


def test_the_divergence_from_oneself_is_0_and_pulls_nowhere() -> None:
    network = copy.deepcopy(REFERENCE)
    batch = without(without(batch_of(), KEPT), ENTROPY)
    batch["labels"][:] = IGNORED
    loss = loss_of(objective_of(split_of(network), TERMS["exact"]), [batch])
    assert abs(loss.item()) < 1e-7
    assert max(g.abs().max().item() for g in gradients(network, loss).values()) < 1e-6


def test_without_terms_the_objective_has_the_loss_of_plain_training_whatever_is_told() -> None:
    network, batch = tiny_model(), batch_of()
    plain = masked_loss(split_of(network), batch["input_ids"], batch["labels"], (batch["labels"] != IGNORED).sum())
    value, expected = plain.item(), gradients(network, plain)
    for metrics in ("kept", "targets"):
        told = loss_of(objective_of(split_of(network), {"metrics": metrics}), [batch])
        assert told.item() == pytest.approx(value, rel=1e-7)
        assert_same_gradients(gradients(network, told), expected)


@pytest.mark.parametrize("name", TERMS)
def test_the_head_runs_once_on_the_union_of_what_the_terms_need(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, batch = tiny_model(), batch_of()
    objective = objective_of(split_of(network), TERMS[name], rows_at_once=6)
    bits = {"entropy": ENTROPY | KEPT, "both": ENTROPY | KEPT | KL, "both, all told": TARGET}.get(name, KEPT | KL)
    seen: list[int] = []
    logits: Callable = SplitModel.logits
    monkeypatch.setattr(
        SplitModel,
        "logits",
        lambda self, rows: (seen.append(len(rows)) if self is objective.split else None) or logits(self, rows),
    )
    loss_of(objective, [batch])
    assert sum(seen) == int((batch["sets"] & bits > 0).sum())
    assert max(seen) <= 6
