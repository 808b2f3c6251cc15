"""The shapes that fine-tuning datasets come in, and one shape for them all: an :class:`Example`.

    messages        {"messages": [{"role": "user", "content": "…"}, …]}
    conversations   {"conversations": [{"from": "human", "value": "…"}, …]}      ShareGPT
    prompt          {"prompt": "…", "completion": "…"}                           strings or message lists
    alpaca          {"instruction": "…", "input": "…", "output": "…"}
    text            {"text": "…"}                                                every token is a target

Of prompt + completion nothing in the prompt is learned, not even a reply; nor is a reply with ``"weight": 0``. A row that does
not hold what its shape promises raises :class:`BadRow`; the caller counts it and leaves it out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenstats.errors import InputError, argument, nearest, one_line

Message = dict[str, Any]

SHAPES: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
OPTIONAL_COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("system", "tools"),
    "conversations": ("system", "tools"),
    "prompt": ("system", "tools"),
    "alpaca": ("input", "system", "tools"),
    "text": (),
}
NOT_READ = ("history", "chat_template_kwargs")
"""Columns that other tools make something of: rows that have them are remarked on."""
KNOWN_COLUMNS = sorted({c for columns in (*SHAPES.values(), *OPTIONAL_COLUMNS.values()) for c in columns})

ROLE_ALIASES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "developer": "system",
}


class BadRow(Exception):
    """This row cannot be learned from; the message is a short reason that many rows may share."""


@dataclass(frozen=True)
class Example:
    """One row: a chat, or else a prompt and what follows it as plain strings.

    Attributes:
        given: So many messages are the prompt: of the replies among them nothing is learned.
        remarks: What of the row is not read, where its reader may think that it is.
    """

    messages: list[Message] | None = None
    tools: list[dict] | None = None
    prompt: str = ""
    completion: str = ""
    system: str | None = None
    given: int = 0
    remarks: tuple[str, ...] = ()

    def is_learned(self, index: int) -> bool:
        """Is the reply at this place of the messages one to learn from?"""
        return self.messages is not None and index >= self.given and self.messages[index].get("weight") != 0


def parse_columns(text: str) -> dict[str, str]:
    """``prompt=question,completion=answer`` as {'prompt': 'question', 'completion': 'answer'}."""
    mapping: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        ours, separator, theirs = (part.strip() for part in item.partition("="))
        if not (ours and separator and theirs):
            raise InputError(
                f"{argument('columns')} got {one_line(item, 60)!r}; expected OURS=THEIRS, such as "
                "prompt=question,completion=answer"
            )
        mapping[ours] = theirs
    return mapping


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise InputError where a mapping of columns names one of ours that is none."""
    for ours in columns:
        if ours not in KNOWN_COLUMNS:
            raise InputError(
                f"{argument('columns')} maps {one_line(ours, 60)!r}{nearest(str(ours), KNOWN_COLUMNS)}; "
                f"expected one of: {', '.join(KNOWN_COLUMNS)}"
            )


