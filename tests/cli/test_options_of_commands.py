"""The command line has the library's options, all of them and no others, and says errors and warnings in its own words."""

import inspect
import logging
import sys
import warnings
from dataclasses import fields, is_dataclass

import pytest

from tokenstats.cli import all_commands
from tokenstats.cli.messages import in_options, warnings_as_lines
from tokenstats.computing import compute
from tokenstats.errors import InputError, TokenstatsWarning, argument
from tokenstats.rounds.run import train_rounds
from tokenstats.training import TrainOptions, export, train

FUNCTIONS = {"compute": compute, "train": train, "rounds": train_rounds, "export": export}
WITH_RUN_FILE = ("train", "rounds")
ON_ONE_SIDE = {"as_json", "help", "config", "print_config"}
"""How a command prints, and where its options come from."""
ONLY_IN_PYTHON = {"callbacks"}
"""Objects."""


def options_of(function) -> dict[str, object]:
    """By name, with their defaults: the function's own arguments, and the fields of its options dataclasses."""
    found: dict[str, object] = {}
    for each in inspect.signature(function).parameters.values():
        if each.name in ONLY_IN_PYTHON:
            continue
        if is_dataclass(each.default):
            assert not found.keys() & {one.name for one in fields(each.default)}, "two options of one name"
            found |= {one.name: one.default for one in fields(each.default)}
        else:
            found[each.name] = each.default
    return found


@pytest.mark.parametrize("command", FUNCTIONS)
def test_a_function_and_its_command_have_the_same_options_and_defaults(command):
    parameters = {each.name: each for each in all_commands().commands[command].params}
    library = options_of(FUNCTIONS[command])
    assert parameters.keys() - ON_ONE_SIDE == library.keys()
    for name, default in library.items():
        if default is inspect.Parameter.empty:
            assert parameters[name].required, name
        else:
            assert not parameters[name].required, name
            assert parameters[name].default == default, name


def test_an_option_is_called_like_its_field_but_for_five_that_are_shorter_on_the_command_line():
    other = {}
    for command in all_commands().commands.values():
        for each in command.params:
            if each.param_type_name == "option" and each.opts[0] != f"--{each.name.replace('_', '-')}":
                other[each.name] = each.opts[0]
    assert other == {
        "as_json": "--json",
        "kind": "--engine",
        "attention": "--attn",
        "compiled": "--compile",
        "trainer": "--for",
    }


def test_a_flag_has_an_opposite_only_where_it_is_on_by_default_or_a_run_file_may_have_set_it():
    for name, command in all_commands().commands.items():
        flags = [each for each in command.params if getattr(each, "is_flag", False)]
        with_opposite = {each.name for each in flags if each.secondary_opts}
        expected = {"compute": {"chat"}, "rounds": {"plot"}}.get(name, set())
        if name in WITH_RUN_FILE:
            expected |= {each.name for each in fields(TrainOptions) if each.type is bool}
        assert with_opposite == expected, name
        assert all(each.secondary_opts == [f"--no-{each.opts[0][2:]}"] for each in flags if each.secondary_opts)


def test_every_option_of_a_command_with_a_run_file_is_a_key_of_it_and_no_other(cli, tmp_path):
    for command in WITH_RUN_FILE:
        (tmp_path / "run.toml").write_text("nothing_of_the_kind = 1\n")
        message = cli(command, "--config", tmp_path / "run.toml")[2]
        keys = message.partition("; expected: ")[2].strip().split(", ")
        assert set(keys) == options_of(FUNCTIONS[command]).keys() - {"resume"}
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("command", sorted(all_commands().commands))
def test_help_fits_into_80_columns_and_has_a_text_for_each_option(cli, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = cli(command, "--help")
    assert max(map(len, out.splitlines())) <= 80
    for each in all_commands().commands[command].params:
        assert each.help, each.name


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (argument("batch_tokens"), "--batch-tokens"),
        (argument("kind", "ray"), "--engine ray"),
        (argument("chat", False), "--no-chat"),
        (argument("chat", True), "--chat"),
        (argument("max_length", 512), "--max-length 512"),
        (argument("drop", "kl > f"), "--drop 'kl > f'"),
        (argument("template", "a; rm -rf *"), "--template 'a; rm -rf *'"),
        (argument("dataset"), "DATASET"),
        (argument("rows_per_moon", 3), "rows_per_moon=3"),
        ("batch_tokens --batch", "batch_tokens --batch"),
    ],
)
def test_arguments_become_options_and_other_words_stay(said, meant, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tokenstats", "compute"])
    assert in_options(f"topk: take {said}, or a model", all_commands()) == f"topk: take {meant}, or a model"
    assert in_options(InputError(said).marked, all_commands()) == meant


def test_a_message_about_another_command_names_that_commands_option(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tokenstats", "mask"])
    assert in_options(argument("reference"), all_commands()) == "--reference"


def test_warnings_and_notes_are_lines_each_as_often_as_it_comes_and_afterwards_all_is_as_before(capsys):
    before = warnings.showwarning, warnings.filters[:], logging.getLogger("tokenstats").level
    with warnings_as_lines(all_commands):
        for _ in range(2):
            warnings.warn(f"odd\x1b[31m\n{argument('topk')}", TokenstatsWarning, stacklevel=1)
        logging.getLogger("tokenstats.computing").info("a note\nof two lines")
    line = "warning: odd\N{REPLACEMENT CHARACTER}[31m --topk\n"
    assert capsys.readouterr() == ("", line * 2 + "a note of two lines\n")
    assert (warnings.showwarning, warnings.filters[:], logging.getLogger("tokenstats").level) == before


def test_a_warning_of_a_run_is_one_line_and_the_run_goes_on(cli, tmp_path, chats, base, warmup):
    from disk import write_jsonl

    data, store = write_jsonl(tmp_path / "d.jsonl", chats[:20]), tmp_path / "store"
    words = ["compute", data, "--model", warmup, "--reference", base, "--store", store, "--part-tokens", 900]
    assert cli(*words)[0] == 0
    (store / "stats" / "warmup" / "manifest.json").unlink()
    part = store / "stats" / "warmup" / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:700])
    status, _, err = cli(*words, "--reference-pass", "separate")
    assert status == 0
    notes, line = err.splitlines()
    assert "of disk for each token" in notes
    assert line.startswith(f"warning: {part} cannot be read")
    assert line.endswith("made again")
