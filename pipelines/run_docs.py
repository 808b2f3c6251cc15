"""Run every command and every Python block of the README and of docs/, and hold what they print against what stands there.

    python -m pipelines.run_docs README.md docs/*.md docs/*.ipynb            # say what differs; exit status 1 if any
    python -m pipelines.run_docs README.md docs/*.md docs/*.ipynb --write    # put today's output in its place

Each page is run on its own, from top to bottom, in a folder of its own with data/ in it and the README's store, with its two
masks, in runs/store. Blocks are run by what stands behind their backticks:

    ```console     lines that begin with "$ " are commands; what follows each, up to the next, is its output
    ```pycon       a Python session, all of a page in one process
    ```python      statements, run; they print nothing

A block with ``not-run`` behind that is left out: it takes minutes, needs a cluster, prints times, or is part of a file. Numbers
may differ in their last digits from one machine to another: they are held to two thousandths. What stands as ``…`` alone on a
line is not compared.
"""

import argparse
import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from pipelines.processes import ROOT, start_command

_FENCE = re.compile(r"^```(\w+)( not-run)?\n(.*?)^```$", re.M | re.S)
_NUMBER = re.compile(r"[-+−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
_TOLERANCE = 2e-3  # of a number's size, and half a unit in the last place that is shown


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, at ``start`` to ``end`` of its text."""

    language: str
    body: str
    start: int
    end: int


def blocks_of(page: str) -> Iterator[Block]:
    """The blocks of a page that are run."""
    for match in _FENCE.finditer(page):
        if match[1] in ("console", "pycon", "python") and not match[2]:
            yield Block(match[1], match[3], match.start(3), match.end(3))


def commands_of(body: str) -> list[tuple[str, str]]:
    r"""Commands of a console block, continued over lines that end in ``\``, and what stands below each."""
    found: list[tuple[str, str]] = []
    lines = iter(body.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line
            while command.endswith("\\"):
                command += "\n" + next(lines)
            found.append((command, ""))
        else:
            command, output = found[-1]
            found[-1] = command, output + line + "\n"
    return found


def same(found: str, expected: str) -> bool:
    """Do two outputs say the same, numbers up to rounding, white space as it is?"""
    if any(line.strip() == "…" for line in expected.splitlines()):
        parts = [part.strip("\n") for part in re.split(r"^…$", expected, flags=re.M)]
        lines, at = found.splitlines(), 0
        for part in parts:  # each part stands somewhere after the one before it
            size = len(part.splitlines())
            places = (i for i in range(at, len(lines) - size + 1) if same("\n".join(lines[i : i + size]), part))
            at = next(places, -1)
            if at < 0:
                return False
            at += size
        return True
    if _NUMBER.sub("0", found).split() != _NUMBER.sub("0", expected).split():
        return False
    return all(map(_close, _NUMBER.findall(found), _NUMBER.findall(expected)))


def _close(found: str, expected: str) -> bool:
    x, y = (float(text.replace(",", "").replace("−", "-")) for text in (found, expected))
    digits = len(expected.partition(".")[2].partition("e")[0])
    return abs(x - y) <= _TOLERANCE * max(abs(x), abs(y)) + 1.01 * 10.0**-digits


def words_of(line: str) -> list[str]:
    """A command line as a shell reads it, with its signs (``|``, ``>``, …) as words of their own."""
    reader = shlex.shlex(line, posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    return list(reader)


def run_command(command: str, folder: Path) -> str:
    """What a command prints, both streams. ``tokenstats`` is this checkout's."""
    line = command.removeprefix("$ ").replace("\\\n", " ")
    environment = {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    program, *words = words_of(line)
    words, file = (words[:-2], words[-1]) if words[-2:-1] == [">"] else (words, None)
    if program == "tokenstats" and not any(set(word) <= set("();<>|&") for word in words):  # no shell is needed
        out, err = start_command(*words, folder=folder, **environment).communicate(timeout=300)
        if file is not None:
            (folder / file).write_text(out, encoding="utf-8")
            out = ""
        return "".join(f"{line.rstrip()}\n" for line in (err + out).splitlines())
    line = re.sub(r"(^|[|;&] *)tokenstats ", rf"\1{sys.executable} -m tokenstats ", line)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def run_session(body: str, names: dict[str, object]) -> str:
    """A Python session with what it prints today in the place of what stands there."""
    text = io.StringIO()
    for example in doctest.DocTestParser().get_examples(body):
        source = example.source.rstrip("\n").split("\n")
        text.write("".join(f"{'>>>' if i == 0 else '...'} {line}".rstrip() + "\n" for i, line in enumerate(source)))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example.source, "<docs>", "single"), names)
        text.write("".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines()))
    return text.getvalue()


