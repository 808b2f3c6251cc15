"""Mistakes are said before anything is written: what was got, what was expected, what to do. And the command line."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rounds_fixtures import ALWAYS_THE_SAME, arguments_of, copied
from training_fixtures import QUICK, add_mask, byte_tokenizer, every_third_dropped, largest_difference, save_tiny_model

from tokenstats.errors import InputError, StoreError, TokenstatsError
from tokenstats.masking.rule import Rule
from tokenstats.rounds.options import NOT_IN_ROUNDS, RoundOptions
from tokenstats.rounds.run import train_rounds
from tokenstats.run_file import to_toml
from tokenstats.store import Store

WARM = RoundOptions(warmup_steps=2)


def everything_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": RoundOptions()}, "against itself, and every KL would be 0; give warmup_steps, steps of plain SFT"),
        ({"rule": "entropy-only", "rounds": RoundOptions()}, "the rule reads no KL: reference can be left out"),
        ({"reference": None}, "reads a reference; expected reference, such as what model names, with warmup_steps"),
        ({"every": 0}, "every got 0; expected a whole number, at least 1"),
        ({"every": 2.5}, "every got 2.5; expected a whole number"),
        ({"rule": "ekfst"}, r"no preset 'ekfst' \(did you mean 'eksft'\?\)"),
        ({"rule": "random"}, "reads no statistic of the policy: its mask would be the same in every round"),
        ({"rule": Rule(drop="warm.entropy > 2 or kl > 1")}, "no scoring 'warm'"),
        ({"max_steps": None}, "max_steps is missing; expected the optimizer steps of the whole run"),
        ({"rounds": RoundOptions(warmup_steps=7)}, "warmup_steps got 7; expected fewer than max_steps, 7"),
        (
            {"rounds": RoundOptions(warmup_steps=1), "warmup_ratio": 0.2},
            "warmup_steps got 1, and the first step of a rise has learning rate 0",
        ),
        ({"rounds": replace(WARM, prefix="../x")}, r"scoring name '\.\./x-0' cannot be used"),
        (
            {"rule": "dft", "rounds": replace(WARM, until_jaccard=0.9)},
            "until_jaccard=0.9 looks at what masks drop, and the rule",
        ),
        ({"normalise": "targets"}, "normalise would do nothing: the rule does not weigh its tokens"),
        ({"kl_penalty": 0.1, "kl_on": "clause 3"}, "kl_on got clause '3', which the rule does not have; its clauses: 1: top"),
        ({"kl_penalty": 0.1, "kl_on": "kept", "reference_cache": "cache"}, "reference_cache is made of the tokens of one mask"),
        (
            {"best_by": "eval_loss", "eval_share": 0.1, "eval_steps": 2},
            "best_by would do nothing: rounds train a model",
        ),
        ({"load_in_4bit": True, "lora_rank": 2}, "load_in_4bit=True would train a policy on rounded weights"),
        ({"model": "nowhere/at/all"}, "no model folder at nowhere/at/all"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(store: Store, model: str, tmp_path: Path, wrong: dict, message: str) -> None:
    before = everything_in(tmp_path)
    own = {name: wrong.pop(name) for name in ("model", "rule", "every", "rounds") if name in wrong}
    arguments = {**arguments_of(model), "rounds": WARM, **own}
    with pytest.raises(TokenstatsError, match=message) as caught:
        train_rounds(store, out=tmp_path / "out", **{**arguments, "options": replace(arguments["options"], **wrong)})
    assert "\n" not in str(caught.value)
    assert everything_in(tmp_path) == before


NEEDED = {"patience": {"best_by": "eval_loss"}, "load_in_4bit": {"lora_rank": 2}}
"""What an option needs beside it to be taken by a training that is not in rounds."""
VALUES = {
    "best_by": "eval_loss",
    "patience": 2,
    "stop_at_kl": 0.1,
    "shares": "1",
    "continue_adapter": True,
    "epochs": 2.0,
    "reference_cache": "cache",
    "load_in_4bit": True,
}


@pytest.mark.parametrize("name", NOT_IN_ROUNDS)
def test_what_the_help_does_not_offer_is_refused_by_name(cli, store: Store, model: str, tmp_path: Path, name: str) -> None:
    _, offered, _ = cli("rounds", "--help")
    assert "--max-steps" in offered
    assert f"--{name.replace('_', '-')}" not in offered
    config, out = tmp_path / "run.toml", tmp_path / "out"
    settings = {"max_steps": 7, "kl_penalty": 0.1, "kl_on": "kept", "reference": model, "eval_share": 0.5, "eval_steps": 2}
    config.write_text(to_toml({**settings, **NEEDED.get(name, {}), name: VALUES[name]}))
    places = (store.path, "--model", model, "--rule", "eksft", "--every", 2, "--warmup-steps", 2, "--out", out)
    status, _, said = cli("rounds", *places, "--config", config)
    assert status == 2
    assert name in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"until_jaccard": 0.0}, "until_jaccard got 0.0; expected a number above 0, at most 1"),
        ({"until_jaccard": 1.5}, "until_jaccard got 1.5"),
        ({"warmup_steps": -1}, "warmup_steps got -1; expected a whole number, at least 0"),
        ({"scoring_dtype": "float64"}, "scoring_dtype got 'float64'"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RoundOptions(**wrong)


def test_a_model_of_another_tokenizer_is_refused_before_anything_is_written(store: Store, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", byte_tokenizer(extra=("xyz",)))
    with pytest.raises(InputError, match="another tokenizer"):
        train_rounds(store, out=tmp_path / "out", rounds=WARM, **arguments_of(other))
    assert not (tmp_path / "out").exists()


def test_a_reference_of_the_same_weights_in_another_folder_is_refused_too(store: Store, model: str, tmp_path: Path) -> None:
    twin = save_tiny_model(tmp_path / "twin")
    with pytest.raises(InputError, match="have the same weights, so every KL would be 0"):
        train_rounds(store, out=tmp_path / "out", **arguments_of(model, reference=twin))
    # nothing was made: the folder is as good as new
    moved = arguments_of(model, reference=twin, max_steps=3, warmup_ratio=0.0)
    train_rounds(store, out=tmp_path / "out", rounds=RoundOptions(warmup_steps=1), **moved)


@pytest.mark.parametrize("taken", ["stats/round-0", "masks/round-77"])
def test_names_of_another_run_are_never_shared(store: Store, model: str, tmp_path: Path, taken: str) -> None:
    (store.path / taken).mkdir(parents=True)  # not even finished
    with pytest.raises(InputError, match=f"holds {taken} already, of another run; choose other names with prefix"):
        train_rounds(store, out=tmp_path / "out", rounds=WARM, **arguments_of(model))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def ended(unscored: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path]:
    folder = tmp_path_factory.mktemp("ended")
    store = copied(unscored, folder)
    train_rounds(store, out=folder / "out", rounds=WARM, **arguments_of(model))
    return store, folder / "out"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rule": "kl-only"}, "rule: there drop top.*, asked for drop top"),
        ({"every": 3}, "every: there 2, asked for 3"),
        ({"rounds": RoundOptions(warmup_steps=3)}, "warmup_steps: there 2, asked for 3"),
        ({"rounds": replace(WARM, until_jaccard=0.9)}, r"until_jaccard: there None, asked for 0\.9"),
        ({"learning_rate": 0.5}, r"learning_rate: there 0\.001, asked for 0\.5"),
        ({"resume": False}, "exists and is not empty; choose another folder, or go on with the run that made it"),
    ],
)
def test_a_run_is_resumed_only_as_what_it_was(ended: tuple[Store, Path], model: str, wrong: dict, message: str) -> None:
    (store, out), wrong = ended, dict(wrong)
    before = {**everything_in(store.path), **everything_in(out)}
    own = {name: wrong.pop(name) for name in ("rule", "every", "rounds", "resume") if name in wrong}
    arguments = {**arguments_of(model), "rounds": WARM, "resume": True, **own}
    with pytest.raises(InputError, match=message):
        train_rounds(store, out=out, **{**arguments, "options": replace(arguments["options"], **wrong)})
    assert {**everything_in(store.path), **everything_in(out)} == before


def test_a_second_run_beside_the_first_has_names_of_its_own(ended: tuple[Store, Path], model: str, tmp_path: Path) -> None:
    store, _ = ended
    own = copied(store.path, tmp_path)
    first = own.masks["round-0"].manifest
    options = replace(QUICK, max_steps=2)
    arguments = {"model": model, "rule": ALWAYS_THE_SAME, "every": 2, "options": options}
    train_rounds(own, out=tmp_path / "out", rounds=RoundOptions(prefix="second"), **arguments)
    assert "second-0" in own.masks
    assert Store(own.path).masks["round-0"].manifest == first


def _other_mask(store: Store, out: Path) -> None:
    add_mask(store, "round-1", every_third_dropped)


def _no_scoring(store: Store, out: Path) -> None:
    (store.path / "stats" / "round-0").rename(store.path / "stats" / "elsewhere")


def _no_record(store: Store, out: Path) -> None:
    (out / "rounds.json").write_text("{}")


def _foreign_folder(store: Store, out: Path) -> None:
    (out / "rounds.json").unlink()


def test_rounds_whose_terms_name_a_mask_go_on_with_that_mask_alone(store: Store, model: str, tmp_path: Path) -> None:
    add_mask(store, "other", lambda row, f: f & (np.arange(len(f)) % 2 == 0))
    told = {**arguments_of(model, entropy_bonus=0.1, entropy_on="other"), "rounds": WARM, "out": tmp_path / "out"}
    train_rounds(store, **told)
    store.masks["other"].manifest.model_copy(update={"fingerprint": "remade"}).write(store.path / "masks" / "other")
    with pytest.raises(InputError, match="mask that entropy_on names: there mask-other, asked for remade"):
        train_rounds(store.path, **told, resume=True)


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (_other_mask, StoreError, "round-1 in .* is another scoring or mask than .* was trained with"),
        (_no_scoring, StoreError, "no scoring 'round-0'"),
        (_no_record, InputError, "rounds.json cannot be read"),
        (_foreign_folder, InputError, "is not empty and holds no rounds; choose another folder"),
    ],
)
def test_what_was_changed_since_is_not_gone_on_with(
    ended: tuple[Store, Path],
    model: str,
    tmp_path: Path,
    spoil: Callable[[Store, Path], None],
    kind: type[TokenstatsError],
    message: str,
) -> None:
    store, out = copied(ended[0].path, tmp_path), Path(shutil.copytree(ended[1], tmp_path / "out"))
    spoil(store, out)
    with pytest.raises(kind, match=message):
        train_rounds(store.path, out=out, rounds=WARM, resume=True, **arguments_of(model))


def test_processes_that_training_does_not_see_are_refused(
    store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(InputError, match="this is one of 2 processes, but training sees 1; expected torchrun to start them"):
        train_rounds(store, out=tmp_path / "out", rounds=WARM, **arguments_of(model))
    assert not (tmp_path / "out").exists()


# ---- the command line


def test_the_command_tells_each_round_as_it_comes_and_the_run_at_its_end(
    cli: Callable, store: Store, model: str, tmp_path: Path
) -> None:
    words = ["rounds", store.path, "--model", model, "--reference", model, "--rule", "eksft", "--every", 2]
    words += ["--warmup-steps", 2, "--max-steps", 5, "--batch-size", 4, "--accumulation", 1, "--device", "cpu"]
    status, out, err = cli(*words, "--out", tmp_path / "out")
    assert status == 0, err
    lines = [line for line in err.splitlines() if line.startswith("round-")]
    assert [line.split(":")[0] for line in lines] == ["round-0, after 2 steps", "round-1, after 4 steps"]
    assert "Jaccard" in lines[1]
    assert "overlap of the clauses" in lines[1]
    assert f"{tmp_path / 'out'}: 5 steps over 24 rows" in out
    assert f"2 rounds, the last mask round-1: see {tmp_path / 'out' / 'rounds.json'}" in out

    status, out, err = cli(*words, "--out", tmp_path / "again")
    assert (status, out) == (2, "")
    assert "choose other names with --prefix, or go on with that run: its own --out, and --resume" in err
    status, out, err = cli(*words, "--out", tmp_path / "out", "--resume", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert [each["name"] for each in told["rounds"]] == ["round-0", "round-1"]
    assert told["training"]["steps"] == 5

    again = ["--config", tmp_path / "out" / "run.toml", "--out", tmp_path / "again", "--prefix", "second"]
    status, _, err = cli("rounds", store.path, *again)
    assert status == 0, err
    assert largest_difference(tmp_path / "again", tmp_path / "out") == 0.0


def test_a_run_that_is_interrupted_says_how_to_go_on(
    cli: Callable, store: Store, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenstats.rounds.refresh.build_mask", stop)
    words = ["rounds", store.path, "--model", model, "--rule", "entropy-only", "--every", 2, "--max-steps", 4]
    status, _, err = cli(*words, "--out", tmp_path / "out")
    assert status == 130
    assert "run the same command again with --resume to go on in the same round" in err
    monkeypatch.undo()
    assert cli(*words, "--out", tmp_path / "out", "--resume")[0] == 0
