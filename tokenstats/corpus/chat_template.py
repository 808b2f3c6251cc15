"""One chat template: what it writes, how it prompts for a reply and how it closes one. Found by rendering small chats."""

import json
import re
from collections.abc import Iterator

import jinja2
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tokenstats.corpus.formats import BadRow, Message
from tokenstats.corpus.marks import Edge, Pen, Placement
from tokenstats.errors import InputError, one_line

Span = tuple[int, int]
Tools = list[dict] | None
MARKERS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

_USER: Message = {"role": "user", "content": "a"}
_REPLY: Message = {"role": "assistant", "content": "b"}
_CALLS: list[Message] = [
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": given}}]}
    for given in ({"k": "v"}, '{"k": "v"}')
]


class ChatTemplate:
    """A Jinja template with a tokenizer's special tokens.

    has_prompt:  ``add_generation_prompt`` makes a difference
    closes_last: the last reply is closed; closes_all: those before it are
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, text: str):
        self.tokenizer, self.text = tokenizer, text
        self.has_markers = MARKERS.search(text) is not None
        self._added = _any_of({token.content for token in tokenizer.added_tokens_decoder.values()})
        self._vocabulary = tokenizer.get_vocab()
        self._as_parts = False
        self._closings: set[str] = set()
        self._check_syntax()
        self._as_parts = self._wants_parts()
        self._quotes_arguments = self._writes_text_twice()
        self.prompt = self._find_prompt()
        self.has_prompt = bool(self.prompt)
        self._find_closings()

    def apply(self, messages: list[Message], tools: Tools, prompt: bool = False) -> str:
        """The text of a chat. Raises BadRow where the template refuses it."""
        try:
            return self.tokenizer.apply_chat_template(
                self._shaped(messages), tools=tools, chat_template=self.text, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # templates raise what they like
            raise BadRow(f"the chat template refuses it: {one_line(error, 80)}") from None

    def with_objects(self, messages: list[Message]) -> tuple[list[Message], list[str]]:
        """The messages as this template wants them, and a remark on them where they were given otherwise.

        OpenAI gives a call's arguments as JSON text. A template that writes them with ``tojson`` would write the text as a
        text in a text, which no model is asked for.
        """
        if not self._quotes_arguments:
            return messages, []
        shaped = [_with_objects(message) for message in messages]
        return shaped, [] if shaped == messages else ["arguments of tool calls are JSON text, given to the template as objects"]

    def marked_spans(self, messages: list[Message], tools: Tools) -> list[Span]:
        """What stands in the template's generation blocks."""
        try:
            _, spans = render_jinja_template(
                [self._shaped(messages)],
                tools=tools,
                chat_template=self.text,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:
            raise BadRow(f"the chat template refuses it: {one_line(error, 80)}") from None
        return [(start, end) for start, end in spans[0] if end > start]

    def closing(self, rest: str, after_words: bool = True) -> re.Match | None:
        """What closes a reply, in the text from its last word to the next message's first."""
        blank = len(rest) - len(rest.lstrip())
        if after_words and (found := self._openings.match(rest, blank)):
            return found
        return self._closing.search(rest)

    def _shaped(self, messages: list[Message]) -> list[Message]:
        if not self._as_parts:
            return messages
        return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]

    def _check_syntax(self) -> None:
        try:
            self.tokenizer.apply_chat_template([_USER, _REPLY], chat_template=self.text, tokenize=False)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"the chat template is not valid Jinja (line {error.lineno}: {one_line(error.message, 100)}); mend it"
            ) from None
        except Exception:  # what it refuses, it refuses row by row
            return

    def _wants_parts(self) -> bool:
        """Templates of models that also see images read a list of parts, and of a string nothing."""
        if self._rest([_USER]) is not None:
            return False
        self._as_parts = True
        return self._rest([_USER]) is not None

    def _writes_text_twice(self) -> bool:
        """Does it write arguments that are JSON text as a text with quotes of its own?"""
        try:
            return r"{\"k\": \"v\"}" in self.apply([_USER, _CALLS[1]], None)
        except BadRow:
            return False

    def _find_prompt(self) -> str:
        """What ``add_generation_prompt`` adds after a user's message."""
        without, with_prompt = (self._rest([_USER], prompt=prompt) for prompt in (False, True))
        if without is None or with_prompt is None or with_prompt == without:
            return ""
        same = common_length(without, with_prompt)
        ends = {0, *(found.end() for found in self._added.finditer(with_prompt))}
        while same not in ends and not with_prompt[same - 1].isspace():  # <|end|> and <|assistant|> share a <|
            same -= 1
        return with_prompt[same:]

    def _find_closings(self) -> None:
        self._openings = _any_of({self._added_token(self._rest([_USER]) or "")})
        tail, between = self._rest([_USER, _REPLY]), self._rest([_USER, _REPLY, _USER], of=1)
        eos = self.tokenizer.eos_token or ""
        self._know_closings({self._first_tokens(tail, between or "") if tail is not None else eos})
        self.closes_last = bool(self._closings)
        if not self.closes_last and between is not None:
            self._know_closings({self._closed_in_the_middle(between)})
        found = self.closing(between) if between is not None else None
        self.closes_all = bool(self._closings) and (between is None or found is not None)
        if not self._closings:
            return
        self._know_closings({found.group().strip()} if found else set())
        for rest, end in self._other_ends():
            if self.closing(rest) is None:
                self._know_closings({end})

    def _closed_in_the_middle(self, between: str) -> str:
        """What closes all replies but the last, left open (Qwen1.5): a token fewer than the headers."""
        text, token = self.apply([_USER, _REPLY, _USER], None), self._added_token(between)
        headers = {found.group() for found in self._added.finditer(between)} - {token}
        return token if token and any(text.count(header) > text.count(token) for header in headers) else ""

    def _know_closings(self, more: set[str]) -> None:
        self._closings = (self._closings | more) - {""}
        self._closing = _any_of(self._closings)

    def closing_tokens(self) -> set[str]:
        """The token that ends each closing: ``<|END_OF_TURN_TOKEN|>`` of ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>``."""
        return {self._last_token(closing) or closing for closing in self._closings}

    def _other_ends(self) -> Iterator[tuple[str, str]]:
        """What follows a reply that calls a tool, or one before a system message, and what may close it there.

        gpt-oss ends a call with a token of its own; where GLM's training template closes a reply, it is with the next header.
        """
        for call in _CALLS:
            if (rest := self._rest([_USER, call])) is not None:
                yield rest, self._last_token(rest)
        if self.closes_all and (rest := self._rest([_USER, _REPLY, {"role": "system", "content": "c"}], of=1)):
            yield rest, self._added_token(rest)

    def _rest(self, messages: list[Message], of: int = -1, prompt: bool = False) -> str | None:
        """What stands between a message's last word and the next message's first, or the end. None: nothing to be told."""
        of %= len(messages)
        try:
            text, edges = render_marked(self, Pen(""), messages, None, [Placement.OUTER] * len(messages), prompt)
        except BadRow:
            return None
        ends = [i for i, edge in enumerate(edges or []) if edge.message == of]
        if not edges or not ends:
            return None
        following = edges[ends[-1] + 1 :]
        return text[edges[ends[-1]].at : following[0].at if following else None]

    def _added_token(self, text: str) -> str:
        found = next((m.group() for m in self._added.finditer(text) if not m.group().isspace()), "")
        return found if text.lstrip().startswith(found) else ""

    def _first_tokens(self, tail: str, between: str) -> str:
        """What closes a reply, of what follows the last one: added tokens, or a word of the vocabulary.

        Of several without a space between them (Cohere: a reply's end, and a turn's) those that also close an earlier reply.
        """
        run: list[re.Match] = []
        for found in self._added.finditer(tail):
            if not found.group().isspace() and (not run or found.start() == run[-1].end()):
                run.append(found)
        while len(run) > 1 and not between.startswith(tail[: run[-1].end()]):
            run.pop()
        if run:
            return tail[run[0].start() : run[-1].end()]
        words = tail.split()
        if words and tail.strip() not in self._vocabulary and words[0] in self._vocabulary:
            return words[0]
        return tail.strip()

    def _last_token(self, tail: str) -> str:
        found = [m.group() for m in self._added.finditer(tail) if not m.group().isspace()]
        return found[-1] if found and tail.rstrip().endswith(found[-1].rstrip()) else ""


