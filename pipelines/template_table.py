"""How the chat templates that TRL ships are read: a table for docs/TEMPLATES.md, made by reading each of them.

    python -m pipelines.template_table            print it
    python -m pipelines.template_table --write    put it into docs/TEMPLATES.md

Needs the trl extra, and no network: a tokenizer of single bytes stands for each family's own, with the special tokens that
its template names. In the table ``·`` stands for the reply's words, ``¶`` for its reasoning, ``↵`` for a new line.
"""

import argparse
import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from tokenstats.corpus.formats import BadRow, Example, Message
from tokenstats.corpus.template import Rendered, Renderer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "TEMPLATES.md"
BEGIN, END = "<!-- table: python -m pipelines.template_table --write -->\n", "<!-- end of table -->\n"
SPECIAL = re.compile(
    r"<｜[^｜]*｜>|<\|[^|>]*\|>|<\|[a-z_]+>|<[a-z_]+\|>|\[/?(?:INST|gMASK)\]|<sop>|</?s>|<(?:start|end)_of_(?:turn|utterance)>"
)
PLAIN = re.compile(r"</?(?:think|tool_call)>")
"""Tokens that real tokenizers add without calling them special."""
EOS = {"deepseek": "<｜end▁of▁sentence｜>", "phi": "<|endoftext|>", "gptoss": "<|return|>"}

WORDS, THOUGHT = "twelve apples", "three times four"
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"x": "one"}}}],
}


def byte_tokenizer(template: str, name: str = "", plain: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with a template and the special tokens that it names; ``plain``: none is special."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(alphabet, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    eos = next((token for family, token in EOS.items() if family in name), "<eos>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token=eos)
    for pattern, special in ((SPECIAL, not plain), (PLAIN, False)):
        words = sorted({*pattern.findall(template)} - {eos})
        tokenizer.add_tokens([AddedToken(word, special=special, normalized=False) for word in words])
    tokenizer.chat_template = template
    return tokenizer


def shipped_templates() -> dict[str, str]:
    """The templates that TRL ships, original and for training, by the names of their files."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}


def read(name: str, template: str, messages: list[Message]) -> Rendered:
    return Renderer(byte_tokenizer(template, name), "messages").render(Example(messages))


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _reply(text: str, **fields: object) -> Message:
    return {"role": "assistant", "content": text, **fields}


def _targets(name: str, template: str, messages: list[Message], turn: int) -> str:
    """The targets of one turn, or why there are none."""
    try:
        rendered = read(name, template, messages)
    except BadRow as reason:
        return "refused" if "refuses" in str(reason) else str(reason).removeprefix("the template ")
    text = "".join(rendered.text[a:b] for a, b in rendered.targets[turn : turn + 1 or None])
    text = text.replace("\n", "↵").replace(WORDS, "·").replace(THOUGHT, "¶")
    return f"`{text}`".replace("|", "\\|")


def rows() -> list[list[str]]:
    """Of each template: how it is read, and what is learned of an earlier reply, the last, one with reasoning, a tool call."""
    table = []
    for name, template in shipped_templates().items():
        way = Renderer(byte_tokenizer(template, name), "messages").targets
        two = [_user("a"), _reply(WORDS), _user("b"), _reply(WORDS)]
        thinking = [_user("a"), _reply(WORDS, reasoning_content=THOUGHT)]
        earlier, last = (_targets(name, template, two, turn) for turn in (0, -1))
        reasoning = _targets(name, template, thinking, -1)
        answer: Message = {"role": "tool", "name": "add", "content": "2"}
        call = _targets(name, template, [_user("a"), CALL, answer, _reply(WORDS)], 0)
        table.append(
            [
                name,
                "markers" if way == "generation markers" else "rendering",
                earlier if earlier != last else "the same",
                last,
                reasoning if reasoning != last else "left out",
                call,
            ]
        )
    return table


def table() -> str:
    head = ["template", "read by", "an earlier reply", "the last reply", "with reasoning", "a tool call"]
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows()]]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/TEMPLATES.md")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
