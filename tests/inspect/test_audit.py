"""The audit against a recount by hand, and every check against a store that has the fault it looks for."""

import io
import shutil
import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from inspect_fixtures import (
    HOSTILE_ROWS,
    IMITATION,
    LONG_ROW,
    byte_level_tokenizer,
    edit_manifest,
    edit_rows,
    make_store,
)
from rich.console import Console
from synthetic import add_scoring, random_store

from tokenstats import Rule, Store, build_mask
from tokenstats.errors import StoreError
from tokenstats.inspect.audit.audit import Audit, audit
from tokenstats.inspect.audit.checks import Finding
from tokenstats.inspect.tokens.detokenize import Decoder
from tokenstats.schema import BY_COMPARISON, BY_COMPLETION, BY_MARKERS, BY_TEXT, BY_TRAINING_TEMPLATE, ROLES
from tokenstats.store.vocabulary import class_of

MASKS = ("eksft", "dataset-wide", "random")


def rows_on_disk(store: Store, mask: str | None, scoring: str = "warm") -> list[dict]:
    """Every row of the store as plain Python values."""
    families = ["tokens", f"stats/{scoring}"] + ([f"masks/{mask}"] if mask else [])
    tables = [pa.concat_tables([store.part(f, i) for i in range(store.part_count)]).to_pylist() for f in families]
    return [{k: v for family in row for k, v in family.items()} for row in zip(*tables, strict=True)]


def recount(store: Store, mask: str | None, scoring: str = "warm") -> dict:
    """What the audit should say, counted token by token in plain Python."""
    ends = set(store.manifest.tokenizer.end_of_turn_ids)
    count: Counter = Counter()
    tenths, roles, clauses = [[0, 0] for _ in range(10)], Counter(), Counter()
    turns, classes, ends_of_replies = Counter(), Counter(), Counter()
    of_token: dict[int, list[int]] = {}
    sums: dict[str, list[float]] = {c: [0.0, 0.0] for c in ("entropy", "kl", "nll")}
    for row in rows_on_disk(store, mask, scoring):
        targets = [i for i, t in enumerate(row["is_target"]) if t and i > 0]
        keep = row.get("keep", row["is_target"])
        count["sequences"] += 1
        count["tokens"] += len(row["input_ids"])
        count["nothing_kept"] += not any(keep[i] for i in targets)
        replies: list[list[int]] = []
        for i in targets:
            if not replies or replies[-1][-1] != i - 1:
                replies.append([])
            replies[-1].append(i)
        count["replies"] += len(replies)
        for turn, reply in enumerate(replies):
            ends_of_replies["first", not keep[reply[0]]] += 1
            ends_of_replies["last", not keep[reply[-1]]] += 1
            for place, i in enumerate(reply):
                dropped = not keep[i]
                turns[str(turn), dropped] += 1
                text = Decoder(store).token(row["input_ids"][i])
                special = row["input_ids"][i] in store.manifest.tokenizer.special_ids
                classes["special" if special else class_of(text), dropped] += 1
                tenth = tenths[int(10 * place / len(reply))]
                tenth[0] += 1
                tenth[1] += dropped
                count["targets"] += 1
                count["kept"] += not dropped
                roles[ROLES[row["role"][i]], dropped] += 1
                count["ends", dropped] += row["input_ids"][i] in ends
                token = of_token.setdefault(row["input_ids"][i], [0, 0])
                token[0] += 1
                token[1] += dropped
                for bit in range(16):
                    clauses[bit] += row.get("reason", [0] * len(keep))[i] >> bit & 1
                for column, value in (("entropy", row["entropy"][i]), ("kl", row["kl"][i]), ("nll", -row["logprob"][i])):
                    sums[column][dropped] += value
    groups = {"by_role": roles, "by_turn": turns, "by_class": classes}
    places = {"tenths": tenths, "ends_of_replies": ends_of_replies}
    return {"count": count, **places, "groups": groups, "clauses": clauses, "tokens": of_token, "sums": sums}


def forget_statistics(store: Store) -> None:
    """Leave only the tokens: edited targets have no statistics."""
    shutil.rmtree(store.path / "stats")
    shutil.rmtree(store.path / "masks")