def outputs(block: Block, folder: Path, names: dict[str, object]) -> Iterator[tuple[str, str, str]]:
    """(what was run, what it printed, what stands there) for each piece of a block; a session is one piece."""
    if block.language == "console":
        for command, expected in commands_of(block.body):
            yield command, run_command(command, folder), expected
    elif block.language == "pycon":
        yield "", run_session(block.body, names), block.body
    else:
        exec(compile(block.body, "<docs>", "exec"), names)


def run_page(page: str, folder: Path) -> tuple[str, list[str]]:
    """The page with today's outputs, and what differs. The working folder of this process is ``folder`` meanwhile."""
    names: dict[str, object] = {}
    differ: list[str] = []
    pieces, done = [], 0
    with contextlib.chdir(folder):
        for block in blocks_of(page):
            body = ""
            for what, found, expected in outputs(block, folder, names):
                body += (f"{what}\n" if what else "") + (expected if same(found, expected) else found)
                if not same(found, expected):
                    differ.append(f"{what}\nprinted:\n{found}where there stands:\n{expected}")
            pieces += [page[done : block.start], body or block.body]
            done = block.end
    return "".join(pieces) + page[done:], differ


def run_notebook(path: Path, folder: Path) -> tuple[NotebookNode, list[str]]:
    """The notebook with today's outputs, and what differs in their text. Cells run in a kernel of their own."""
    before, notebook = (nbformat.read(path, as_version=4) for _ in range(2))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":  # progress bars and warnings, with paths of this machine
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    pairs = [(found, cell) for found, cell in zip(notebook.cells, before.cells, strict=True) if cell.cell_type == "code"]
    differ = [
        f"{cell.source}\nprinted:\n{_shown(found)}where there stands:\n{_shown(cell)}"
        for found, cell in pairs
        if not same(_shown(found), _shown(cell))
    ]
    return notebook, differ


def _shown(cell: NotebookNode) -> str:
    """The text of a cell's results; progress bars and HTML left out."""
    return "".join(f"{out['data'].get('text/plain', '')}\n" for out in cell.outputs if out["output_type"] == "execute_result")


def prepare(folder: Path, store: Path) -> None:
    """Put data/ and a copy of the store where a page expects them."""
    (folder / "data").symlink_to(ROOT / "data")
    shutil.copytree(store, folder / "runs" / "store")


def make_store(folder: Path) -> Path:
    """The store with its two masks, as the README makes it."""
    (folder / "data").symlink_to(ROOT / "data")
    for command in (
        "tokenstats compute data/sft.jsonl --model data/models/warmup --reference data/models/base --store runs/store",
        "tokenstats mask runs/store --rule eksft --name eksft",
        "tokenstats mask runs/store --rule random --budget eksft --name random",
    ):
        run_command(command, folder)
    return folder / "runs" / "store"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put today's output in its place")
    arguments = parser.parse_args()
    differ = 0
    with tempfile.TemporaryDirectory() as scratch:
        (made := Path(scratch) / "made").mkdir()
        store = make_store(made)
        for path in (page.resolve() for page in arguments.pages):
            (folder := Path(scratch) / path.stem).mkdir()
            prepare(folder, store)
            if path.suffix == ".ipynb":
                notebook, found = run_notebook(path, folder)
                now = nbformat.writes(notebook) + "\n"
            else:
                now, found = run_page(path.read_text(encoding="utf-8"), folder)
            differ += len(found)
            print(f"{path.name}: {len(found)} differ", *found, sep="\n\n")
            if arguments.write:
                path.write_text(now, encoding="utf-8")
    sys.exit(1 if differ and not arguments.write else 0)


if __name__ == "__main__":
    main()
