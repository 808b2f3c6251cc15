"""Where what a message says ends up in the text that a chat template writes.

Every string of a message gets a private character before and after it, and the chat is rendered once more. Such a rendering
counts only where it is the plain one, character for character, once the marks are taken out: a template that cuts, strips or
looks at what it is given would write something else, and its marks would stand in a text that nobody learns from. Where that
happens the marks are placed differently, and in the end not at all.
"""

import json
import re
from enum import Enum
from typing import Any, NamedTuple

from tokenstats.corpus.formats import BadRow, Message

WORDS, THOUGHT, REASONING, CALL = range(4)
"""What a marked string is: content, thinking written out in it, a field of reasoning, a tool call's name or arguments."""

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_PLANES = (0xF0000, 0x100000)  # Unicode's private planes, 65,534 characters each
_PLANE_SIZE = 0xFFFE
_THINK_TAG = re.compile(r"(</?think>)")


class Placement(Enum):
    """Where the marks of a message stand: around each whole string; within its outer whitespace, which templates like to
    strip; only after it, where a template looks at how a string begins; or nowhere.
    """

    OUTER = "outer"
    INNER = "inner"
    END = "end"
    NONE = "none"


class Key(NamedTuple):
    """A marked string: the message it is of, what it is there, and its number among that message's."""

    message: int
    kind: int
    number: int


class Edge(NamedTuple):
    """The beginning or the end of a marked string, as a place in the text without marks."""

    key: Key
    is_end: bool
    at: int

    @property
    def message(self) -> int:
        """The message that the mark stands in, counted from 0."""
        return self.key.message


class Pen:
    """Writes marks that a text does not have, and reads them again."""

    def __init__(self, text: str):
        free = [plane for plane in _PLANES if not _in_plane(plane).search(text)]
        if not free:
            raise BadRow("text uses both of Unicode's private planes: its targets cannot be told")
        self._base, self._mark = free[0], _in_plane(free[0])
        self._keys: list[Key] = []
        self._codes: dict[Key, int] = {}

    def mark(self, message: Message, index: int, placement: Placement) -> Message:
        """A message with marks. Of an assistant's content, what stands in think tags is marked apart."""
        if placement is Placement.NONE:
            return message
        return _Marked(self, index, placement).of(message)

    def chars(self, key: Key) -> tuple[str, str]:
        """The marks before and after a string."""
        if key not in self._codes:
            if 2 * len(self._keys) + 1 >= _PLANE_SIZE:
                raise BadRow("too many messages and arguments: its targets cannot be told")
            self._codes[key] = len(self._keys)
            self._keys.append(key)
        code = self._base + 2 * self._codes[key]
        return chr(code), chr(code + 1)

    def read(self, marked: str) -> tuple[str, list[Edge]]:
        """The text without its marks, and where they were.

        Of a tool call only where it first stands: templates name a tool again where they give its answer.
        """
        plain: list[str] = []
        edges: list[Edge] = []
        seen: set[tuple[Key, bool]] = set()
        start = length = 0
        for found in self._mark.finditer(marked):
            plain.append(marked[start : found.start()])
            length += found.start() - start
            start = found.end()
            code, is_end = divmod(ord(found.group()) - self._base, 2)
            key = self._keys[code]
            if key.kind != CALL or (key, bool(is_end)) not in seen:
                edges.append(Edge(key, bool(is_end), length))
            seen.add((key, bool(is_end)))
        return "".join([*plain, marked[start:]]), edges

    def given(self, message: Message, index: int, placement: Placement) -> set[Key]:
        """The strings that are marked in a message."""
        _, edges = self.read(json.dumps(self.mark(message, index, placement), ensure_ascii=False, default=str))
        return {edge.key for edge in edges if edge.is_end}


class _Marked:
    """Marks one message, string by string."""

    def __init__(self, pen: Pen, index: int, placement: Placement):
        self._pen, self._index, self._placement = pen, index, placement
        self._number = 0

    def of(self, message: Message) -> Message:
        marked = dict(message)
        is_reply = message["role"] == "assistant"
        *thoughts, words = _THINK_TAG.split(message["content"]) if is_reply else [message["content"]]
        thoughts = [text if place % 2 else self._around(text, THOUGHT) for place, text in enumerate(thoughts)]
        marked["content"] = "".join([*thoughts, self._around(words, WORDS)])
        if is_reply:
            for name in REASONING_FIELDS:
                if isinstance(message.get(name), str):
                    marked[name] = self._around(message[name], REASONING)
            if message.get("tool_calls"):
                marked["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return marked

    def _call(self, call: dict) -> dict:
        function = call.get("function") or call
        marked = {key: self._all(value) if key in ("name", "arguments") else value for key, value in function.items()}
        return {**call, "function": marked} if call.get("function") else marked

    def _all(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._around(value, CALL)
        if isinstance(value, list):
            return [self._all(item) for item in value]
        if isinstance(value, dict):
            return {self._around(str(key), CALL): self._all(item) for key, item in value.items()}
        return value

    def _around(self, text: str, kind: int) -> str:
        begin, end = self._pen.chars(Key(self._index, kind, self._number))
        self._number += 1
        if self._placement is Placement.END:
            begin = ""
        if self._placement is Placement.OUTER:
            return f"{begin}{text}{end}" if text else text
        core = text.strip()
        if not core:
            return text
        at = text.index(core)
        return f"{text[:at]}{begin}{core}{end}{text[at + len(core) :]}"


def spans_of(edges: list[Edge]) -> list[tuple[int, int]]:
    """From the beginning of each marked string to its end."""
    opened: dict[Key, int] = {}
    spans = []
    for edge in edges:
        if not edge.is_end:
            opened[edge.key] = edge.at
        elif edge.key in opened:
            spans.append((opened.pop(edge.key), edge.at))
    return spans


def _in_plane(plane: int) -> re.Pattern:
    return re.compile(f"[{chr(plane)}-{chr(plane + _PLANE_SIZE - 1)}]")