def targets_of(row: dict) -> list[int]:
    return [i for i, target in enumerate(row["is_target"]) if target and i > 0]


def finding(found: Audit, name: str) -> Finding:
    (one,) = (f for f in found.findings if f.name == name)
    return one


@pytest.mark.parametrize("mask", [None, *MASKS])
def test_counts_agree_with_a_recount_by_hand(seen, mask):
    found, hand = audit(seen, mask), recount(seen, mask)
    count = hand["count"]
    for name in ("sequences", "tokens", "targets", "kept", "replies", "nothing_kept"):
        assert getattr(found, name) == count[name], name
    assert found.share_dropped == pytest.approx(1 - count["kept"] / count["targets"])
    assert [[s.targets, s.dropped] for s in found.by_position] == hand["tenths"]
    for name, group in hand["groups"].items():
        assert {(s.label, s.targets, s.dropped) for s in getattr(found, name)} == {
            (label, group[label, False] + group[label, True], group[label, True]) for label, _ in group
        }
    for share, name in ((found.first_token, "first"), (found.last_token, "last")):
        kept, dropped = (hand["ends_of_replies"][name, is_dropped] for is_dropped in (False, True))
        assert (share.targets, share.dropped) == (kept + dropped, dropped)
    assert [s.dropped for s in found.by_clause] == [hand["clauses"][i] for i in range(len(found.by_clause))]
    assert (found.end_of_turn.targets, found.end_of_turn.dropped) == (
        count["ends", False] + count["ends", True],
        count["ends", True],
    )
    most = sorted(((t, d, i) for i, (t, d) in hand["tokens"].items() if d), key=lambda x: (-x[1], x[2]))[:20]
    assert [(t.targets, t.dropped, t.token_id) for t in found.most_dropped] == most
    assert all(t.text == Decoder(seen).visible(t.token_id) for t in found.most_dropped)
    for mean in found.means:
        kept, dropped = hand["sums"][mean.statistic]
        assert mean.kept == pytest.approx(kept / count["kept"])
        assert mean.dropped == (pytest.approx(dropped / (count["targets"] - count["kept"])) if mask else None)


def test_the_sum_over_every_breakdown_is_the_whole(seen):
    found = audit(seen, "dataset-wide")
    for shares in (found.by_position, found.by_role, found.by_turn, found.by_class):
        assert sum(s.targets for s in shares) == found.targets
        assert sum(s.dropped for s in shares) == found.targets - found.kept


def test_it_does_not_depend_on_the_parts(seen):
    whole = make_store("one-part", part_tokens=1_000_000)
    if "eksft" not in whole.masks:
        build_mask(whole, Rule.from_preset("eksft"), "eksft")
    found = [{**audit(s, "eksft").to_dict(), "store": "", "means": ""} for s in (whole, seen)]
    assert found[0] == found[1]


def test_without_any_scoring_it_tells_what_will_be_learned(own):
    forget_statistics(own)
    found = audit(own)
    assert (found.scoring, found.mask, found.means) == (None, None, ())
    assert found.kept == found.targets > 0
    assert not {"kl", "fit"} & {f.name for f in found.findings}


def test_a_sound_store_has_nothing_to_complain_of_but_its_own_faults(seen):
    by_name = {f.name: f for f in audit(seen).findings}
    faulty = {"left_out_rows", "truncated_rows", "special_tokens", "fit"}
    assert {name for name, f in by_name.items() if f.verdict != "ok"} == faulty
    assert by_name["special_tokens"].rows == (HOSTILE_ROWS[IMITATION],)
    assert by_name["truncated_rows"].rows == (LONG_ROW,)
    assert "1 × no assistant turn (first: dataset row 35)" in by_name["left_out_rows"].message


def test_dropped_end_of_turn_tokens_are_a_problem(own):
    build_mask(own, Rule(drop="is_end_of_turn", protect=""), "mute")
    found = audit(own, "mute")
    assert finding(found, "end_of_turn_dropped").verdict == "problem"
    assert found.end_of_turn.dropped == found.end_of_turn.targets > 0
    assert len(finding(found, "end_of_turn_dropped").rows) == 10
    assert finding(audit(own, "eksft"), "end_of_turn_dropped").verdict == "ok"


