"""A preview says what the mask will drop before it is built: held against built masks."""

import numpy as np
import pytest

from tokenstats import Rule, build_mask
from tokenstats.errors import InputError, RuleError
from tokenstats.inspect.preview import open_preview, save_mask, threshold_rule
from tokenstats.inspect.tokens.sequence import read_sequence

RULES = [
    "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)",
    "top(entropy, 0.37) or top(rank, 0.2)",
    "entropy > 3.5 and not is_special or position < 2",
    "random(0.3, seed=5)",
    "top(warm.kl, 50) or nll > quantile(nll, 0.9)",
    "top(entropy, 0.0001) or kl > 7",
]


@pytest.mark.parametrize("protect", ["is_end_of_turn", ""])
@pytest.mark.parametrize("text", RULES)
def test_a_preview_is_the_mask_that_would_be_built(own, text, protect):
    rule = Rule(drop=text, protect=protect)
    outcome = open_preview(own, "warm", rule.columns).decide(rule)
    manifest = build_mask(own, rule, "built", scoring="warm" if rule.needs_scoring else None).manifest
    assert (outcome.counts.targets, outcome.counts.targets - outcome.counts.dropped, outcome.counts.rescued) == (
        manifest.targets,
        manifest.kept,
        manifest.protected,
    )
    assert outcome.counts.rows_with_nothing_kept == manifest.rows_with_nothing_kept
    assert outcome.clauses == [(c.text, c.dropped) for c in manifest.clauses]
    assert outcome.thresholds == manifest.thresholds


@pytest.mark.parametrize("text", RULES)
def test_the_tokens_of_a_preview_are_the_masks_tokens(own, text):
    rule = Rule(drop=text)
    preview = open_preview(own, "warm", rule.columns)
    outcome = preview.decide(rule)
    build_mask(own, rule, "built", scoring="warm" if rule.needs_scoring else None)
    for number in range(own.manifest.sequences):
        here, stored = preview.view(outcome, number), read_sequence(own, number, mask="built", scoring="warm")
        for name in ("ids", "keep", "reason", "protected"):
            assert (getattr(here, name) == getattr(stored, name)).all(), (number, name)
        assert here.clauses == stored.clauses


@pytest.mark.parametrize("most", [100, 900, 1500])
def test_a_sample_says_so_and_still_shows_every_row(seen, most):
    preview = open_preview(seen, "warm", most_tokens=most)
    assert preview.is_sample
    assert 0 < preview.tokens <= most
    assert preview.tokens == sum(int(p.offsets[-1]) for p in preview.parts)
    outcome = preview.decide(Rule(drop="entropy > 3"))
    assert outcome.counts.targets == preview.targets < seen.manifest.targets
    for number in (0, 12, 34):
        view = preview.view(outcome, number)
        entropy = np.array([v if v is not None else np.nan for v in view.statistics["entropy"]])
        dropped = view.is_target & ~view.keep
        assert (dropped == ((np.nan_to_num(entropy) > 3) & ~view.protected)).all()


def test_the_whole_store_is_no_sample(seen):
    preview = open_preview(seen, "warm")
    assert not preview.is_sample
    assert (preview.tokens, preview.targets) == (seen.manifest.tokens, seen.manifest.targets)


def test_rows_are_found_in_their_parts(seen):
    places = [seen.locate(n) for n in range(seen.manifest.sequences)]
    assert places == [(part, row) for part, listed in enumerate(seen.manifest.parts) for row in range(listed.rows)]
    for wrong in (-1, seen.manifest.sequences):
        with pytest.raises(InputError, match="0 to 34"):
            seen.locate(wrong)


@pytest.mark.parametrize(
    ("knobs", "drop"),
    [
        ({"entropy": 0.2, "kl": 0.2}, "top(entropy, 0.2, per=sequence) or top(kl, 0.2, per=sequence)"),
        ({"entropy": 0.1, "kl": 0.3, "both": True}, "top(entropy, 0.1, per=sequence) and top(kl, 0.3, per=sequence)"),
        ({"entropy": 0.2, "kl": 0, "per": "dataset"}, "top(entropy, 0.2)"),
        ({"entropy": 2, "kl": 0.1 + 0.2, "as_share": False}, "entropy > 2.0 or kl > 0.3"),
    ],
)
def test_knobs_write_the_rule_that_one_would_write_by_hand(knobs, drop):
    assert threshold_rule(**knobs) == Rule(drop=drop)
    assert threshold_rule(0, 0) is None


def test_a_saved_mask_brings_its_rule(own):
    rule = Rule(drop="entropy > 3 or kl > 5", protect="")
    mask, path = save_mask(own, rule, "mine", scoring="warm")
    assert own.masks["mine"] == mask
    assert path == own.path / "rules" / "mine.toml"
    assert Rule.load(path).fingerprint == mask.manifest.rule_fingerprint


def test_a_rule_with_a_budget_is_not_guessed_at(seen):
    with pytest.raises(InputError, match="budget"):
        open_preview(seen, "warm").decide(Rule(drop="random(0.2)", budget="same as eksft"))


@pytest.mark.parametrize("column", ["entropy", "kl"])
def test_limits_to_try_reach_from_most_of_the_tokens_to_few(seen, column):
    preview = open_preview(seen, "warm")
    limits = preview.limits(column)
    above = [preview.decide(Rule(drop=f"{column} > {limit}", protect="")).counts.share_dropped for limit in limits]
    assert above == sorted(above, reverse=True)
    assert above[0] > 0.55
    assert above[-1] < 0.01
    assert np.abs(np.diff(above)).max() < 0.05


def test_a_bad_rule_raises_before_anything_is_saved(own):
    with pytest.raises(RuleError):
        save_mask(own, Rule(drop="cold.entropy > 1"), "never", scoring="warm")
    assert "never" not in own.masks
    assert not (own.path / "rules").exists()
