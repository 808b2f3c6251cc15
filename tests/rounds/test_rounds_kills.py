"""A run that is killed, whenever, and resumed ends at the weights, masks and record of an undisturbed one."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rounds_fixtures import arguments_of, copied, killing, what_is_left
from training_fixtures import largest_difference

from pipelines.processes import Started
from tokenstats.rounds.options import RoundOptions
from tokenstats.rounds.run import train_rounds
from tokenstats.store import Store

# 24 rows are 6 steps an epoch. Masks are made at steps 2, 4 and 6; in between a checkpoint at 3
ROUNDS = RoundOptions(warmup_steps=2)

MOMENTS = [
    ("tokenstats.rounds.run.Record.write", 1, "before anything is written"),
    ("tokenstats.training.loop.MaskedTrainer.training_step", 2, "in the warm-up"),
    ("transformers.Trainer._save_rng_state", 1, "in the checkpoint that ends the warm-up, its weights written"),
    ("tokenstats.scoring.local_engine.write_scored", 2, "between two parts of a scoring"),
    ("tokenstats.scoring.passes._write_manifest", 1, "a scoring has all parts, and no manifest"),
    ("tokenstats.masking.build.write_part", 2, "between two parts of a mask"),
    ("tokenstats.rounds.refresh._overlap", 1, "a mask is there, and not in the record"),
    ("tokenstats.rounds.run.Record.write", 1, "while round 0 is written down"),
    ("tokenstats.training.trainer.load_trainable", 1, "between the mask and its first step"),
    ("tokenstats.training.loop.MaskedTrainer.training_step", 2, "in round 0, after a checkpoint within it"),
    ("transformers.TrainerState.save_to_json", 1, "in the checkpoint that ends round 0, all but its state written"),
    ("tokenstats.masking.build._manifest", 1, "the mask of round 1 has all parts, and no manifest"),
    ("tokenstats.training.loop.MaskedTrainer.training_step", 3, "in the last round"),
    ("tokenstats.training.trainer._save", 1, "before the result is written"),
]


class Killed(BaseException):
    """Nothing catches it."""


def die(moment: str) -> None:
    raise Killed(moment)


@pytest.fixture(scope="module")
def undisturbed(unscored: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    store = copied(unscored, folder)
    train_rounds(store, out=folder / "out", rounds=ROUNDS, **arguments_of(model, save_steps=3))
    return folder / "out", what_is_left(store, folder / "out")


def test_a_run_killed_at_many_moments_ends_where_an_undisturbed_one_does(
    store: Store, model: str, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, arguments = tmp_path / "out", arguments_of(model, save_steps=3)
    for name, call, moment in MOMENTS:
        with monkeypatch.context() as patch:
            patch.setattr(*killing(name, call, partial(die, moment)))
            with pytest.raises(Killed, match=moment):
                train_rounds(store.path, out=out, rounds=ROUNDS, resume=True, **arguments)
    for _ in ("to the end", "and once more, of a run that has ended"):
        train_rounds(store.path, out=out, rounds=ROUNDS, resume=True, **arguments)
        assert largest_difference(out, undisturbed[0]) == 0.0
        assert what_is_left(store, out) == undisturbed[1]


_KILLED = """
import os, signal, sys
from rounds_fixtures import arguments_of, killing
from tokenstats.rounds.options import RoundOptions
from tokenstats.rounds.run import train_rounds
store, out, model, name, call = sys.argv[1:]
setattr(*killing(name, int(call), lambda: os.kill(os.getpid(), signal.SIGKILL)))
train_rounds(store, out=out, rounds=RoundOptions(warmup_steps=2), resume=True, **arguments_of(model, save_steps=3))
"""


def test_a_process_killed_in_a_mask_and_in_a_checkpoint_ends_where_an_undisturbed_one_does(
    store: Store, model: str, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name, call in (("tokenstats.masking.build._manifest", 1), ("transformers.Trainer._save_rng_state", 2)):
        process = Started(_KILLED, (store.path, out, model, name, call), {"OMP_NUM_THREADS": "1"})
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
    assert list((store.path / "masks").glob(".writing-*")) == [], "the next run clears the draft of a mask"
    train_rounds(store.path, out=out, rounds=ROUNDS, resume=True, **arguments_of(model, save_steps=3))
    assert largest_difference(out, undisturbed[0]) == 0.0
    assert what_is_left(store, out) == undisturbed[1]