def test_rows_with_nothing_kept_are_listed(own):
    build_mask(own, Rule(drop="length < 20", protect=""), "short")
    rows = rows_on_disk(own, "short")
    empty = [i for i, row in enumerate(rows) if not any(row["keep"])]
    assert 0 < len(empty) < len(rows)
    found = audit(own, "short")
    assert found.nothing_kept == len(empty)
    assert finding(found, "nothing_kept").rows == tuple(empty[:10])


def test_a_mask_that_drops_nothing_or_too_much_is_noticed(own):
    build_mask(own, Rule(drop="entropy < 0"), "nothing")
    build_mask(own, Rule(drop="entropy >= 0"), "all")
    assert "no effect" in finding(audit(own, "nothing"), "share_dropped").message
    assert "more is dropped than learned" in finding(audit(own, "all"), "share_dropped").message
    assert finding(audit(own, "all"), "reply_starts").verdict == "warning"
    assert finding(audit(own, "nothing"), "reply_starts").verdict == "ok"


def test_a_mask_that_keeps_only_what_is_known_is_noticed(scored, tmp_path):
    store = Store(shutil.copytree(scored.path, tmp_path / "store"))
    verdicts = {}
    for name, rule in {"surest": "nll > 0.05", "likely": "nll > 2", "unlikely": "nll < 0.5", "all": "nll < 0"}.items():
        build_mask(store, Rule(drop=rule, protect=""), name)
        found, (kept, dropped) = audit(store, name), recount(store, name, "warmup")["sums"]["nll"]
        answer = finding(found, "left_to_learn")
        verdicts[name] = answer.verdict
        if found.kept < found.targets:
            means = kept / found.kept, dropped / (found.targets - found.kept)
            assert answer.message.startswith(
                "mean −log p of what is kept is {:.3f} nats, of what is dropped {:.3f}".format(*means)
            )
            assert (answer.verdict == "warning") == (means[0] < 0.02)
    assert verdicts == {"surest": "warning", "likely": "ok", "unlikely": "ok", "all": "ok"}
    assert "little left to learn" in finding(audit(store, "surest"), "left_to_learn").message


@pytest.mark.parametrize(("times", "verdict"), [(0.6, "note"), (0.72, "ok"), (1.5, "ok")])
def test_rows_of_which_one_pass_learned_much_are_noted(own, times, verdict):
    add_scoring(own, "moved", lambda logprob: logprob * times, columns=("logprob",))
    build_mask(own, Rule(drop="entropy > 1"), "m", scoring="moved")
    tokens = [(row["logprob"][i], row["ref_logprob"][i]) for row in rows_on_disk(own, "m", "moved") for i in targets_of(row)]
    after, before = (-sum(values) / len(tokens) for values in zip(*tokens, strict=True))
    found = finding(audit(own, "m"), "learned_fast")
    assert found.verdict == verdict == ("note" if after < before * 2 / 3 else "ok")
    assert found.message.startswith(f"mean −log p of the targets is {after:.3f} nats, under the reference {before:.3f}")
    assert (f"{100 * (1 - after / before):.0f}% less" in found.message) == (verdict == "note")


def test_where_nothing_is_dropped_it_does_not_matter_how_fast_rows_teach(own):
    add_scoring(own, "moved", lambda logprob: logprob * 0.5, columns=("logprob",))
    build_mask(own, Rule(drop="entropy < 0"), "nothing", scoring="moved")
    assert finding(audit(own, "nothing"), "learned_fast").verdict == "ok"
    assert "learned_fast" not in {f.name for f in audit(own, None, "moved").findings}


def test_without_a_reference_nothing_is_said_of_it(tmp_path):
    alone = make_store("no-reference", reference=False)
    store = Store(shutil.copytree(alone.path, tmp_path / "store"))
    build_mask(store, Rule(drop="entropy > 1"), "m")
    assert "learned_fast" not in {f.name for f in audit(store, "m").findings}


