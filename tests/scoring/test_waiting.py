"""Threads of the command line sleep while they wait; a notebook's are its own affair."""

import os
import subprocess
import sys

import pytest

OWN = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
SHOW = "import os, sys; print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
COMMAND = f"""
import sys
from tokenstats.cli import cli, main
cli.command("look")(lambda: exec({SHOW!r}))
sys.argv = ["tokenstats", "look"]
main()
"""


def seen_by(code: str, **environment: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], env=OWN | environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(("environment", "policy"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_a_command_says_so_before_torch_is_there_unless_its_user_said_otherwise(environment, policy):
    assert seen_by(COMMAND, **environment) == [policy, "False"]


def test_the_library_leaves_the_environment_alone():
    assert seen_by(f"import tokenstats.scoring.pair; {SHOW}") == ["None", "True"]
