"""What a page says while a threshold is held is what the engine decides when it is let go: token by token."""

import numpy as np
import pytest
from inspect_fixtures import make_store, store_with_masks
from synthetic import random_store

from tokenstats.inspect.preview import Preview, open_preview, threshold_rule
from tokenstats.inspect.steering import SHARES, Steering, steering


def held(preview: Preview, scope: str, protect: str, limits: dict | None) -> Steering:
    any_rule = threshold_rule(0.5, 0.0, protect=protect)
    return steering(preview, preview.decide(any_rule).decisions, scope, limits)


def setting_of(scope: str, limits: list[float], setting: int) -> float:
    """What :func:`threshold_rule` takes for a setting."""
    if scope != "nats":
        return SHARES[setting]
    return limits[len(limits) - setting] if setting else 0.0


@pytest.mark.parametrize("scope", ["sequence", "dataset", "nats"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("protect", ["is_end_of_turn", ""])
@pytest.mark.parametrize("kind", ["conversations", "ties"])
def test_any_two_settings_drop_what_their_rule_drops(tmp_path, scope, both, protect, kind):
    store = store_with_masks() if kind == "conversations" else random_store(tmp_path / "store", 60, seed=9)
    preview = open_preview(store, "warm")
    limits = {c: preview.limits(c) for c in ("entropy", "kl")} if scope == "nats" else None
    found = held(preview, scope, protect, limits)
    rng = np.random.default_rng(0)
    most = {c: len(limits[c]) if limits else len(SHARES) - 1 for c in ("entropy", "kl")}
    for first, second in [
        (0, 3),
        (3, 0),
        *zip(rng.integers(1, most["entropy"] + 1, 8), rng.integers(1, most["kl"] + 1, 8), strict=True),
    ]:
        wanted = [setting_of(scope, limits[c] if limits else [], int(s)) for c, s in (("entropy", first), ("kl", second))]
        if both and not all(wanted):
            continue  # a rule of one threshold has no "both"
        rule = threshold_rule(*wanted, as_share=scope != "nats", per=scope, both=both, protect=protect)
        outcome = preview.decide(rule)
        assert found.dropped(int(first), int(second), both) == outcome.counts.dropped
        for part, decisions in enumerate(outcome.decisions):
            flags = [found.levels[c][part] <= s for c, s in (("entropy", first), ("kl", second))]
            assert ((flags[0] & flags[1] if both else flags[0] | flags[1]) == decisions.dropped).all()


def test_histograms_count_every_target_once_and_the_dropped_ones_by_bin():
    preview = open_preview(store_with_masks(), "warm")
    found = held(preview, "sequence", "", None)
    for column in ("entropy", "kl"):
        values = np.concatenate([p.column((None, column)) for p in preview.parts])
        assert found.counts[column].sum() == preview.targets
        level = np.concatenate(found.levels[column])
        for setting in (0, 20, 99):
            assert found.by_bin[column][setting].sum() == (level <= setting).sum()
        edges = found.edges[column]
        inside = (values >= edges[40]) & (values < edges[41])
        assert found.counts[column][40] == inside.sum()


def test_without_a_reference_there_is_one_threshold():
    preview = open_preview(make_store("no-reference", reference=False), "warm")
    found = held(preview, "sequence", "", None)
    assert set(found.levels) == {"entropy"}
    assert found.dropped(20, 0, False) == preview.decide(threshold_rule(0.2, 0.0, protect="")).counts.dropped