def test_replies_without_an_end_are_listed_but_cut_ones_are_not(own):
    assert finding(audit(own), "end_of_turn").verdict == "ok"

    def forget_the_end(rows: list[dict]) -> None:
        for row in rows[2:4]:
            last = max(i for i, target in enumerate(row["is_target"]) if target)
            row["is_target"][last] = False

    edit_rows(own, 0, forget_the_end)
    found = audit(Store(own.path))
    assert found.unended == 2
    assert finding(found, "end_of_turn").rows == (2, 3)
    assert finding(found, "end_of_turn").verdict == "warning"


def test_a_blank_after_the_end_of_turn_token_is_no_missing_end(own):
    def learn_the_newline(rows: list[dict]) -> None:
        for row in rows:
            last = max(i for i, target in enumerate(row["is_target"]) if target)
            if last + 1 < len(row["is_target"]):
                row["is_target"][last + 1] = True

    forget_statistics(own)
    edit_rows(own, 0, learn_the_newline)
    found = audit(Store(own.path))
    assert found.unended == 0
    assert finding(found, "special_tokens").rows == (HOSTILE_ROWS[IMITATION],)


def test_doubled_bos_is_a_problem(own):
    first = own.part("tokens", 0)["input_ids"][0].as_py()[0]
    edit_manifest(own.path, tokenizer={"bos_id": first})
    assert audit(Store(own.path)).doubled_bos == 0

    def double(rows: list[dict]) -> None:
        for row in rows:
            row["input_ids"][1] = row["input_ids"][0]

    edit_rows(own, 1, double)
    found = audit(Store(own.path))
    parts = own.manifest.parts
    assert found.doubled_bos == parts[1].rows
    assert finding(found, "doubled_bos").verdict == "problem"
    assert finding(found, "doubled_bos").rows == tuple(range(parts[0].rows, parts[0].rows + min(10, parts[1].rows)))


def test_learned_prompts_are_a_problem(own):
    def learn_all(rows: list[dict]) -> None:
        for row in rows:
            row["is_target"] = [True] * len(row["is_target"])

    forget_statistics(own)
    edit_rows(own, 0, learn_all)
    assert finding(audit(Store(own.path)), "targets").verdict == "problem"


def test_an_unknown_end_of_turn_token_is_a_problem(own):
    edit_manifest(own.path, tokenizer={"end_of_turn_ids": []})
    assert finding(audit(Store(own.path)), "end_of_turn").verdict == "problem"


def test_kl_of_zero_everywhere_is_a_problem(own):
    assert finding(audit(own), "kl").verdict == "ok"
    edit_manifest(own.path / "stats" / "warm", means={"kl": 0.0})
    assert finding(audit(Store(own.path)), "kl").verdict == "problem"


def test_a_model_that_knows_the_text_is_not_called_guessing(own):
    edit_manifest(own.path / "stats" / "warm", means={"logprob": -1.0})
    assert finding(audit(own), "fit").verdict == "ok"


def test_a_mask_of_other_statistics_is_noticed(own):
    assert finding(audit(own, "eksft"), "mask_is_current").verdict == "ok"
    edit_manifest(own.path / "stats" / "warm", fingerprint="0" * 32)
    now = Store(own.path)
    assert finding(audit(now, "eksft"), "mask_is_current").verdict == "warning"
    assert finding(audit(now, "random"), "mask_is_current").verdict == "ok"  # it read no statistics


def test_a_control_whose_mask_is_gone_is_not_told_that_it_changed(own):
    build_mask(own, Rule(drop="random(0.5)", budget="same as eksft"), "control")
    assert finding(audit(own, "control"), "mask_is_current").verdict == "ok"
    shutil.rmtree(own.path / "masks" / "eksft")
    found = finding(audit(Store(own.path), "control"), "mask_is_current")
    assert (found.verdict, found.message, found.count) == ("warning", "made from what is no longer there: masks/eksft", 1)


