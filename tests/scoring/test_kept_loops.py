"""What numba compiled is kept between processes, and never taken for that of another source."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tokenstats.scoring.reductions.by_torch import Sums

pytest.importorskip("numba", reason="the loops are numba's")
from tokenstats.scoring.reductions import by_numba


@pytest.mark.thorough  # compiles twice
def test_loops_are_kept_for_the_same_source_only(tmp_path):
    source = tmp_path / "loops.py"
    source.write_text(Path(by_numba.__file__).read_text())
    time_of_all_files = (0, 0)  # as some installers have it
    os.utime(source, times=time_of_all_files)
    first, again = _load(source), _load(source)
    expected = _total(first)
    assert first._add.compiled.stats.cache_misses
    assert not first._add.compiled.stats.cache_hits
    assert _total(again) == expected
    assert again._add.compiled.stats.cache_hits
    text, size = source.read_text(), source.stat().st_size
    source.write_text(text.replace("            t += e\n", "            t -= e\n"))
    os.utime(source, times=time_of_all_files)
    assert source.stat().st_size == size
    assert _total(_load(source)) == -expected


SUMS = """
import hashlib, sys, torch
from dataclasses import fields
from tokenstats.scoring.reductions import by_numba
from tokenstats.scoring.reductions.by_torch import Sums
for models in (1, 2):
    logits = torch.randn(models, 500, 667, generator=torch.Generator().manual_seed(models)) * 4
    sums = Sums.start(logits[:, :, 5].clone())
    by_numba.add_block(sums, logits, 0, slice(0, 500))
    print(*(hashlib.sha256(getattr(sums, field.name).numpy().tobytes()).hexdigest() for field in fields(sums)))
print("kept" if by_numba._add.compiled.stats.cache_hits else "compiled", file=sys.stderr)
"""


@pytest.mark.thorough  # compiles twice
def test_what_was_cut_short_is_made_again(tmp_path):
    source = tmp_path / "loops.py"
    source.write_text(Path(by_numba.__file__).read_text())
    expected = _total(_load(source))
    (index,) = (tmp_path / "__pycache__").glob("*.nbi")
    index.write_bytes(index.read_bytes()[:30])
    assert _total(_load(source)) == expected
    mended = _load(source)
    assert _total(mended) == expected
    assert mended._add.compiled.stats.cache_misses, "the index is whole, and empty"


@pytest.mark.thorough
def test_the_process_that_compiles_and_those_that_find_what_was_kept_give_the_same_bits(tmp_path):
    """A loop that calls others may be linked with other copies of them than lie in the file."""

    def run(expected: str) -> str:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", SUMS], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr.split()[-1] == expected
        return done.stdout

    assert run("compiled") == run("kept")


def _load(source: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("loops", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop("loops", None)
    spec.loader.exec_module(module)
    return module


def _total(module: ModuleType) -> float:
    """Σ e^(z - max) of a row of one model, as the module adds it up."""
    sums = Sums.start(torch.zeros(1, 1))
    module.add_block(sums, torch.arange(5.0).view(1, 1, 5), 0, slice(0, 1))
    return float(sums.total)