def render_marked(
    template: ChatTemplate,
    pen: Pen,
    messages: list[Message],
    tools: Tools,
    placements: list[Placement],
    prompt: bool = False,
    expected: str | None = None,
) -> tuple[str, list[Edge] | None]:
    """A chat's text, and the edges of what its messages say: None where marks change the text. Raises BadRow as apply."""
    text = template.apply(messages, tools, prompt) if expected is None else expected
    try:
        marked = [pen.mark(m, i, where) for i, (m, where) in enumerate(zip(messages, placements, strict=True))]
        found, edges = pen.read(template.apply(marked, tools, prompt))
    except BadRow:
        return text, None
    return text, edges if found == text else None


def _with_objects(message: Message) -> Message:
    """A message whose calls have objects for arguments, where they have the JSON texts of objects."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_with_object(call) for call in calls]} if calls else message


def _with_object(call: dict) -> dict:
    function = call.get("function") or call
    text = function.get("arguments")
    try:
        read = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return call
    if not isinstance(read, dict):
        return call
    function = {**function, "arguments": read}
    return {**call, "function": function} if call.get("function") else function


def _any_of(words: set[str]) -> re.Pattern:
    return re.compile("|".join(re.escape(word) for word in sorted(words - {""}, key=len, reverse=True)) or "(?!)")


def common_length(one: str, other: str) -> int:
    """How many characters two texts share at their beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