def recognise_shape(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """Name the shape of a dataset by its first row. Raises InputError that lists the columns seen."""
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise InputError(
            f"{argument('columns')} names {one_line(missing[0], 60)!r}, which the dataset does not have; "
            f"columns seen: {_names(row)}"
        )
    fitting = [shape for shape, needed in SHAPES.items() if all(columns.get(name, name) in row for name in needed)]
    asked = [shape for shape in fitting if set(SHAPES[shape]) & set(columns)]
    if not fitting:
        raise InputError(
            f"unknown dataset shape; columns seen: {_names(row)}; expected messages, conversations, prompt + completion, "
            f"instruction + output or text; name yours with {argument('columns')}, such as prompt=question,completion=answer"
        )
    shape = (asked or fitting)[0]  # what is mapped comes before what else could be read
    unread = [ours for ours in columns if ours not in (*SHAPES[shape], *OPTIONAL_COLUMNS[shape])]
    if unread:
        raise InputError(
            f"{argument('columns')} maps {unread[0]!r}, which would do nothing: rows are read as {' + '.join(SHAPES[shape])}; "
            "leave it out, or map all columns of one shape"
        )
    return shape


def read_example(row: Mapping[str, Any], shape: str, columns: Mapping[str, str]) -> Example:
    """Read a row of the given shape. Raises BadRow where it does not hold what the shape promises."""

    def get(name: str) -> Any:
        return row.get(columns.get(name, name))

    if shape == "text":
        return Example(completion=_text(get("text"), "text"))
    tools, system = _tools(get("tools")) or _tools_of(row.get("functions")), get("system")
    remarks = tuple(f"its column {name} is not read" for name in NOT_READ if row.get(name))
    given: list[Message] = []
    if shape == "prompt":
        prompt, completion = get("prompt"), get("completion")
        if not (isinstance(prompt, list) and isinstance(completion, list)):
            prompt, completion = _text(prompt, "prompt"), _text(completion, "completion")
            return Example(None, tools, prompt, completion, _text(system, "system") if system else None, remarks=remarks)
        given, replies = _messages(prompt), _messages(completion)
        if given[-1]["role"] == replies[0]["role"] == "assistant":
            raise BadRow("the completion goes on with a reply that the prompt begins: make one message of the two")
        chat = given + replies
    elif shape == "alpaca":
        extra = get("input")
        request = _text(get("instruction"), "instruction") + (f"\n{_text(extra, 'input')}" if extra else "")
        chat = [{"role": "user", "content": request}, {"role": "assistant", "content": _text(get("output"), "output")}]
    else:
        chat = _messages(get(shape))
    if system and chat[0]["role"] == "system":
        remarks = (*remarks, "its column system is not read: the messages begin with a system message")
        system = None
    example = Example(chat, tools, given=len(given), remarks=remarks)
    return _with_system(example, system) if system else example


def as_chat(example: Example) -> Example:
    """A prompt and completion of plain strings as one user and one assistant message."""
    if example.messages is not None:
        return example
    chat = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
    example = replace(example, messages=chat)
    return _with_system(example, example.system) if example.system else example


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise BadRow("no messages")
    return [_message(m) for m in value]


def _message(value: Any) -> Message:
    if not isinstance(value, dict):
        raise BadRow("a message is not an object")
    role = value.get("role", value.get("from"))
    if not isinstance(role, str):
        raise BadRow("a message has no role")
    message = {k: v for k, v in value.items() if k not in ("role", "from", "value", "content") and v is not None}
    content = value.get("content", value.get("value"))
    message["role"] = ROLE_ALIASES.get(role.lower(), role.lower())
    if role.lower() == "function_call" and (call := _function_call(content)):
        return {**message, "content": "", "tool_calls": call}
    if message["role"] == "assistant" and message.get("weight", 1) not in (0, 1):
        raise BadRow("the weight of a reply is neither 0 (not to be learned) nor 1")
    former = message.pop("function_call", None)  # OpenAI's, of one call; an empty object is what Parquet makes of none
    if former and message["role"] == "assistant" and not message.get("tool_calls"):
        message["tool_calls"] = [{"type": "function", "function": former}]
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(_is_call(c) for c in calls)):
        raise BadRow("tool_calls are not a list of calls")
    if content is None and not calls:
        raise BadRow("a message has no content")
    message["content"] = _content(content)
    return message


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("function") or {}, dict)


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(_text(p.get("text"), "content") for p in content)
    raise BadRow("a message's content is not text")


def _function_call(content: Any) -> list[dict] | None:
    """ShareGPT writes a call as JSON text: ``{"name": …, "arguments": …}``, or a list of such."""
    try:
        calls = json.loads(content)
    except (TypeError, ValueError, RecursionError):
        return None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls):
        return None
    return [{"type": "function", "function": {"name": c["name"], "arguments": c.get("arguments", {})}} for c in calls]


def _tools(value: Any) -> list[dict] | None:
    if not value:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow("tools are not JSON") from None
    if not isinstance(value, list) or not all(isinstance(t, dict) for t in value):
        raise BadRow("tools are not a list of objects")
    return value or None


def _tools_of(functions: Any) -> list[dict] | None:
    """OpenAI's former name for tools, each without the object around it."""
    found = _tools(functions)
    return [{"type": "function", "function": function} for function in found] if found else None


def _with_system(example: Example, text: Any) -> Example:
    message = {"role": "system", "content": _text(text, "system")}
    return replace(example, messages=[message, *(example.messages or [])], given=example.given + (example.given > 0))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a string")
    return value


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(one_line(name, 40) for name in list(row)[:20]) or "none"