def test_end_of_turn_tokens_that_are_never_learned_are_a_problem(own):
    assert finding(audit(own), "end_of_turn_learned").verdict == "ok"
    build_mask(own, Rule(drop="is_end_of_turn", protect=""), "mute")
    assert finding(audit(own, "mute"), "end_of_turn_learned").verdict == "problem"
    build_mask(own, Rule(drop="is_end_of_turn and turn > 0", protect=""), "half-mute")
    assert finding(audit(own, "half-mute"), "end_of_turn_learned").verdict == "ok"
    assert finding(audit(own, "half-mute"), "end_of_turn_dropped").count == 2  # the store has one chat of three turns


def test_a_group_that_is_hardly_learned_is_named_with_its_rows(own):
    build_mask(own, Rule(drop="position * 10 < length", protect=""), "m")
    found = audit(own, "m")
    first, check = found.by_position[0], finding(found, "dropped_by_position")
    assert (check.verdict, check.count, check.of) == ("warning", first.dropped, first.targets)
    assert "0-10 % is hardly learned" in check.message
    losing = [i for i, row in enumerate(rows_on_disk(own, "m")) if sum(row["is_target"]) > sum(row["keep"])]
    assert check.rows == first.rows == tuple(losing[:10])


def test_a_group_of_few_targets_is_counted_but_not_judged(own):
    build_mask(own, Rule(drop="turn == 1", protect=""), "m")
    found = audit(own, "m")
    (second,) = (share for share in found.by_turn if share.label == "1")
    assert 0 < second.targets == second.dropped < 0.01 * found.targets
    assert second.rows == (LONG_ROW + 1,)
    assert second.rows[0] >= own.manifest.parts[0].rows  # numbered over the store, not in the part
    assert finding(found, "dropped_by_turn").verdict == "ok"


def test_a_class_that_a_rule_is_about_is_noted(own):
    """Digits are dropped, half of them: more than twice as often as all tokens, but not nearly all."""
    decoder, tokenizer = Decoder(own), own.manifest.tokenizer
    digits = [i for i in range(tokenizer.size) if class_of(decoder.token(i)) == "digits"]
    chosen = " or ".join(f"token_id == {i}" for i in digits[:12])
    build_mask(own, Rule(drop=f"({chosen}) and random(0.6, seed=1)"), "m")
    check = finding(audit(own, "m"), "dropped_by_class")
    assert check.verdict == "note"
    assert check.message.startswith("most among digits")
    assert check.rows


def test_rows_with_too_few_tokens_are_told_and_listed(own):
    build_mask(own, Rule(drop="entropy > 4.5", min_kept=6), "m")
    found = audit(own, "m")
    check = finding(found, "min_kept")
    few = own.masks["m"].manifest.rows_with_too_few
    assert 0 < few == check.count
    assert found.by_clause[-1].label == "min_kept = 6"
    assert check.rows == found.by_clause[-1].rows
    rows = rows_on_disk(own, "m")
    assert all(not any(rows[i]["keep"]) for i in check.rows)
    build_mask(own, Rule(drop="entropy > 4.5", min_kept=6, too_few="keep"), "whole")
    assert finding(audit(own, "whole"), "min_kept").verdict == "note"


def test_weights_are_summed_and_zeros_listed(own):
    build_mask(own, Rule(drop="kl > 6", weight="clip(entropy - 4, 0, 1)"), "m")
    found, manifest = audit(own, "m"), own.masks["m"].manifest
    weights = np.array([w for row in rows_on_disk(own, "m") for w, k in zip(row["weight"], row["keep"], strict=True) if k])
    assert found.weights.total == pytest.approx(manifest.weight_total) == pytest.approx(weights.sum())
    assert found.weights.mean == pytest.approx(weights.mean())
    assert found.weights.zero == np.count_nonzero(weights == 0) > 0
    assert found.weights.effective == pytest.approx(weights.sum() ** 2 / np.square(weights).sum())
    assert finding(found, "weights").verdict == "note"
    assert finding(found, "weights").rows
    build_mask(own, Rule(weight="entropy * 0"), "nothing")
    assert finding(audit(own, "nothing"), "weights").verdict == "problem"
    assert finding(audit(own, "nothing"), "share_dropped").verdict == "ok"
    assert audit(own, "eksft").weights is None


