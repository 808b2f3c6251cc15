"""Rules that follow the policy: they decide as a stored mask of the same model does, step by step and sequence by sequence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from training_fixtures import (
    QUICK,
    byte_tokenizer,
    largest_difference,
    losses,
    save_tiny_model,
    short_chats,
    train_on_two_processes,
)
from transformers import AutoModelForCausalLM

from tokenstats.computing import compute
from tokenstats.corpus.options import CorpusOptions
from tokenstats.errors import InputError, RuleError, TokenstatsWarning
from tokenstats.following import RuleFollower, follow_rule
from tokenstats.masking.build import build_mask
from tokenstats.masking.rule import Rule
from tokenstats.store import Store
from tokenstats.training import TrainOptions, train
from tokenstats.training.rows import row_keys
from tokenstats.training.selection import BatchTargets

ROWS = 20
RULES = {
    "eksft": Rule.from_preset("eksft"),
    "intersection": Rule.from_preset("eksft-intersection"),
    "as released": Rule.from_preset("eksft-as-released"),
    "random": Rule.from_preset("random"),
    "everything": Rule(
        drop="top(zscore(nll, per=sequence) + reverse_kl, 0.3, per=turn) or rank > 200 or sum_p2 > 0.2 and role == 'assistant'"
        " or following(ref_entropy) < quantile(entropy, 0.1, per=turn) or token_id == 12 or top1_logprob > -1",
        min_kept=4,
    ),
    "weights": Rule(keep="nll > ref_nll", weight="prob + 0.1"),
    "texts": Rule(
        drop="between('e', 's') and entropy > 1 or token_class == 'whitespace' or top(nll, 0.5, per=turn, among=part_of('an'))"
    ),
}
STANDING_STILL = replace(QUICK, learning_rate=1e-30, max_steps=3, batch_size=7)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    made = ((0, "policy"), (3, "reference"))
    policy, reference = (save_tiny_model(folder / name, seed=seed, initializer_range=0.3) for seed, name in made)
    return policy, reference


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> Store:
    folder = tmp_path_factory.mktemp("followed")
    chats = short_chats(ROWS)
    for i in range(0, ROWS, 3):  # several turns
        chats[i]["messages"] += chats[(i + 1) % ROWS]["messages"][:2]
    data = folder / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in chats))
    scoring = compute(
        data, model=models[0], reference=models[1], store=folder / "store", name="scored", corpus=CorpusOptions(part_tokens=700)
    )
    for name, rule in RULES.items():
        build_mask(scoring.store, rule, name.replace(" ", "-"))
    assert byte_tokenizer().chat_template
    return scoring.store


class Recorded(RuleFollower):
    """Remembers what it said of each sequence."""

    def __init__(self, store: Store, rule: Rule):
        super().__init__(store, rule)
        self.said: dict[int, tuple[list[int], list[float] | None]] = {}

    def select(self, targets: BatchTargets) -> tuple[np.ndarray, np.ndarray | None]:
        reason, weight = super().select(targets)
        starts = np.searchsorted(np.flatnonzero(targets.is_target), targets.offsets)
        for key, first, last in zip(targets.keys.tolist(), starts, starts[1:], strict=False):
            self.said[key] = reason[first:last].tolist(), None if weight is None else weight[first:last].tolist()
        return reason, weight


def stored(store: Store, mask: str, column: str) -> dict[int, list]:
    """What a stored mask says of the targets of each sequence."""
    rows = []
    for index in range(store.part_count):
        flags = store.part("tokens", index, ["is_target"])["is_target"].to_pylist()
        values = store.part(f"masks/{mask}", index, [column])[column].to_pylist()
        rows += [[v for v, f in zip(*pair, strict=True) if f] for pair in zip(values, flags, strict=True)]
    return dict(zip(row_keys(store).tolist(), rows, strict=True))


def history(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "history.json").read_text())["training"]


@pytest.mark.parametrize("name", RULES)
def test_of_a_policy_that_stands_still_it_says_what_the_stored_mask_says(
    store: Store, models: tuple[str, str], tmp_path: Path, name: str
) -> None:
    mask, follower = name.replace(" ", "-"), Recorded(store, RULES[name])
    options = replace(STANDING_STILL, reference=models[1] if any("kl" in c or "ref" in c for c in follower.columns) else None)
    followed = train(store, model=models[0], mask=mask, out=tmp_path / "followed", options=options, follow=follower)
    assert follower.said.keys() == set(row_keys(store).tolist())
    reasons = stored(store, mask, "reason")
    assert {key: reason for key, (reason, _) in follower.said.items()} == reasons
    if follower.weighted:
        weights = stored(store, mask, "weight")
        assert all(weight == pytest.approx(weights[key], rel=1e-5) for key, (_, weight) in follower.said.items())
    assert followed.metrics.get("agreement", 1.0) == 1.0
    assert followed.kept_tokens is None
    alone = train(store, model=models[0], mask=mask, out=tmp_path / "stored", options=replace(options, reference=None))
    if alone.rows == followed.rows:
        assert losses(tmp_path / "followed") == pytest.approx(losses(tmp_path / "stored"), rel=1e-5)


@pytest.fixture(scope="module")
def terms(models: tuple[str, str]) -> TrainOptions:
    return replace(
        QUICK,
        entropy_bonus=0.2,
        entropy_on="clause 1",
        kl_penalty=0.5,
        kl_on="clause 2",
        reference=models[1],
        max_steps=6,
        batch_size=8,
        metrics="targets",
    )


def test_terms_move_with_the_rule_and_the_agreement_with_the_mask_is_told(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path
) -> None:
    options, follow = replace(terms, learning_rate=1e-30), follow_rule(store, "mask", mask="eksft")
    train(store, model=models[0], mask="eksft", out=tmp_path / "still", options=options, follow=follow)
    train(store, model=models[0], mask="eksft", out=tmp_path / "stored", options=options)
    assert {"clause_1/kl", "clause_2/kl"} <= history(tmp_path / "stored")[0].keys()
    for one, two in zip(history(tmp_path / "still"), history(tmp_path / "stored"), strict=True):
        assert one.pop("agreement") == 1.0
        del one["tokens_per_second"], two["tokens_per_second"]
        assert {name: one[name] for name in two} == pytest.approx(two, rel=1e-4)
    moving = replace(terms, learning_rate=0.02, max_steps=12)
    train(store, model=models[0], mask="eksft", out=tmp_path / "moving", options=moving, follow=follow)
    agreement = [entry["agreement"] for entry in history(tmp_path / "moving")]
    assert agreement[0] == 1.0
    assert 0 < agreement[-1] < 0.95


@pytest.mark.parametrize("cached", [False, True])
def test_accumulation_and_devices_change_nothing(
    store: Store, models: tuple[str, str], terms: TrainOptions, tmp_path: Path, cached: bool
) -> None:
    """The divisors depend on what is selected, and are those of the whole optimizer batch all the same."""
    if cached:
        terms = replace(terms, reference_cache=str(tmp_path / "cache"))
    follow = follow_rule(store, "eksft")
    for batch_size, accumulation in ((8, 1), (4, 2), (1, 8)):
        options = replace(terms, batch_size=batch_size, accumulation=accumulation)
        train(store, model=models[0], mask="eksft", out=tmp_path / str(accumulation), options=options, follow=follow)
    made = f"__import__('tokenstats.following').following.follow_rule({str(store.path)!r}, 'eksft')"
    options = replace(terms, batch_size=2, accumulation=2)
    train_on_two_processes(store, models[0], ("eksft",), tmp_path / "both", options, follow=made)
    one = tmp_path / "1"
    for other in (tmp_path / "2", tmp_path / "8", tmp_path / "both" / "eksft"):
        assert losses(other) == pytest.approx(losses(one), rel=1e-5)
        assert largest_difference(one, other) < 5e-6


def test_what_it_says_of_a_sequence_does_not_depend_on_the_others(store: Store) -> None:
    """Alone, in another order, beside others: the same reasons and weights."""
    rng = np.random.default_rng(0)
    keys = row_keys(store)[:6]
    rows = []
    for _ in keys:
        is_target = rng.random(30) < 0.7
        is_target[0] = False
        n = int(is_target.sum())
        rows.append((rng.integers(0, 259, 30), is_target, {name: rng.random(n, np.float32) for name in NAMES}))

    def said(order: list[int], rule: Rule) -> list[tuple[list, list | None]]:
        ids, flags, values = zip(*(rows[i] for i in order), strict=True)
        statistics = {name: np.concatenate([v[name] for v in values]) for name in NAMES}
        offsets = np.arange(len(order) + 1) * 30
        recorded = Recorded(store, rule)
        recorded.select(BatchTargets(keys[order], np.concatenate(ids), np.concatenate(flags), offsets, statistics))
        return [recorded.said[int(keys[i])] for i in order]

    for rule in RULES.values():
        together = said([0, 1, 2, 3, 4, 5], rule)
        assert said([5, 3, 1, 0, 2, 4], rule) == [together[i] for i in (5, 3, 1, 0, 2, 4)]
        assert [said([i], rule)[0] for i in range(6)] == together


NAMES = ("logprob", "rank", "entropy", "sum_p2", "top1_logprob", "ref_logprob", "ref_entropy", "kl", "reverse_kl")


def test_dft_that_is_followed_is_dft(store: Store, models: tuple[str, str], tmp_path: Path) -> None:
    """arXiv:2508.05629: p · −log p of the policy as it is then, no gradient through the first p."""
    options = replace(QUICK, max_steps=1, batch_size=ROWS, normalise="targets")
    follow = follow_rule(store, "dft")
    summary = train(store, model=models[0], mask="none", out=tmp_path / "out", options=options, follow=follow)
    network = AutoModelForCausalLM.from_pretrained(models[0])
    total, count = torch.zeros(()), 0
    for index in range(store.part_count):
        table = store.part("tokens", index)
        for ids, flags in zip(table["input_ids"].to_pylist(), table["is_target"].to_pylist(), strict=True):
            tokens, chosen = torch.tensor(ids), torch.tensor(flags)[1:]
            logits = network(input_ids=tokens[None]).logits[0, :-1]
            nll = cross_entropy(logits, tokens[1:], reduction="none")[chosen]
            over_ids = logits[:, :259].log_softmax(-1)
            p = over_ids.gather(-1, tokens[1:, None])[:, 0].exp()[chosen].detach()
            total = total + (p * nll).sum()
            count += int(chosen.sum())
    (total / count).backward()
    assert summary.loss == pytest.approx(float(total.detach() / count), rel=1e-5)
    norm = torch.stack([w.grad.norm() for w in network.parameters() if w.grad is not None]).norm().item()
    assert history(tmp_path / "out")[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule.from_preset("rho-1"), r"top\(nll - ref_nll, 0\.6\) looks at the whole dataset"),
        (Rule(drop="entropy > quantile(entropy, 0.9, per=role)"), "looks at the whole dataset"),
        (Rule(drop="top(percent_rank(kl), 0.2, per=sequence)"), r"percent_rank\(kl\) looks at the whole dataset"),
        (Rule(weight="zscore(nll) + 9"), r"zscore\(nll\) looks at the whole dataset"),
        (Rule(drop="nll > scored.nll"), "reads scored.logprob|reads scored.nll, of a stored scoring"),
        (Rule(drop="random(0.2, per=sequence)", budget="same as eksft"), "counts what a stored mask drops"),
    ],
)
def test_rules_that_a_step_cannot_decide_are_refused_with_the_reason(store: Store, rule: Rule, message: str) -> None:
    with pytest.raises(RuleError, match=f"this rule cannot be followed: .*({message})"):
        follow_rule(store, rule)


def test_other_mistakes_are_named(store: Store, models: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the mask's own rule was to be followed, but there is no mask"):
        follow_rule(store, "mask", mask="none")
    with pytest.raises(InputError, match=r"no preset 'ekfst' \(did you mean 'eksft'\?\)"):
        follow_rule(store, "ekfst")
    follow = follow_rule(store, "eksft")
    common = {"model": models[0], "mask": "eksft", "out": tmp_path / "out", "follow": follow}
    with pytest.raises(InputError, match="the rule that is followed reads kl; expected reference with it"):
        train(store, options=QUICK, **common)
    with pytest.raises(InputError, match="clause '3', which the rule that is followed does not have; its clauses: 1: top"):
        train(store, options=replace(QUICK, entropy_bonus=1.0, entropy_on="clause 3", reference=models[1]), **common)
    with pytest.raises(InputError, match="normalise would do nothing: the rule that is followed does not weigh"):
        train(store, options=replace(QUICK, normalise="targets", reference=models[1]), **common)
    assert list(tmp_path.iterdir()) == []


def test_a_kl_that_begins_at_0_is_warned_of(store: Store, models: tuple[str, str], tmp_path: Path) -> None:
    options = replace(QUICK, max_steps=1, reference=models[0])
    with pytest.warns(TokenstatsWarning, match="starts from the reference itself"):
        train(store, model=models[0], mask="eksft", out=tmp_path / "o", options=options, follow=follow_rule(store, "eksft"))


def test_the_command_line_follows_and_tells(cli, store: Store, models: tuple[str, str], tmp_path: Path) -> None:
    common = ["train", store.path, "--model", models[0], "--mask", "eksft", "--max-steps", 2, "--device", "cpu"]
    terms = ["--reference", models[1], "--kl-penalty", 0.1, "--kl-on", "clause 2"]
    terms += ["--entropy-bonus", 0.1, "--entropy-on", "clause 1"]
    status, out, err = cli(*common, *terms, "--out", tmp_path / "a", "--follow", "mask", "--metrics", "targets")
    assert (status, err) == (0, "")
    for word in (
        "agreement with the mask",
        "kept: nll",
        "entropy_on: nll",
        "kl_on: nll",
        "targets: nll",
        "ln V of clause 1",
    ):
        assert word in out
    record = json.loads((tmp_path / "a" / "tokenstats.json").read_text())
    assert record["follow"]["rule"]["drop"] == RULES["eksft"].drop
    assert (record["reference"]["source"], record["training"]["reference"]) == ("reference", "reference")
    status, _, err = cli(*common, "--out", tmp_path / "b", "--follow", "rho-1")
    assert status == 2
    assert "looks at the whole dataset" in err
