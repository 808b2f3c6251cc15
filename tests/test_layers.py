"""Who may import whom, and how fast the front door opens."""

import ast
from pathlib import Path

import pytest
from imports import loaded_after

import tokenstats

PACKAGE = Path(tokenstats.__file__).parent
STAGES = {"corpus", "scoring", "masking", "training"}
FLOORS = [
    {"schema", "errors", "alignment", "mixing", "shown", "__init__"},
    {"options", "run_file"},
    {"store"},
    {"modeling"},
    STAGES,
    {"inspect"},
    {"api"},
    {"computing", "following"},
    {"rounds"},
    {"cli"},
    {"__main__"},
]


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return {n.split(".")[1] for n in names if n.startswith("tokenstats.")}


def test_imports_go_down_and_stages_meet_only_in_the_store():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    for path in PACKAGE.rglob("*.py"):
        mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if mine in ("__init__", "_app"):
            continue
        for other in imported_modules(path) - {mine}:
            assert floor[other] < floor[mine], f"{path.name} of {mine} imports {other}"


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import tokenstats", "torch transformers polars pyarrow streamlit"),
        ("import tokenstats.shown", "numpy rich jinja2 pyarrow tokenstats.inspect"),
        ("from tokenstats import build_mask, compare, sweep", "rich jinja2 matplotlib tokenstats.inspect"),
        ("from tokenstats import Store, Rule, build_mask, compare, audit, sweep, export, TrainOptions", "torch transformers"),
        ("import tokenstats.masking, tokenstats.inspect", "torch transformers"),
        ("import tokenstats.cli", "torch transformers polars pyarrow"),
        ("import tokenstats.computing, tokenstats.corpus.build", "polars matplotlib streamlit"),
    ],
)
def test_nobody_loads_what_they_do_not_need(code: str, unwanted: str):
    assert loaded_after(code, unwanted) == []


def test_help_of_every_command_says_something(cli):
    status, out, _ = cli("--help")
    assert status == 0
    commands = ["compute", "mask", "show", "audit", "compare", "sweep", "train", "rounds", "export", "report", "app"]
    for command in commands:
        assert command in out
        status, text, _ = cli(command, "--help")
        assert status == 0
        assert len(text.splitlines()) > 8
    page = (PACKAGE.parent / "docs" / "COMMANDS.md").read_text()
    assert all(f"## {command}\n" in page and f"$ tokenstats {command}" in page for command in commands)