def test_a_control_that_lacks_tokens_is_noticed(own):
    build_mask(own, Rule(drop="length > 0", protect=""), "all")
    build_mask(own, Rule(drop="random(0.2, per=sequence)", budget="same as all"), "control")
    check = finding(audit(own, "control"), "budget")
    assert check.verdict == "warning"
    assert check.count == own.masks["control"].manifest.shortfall > 0


def test_kl_that_is_hardly_more_than_rounding_is_a_warning(own):
    edit_manifest(own.path / "stats" / "warm", means={"kl": 2e-7})
    assert finding(audit(own), "kl").verdict == "warning"


@pytest.mark.parametrize(
    ("targets", "verdict"),
    [(BY_MARKERS, "ok"), (BY_TRAINING_TEMPLATE, "note"), (BY_COMPARISON, "note"), (BY_COMPLETION, "ok"), (BY_TEXT, "ok")],
)
def test_how_targets_were_found_is_told(own, targets, verdict):
    edit_manifest(own.path, template={"targets": targets})
    check = finding(audit(Store(own.path)), "template")
    assert check.verdict == verdict
    assert targets in check.message
    assert bool(check.rows) == (targets == BY_COMPARISON)


def test_replies_that_were_cut_are_counted(seen):
    found = audit(seen)
    assert (found.truncated, found.cut_replies) == (1, 1)
    assert "1 replies among them" in finding(found, "truncated_rows").message


def test_a_token_beyond_the_vocabulary_is_refused_with_its_part(own):
    def spoil(rows: list[dict]) -> None:
        row = rows[0]
        row["input_ids"][max(i for i, target in enumerate(row["is_target"]) if target)] = 10**6

    edit_rows(own, 1, spoil)
    with pytest.raises(StoreError, match=r"part 1 of .* token id 1000000, beyond the vocabulary"):
        audit(own)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((t, "words") for t in (" So", "ab1", "é", "中文", "x=")),
        *((t, "digits") for t in ("7", " 42", "3.5", "1,000", "½", "$40")),
        *((t, "operators") for t in ("=", " +", "<=", "**", "≥", "->")),
        *((t, "punctuation") for t in (".", " (", "!?", '"', "$", "…")),
        *((t, "whitespace") for t in (" ", "\n\n", "\t", "\u00a0")),
        *((t, "other") for t in ("", "\ufffd", "a\ufffd", "\x1b")),
    ],
)
def test_the_class_of_a_text(text, expected):
    assert class_of(text) == expected


def test_a_vocabulary_decoded_in_one_go_is_that_decoded_token_by_token(seen):
    decoder, size = Decoder(seen), seen.manifest.tokenizer.size
    assert list(decoder.tokens(size)) == [decoder.token(i) for i in range(size)]


def test_a_mask_that_is_not_there(seen):
    with pytest.raises(StoreError, match="no mask 'ekstf'"):
        audit(seen, "ekstf")


def peak_bytes(store: Store) -> int:
    audit(store, "m")  # once before: imports and caches are not the audit's
    tracemalloc.start()
    audit(store, "m")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_parts(tmp_path):
    peaks = []
    for sequences in (400, 4000):
        store = random_store(tmp_path / str(sequences), sequences, seed=1, rows_per_part=200)
        store.tokenizer_folder.mkdir()
        byte_level_tokenizer().save(str(store.tokenizer_folder / "tokenizer.json"))
        build_mask(store, Rule(drop="entropy > 1"), "m")
        peaks.append(peak_bytes(store))
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("mask", [None, "dataset-wide"])
def test_on_the_terminal_every_number_and_verdict_is_a_word(seen, mask):
    found = audit(seen, mask)
    screen = Console(file=io.StringIO(), width=200)
    screen.print(found)
    text = screen.file.getvalue()
    assert "\x1b" not in text
    for check in found.findings:
        assert f"{check.verdict}" in text
        assert check.message in text
    for number in (found.sequences, found.targets, found.kept):
        assert f"{number:,}" in text
    assert ("dropped, by tenth of the reply" in text) == (mask is not None)
    assert np.isclose(found.share_dropped, 0.0) == (mask is None)
