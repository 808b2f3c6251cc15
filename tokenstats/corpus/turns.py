"""One chat in one template: which stretches of its text the assistant must write itself.

That is everything from the end of the generation prompt to the end-of-turn token, both found in the text itself: the header is
what the text shares with the prompt that the model would be given at that place, counted from the last word before it; the
end is the first closing token after the reply's last word. Where a text does not show one of them, the row is refused.
"""

from dataclasses import dataclass
from typing import Any

from tokenstats.corpus.chat_template import ChatTemplate, Span, Tools, common_length, render_marked
from tokenstats.corpus.formats import BadRow, Message
from tokenstats.corpus.marks import CALL, REASONING, REASONING_FIELDS, THOUGHT, WORDS, Edge, Pen, Placement

_PLAIN: Message = {"role": "assistant", "content": "b"}


@dataclass(frozen=True)
class Turn:
    """One reply: from the end of its header; ``closes`` is where its end-of-turn token begins."""

    start: int
    closes: int
    end: int


class Conversation:
    """A chat rendered with a template. Raises BadRow where the template refuses it or hides what is said where."""

    def __init__(self, template: ChatTemplate, messages: list[Message], tools: Tools):
        self.template, self.messages, self.tools = template, messages, tools
        self.text = template.apply(messages, tools)
        self._pen = Pen(self.text)
        self._placements, self.edges = self._place_marks()
        self.remarks: list[str] = []
        self._check_shown()
        self._check_tools()

    def targets(self, turns: dict[int, Turn | None]) -> list[Span]:
        """What is learned, of all that the assistant writes: all of it, or what the template's generation blocks hold."""
        written = [turn for turn in turns.values() if turn is not None]
        if not self.template.has_markers:
            return [(turn.start, turn.end) for turn in written]
        marked = self.template.marked_spans(self.messages, self.tools)
        return [span for turn in written for span in self._within(turn, marked)]

    def unbounded(self) -> list[Any]:
        """What the template may write without marks around it: tools, names, messages that could not be marked."""
        marked = {"content", "tool_calls", *REASONING_FIELDS}
        found: list[Any] = [self.tools]
        for message, placement in zip(self.messages, self._placements, strict=True):
            whole = placement in (Placement.NONE, Placement.END)
            found.append({key: value for key, value in message.items() if whole or key not in marked})
            found += [
                {key: value for key, value in call.items() if key != "function"} for call in message.get("tool_calls") or ()
            ]
        return found

    def stretches(self, turns: dict[int, Turn | None]) -> list[tuple[int, int, str]]:
        """(begin, end, role) of what each message says, with what closes it and the space after that."""
        found = []
        for i, message in enumerate(self.messages):
            mine = [place for place, edge in enumerate(self.edges) if edge.message == i]
            turn = turns.get(i)
            if not mine and turn is None:
                continue
            begin = self.edges[mine[0]].at if mine else turn.start if turn else 0
            end = turn.end if turn else self.edges[mine[-1]].at
            following = self.edges[mine[-1] + 1].at if mine and mine[-1] + 1 < len(self.edges) else len(self.text)
            if turn is None and (closed := self.template.closing(self.text[end:following])):
                end += closed.end() if not self.text[end : end + closed.start()].strip() else 0
            rest = self.text[end : max(end, following)]
            found.append((begin, end + len(rest) - len(rest.lstrip()), message["role"]))
        return found

    def turns(self) -> dict[int, Turn | None]:
        """The turn of each assistant message; None for an empty one that the template leaves out."""
        return {i: self._turn(i) for i, message in enumerate(self.messages) if message["role"] == "assistant"}

    def _within(self, turn: Turn, marked: list[Span]) -> list[Span]:
        """What is marked of a turn; a block that holds the reply to its end holds the end-of-turn token too."""
        pieces: list[Span] = []
        for begin, end in marked:
            begin, end = max(begin, turn.start), min(end, turn.end)
            if pieces and begin <= pieces[-1][1] < end:
                pieces[-1] = (pieces[-1][0], end)
            elif begin < end:
                pieces.append((begin, end))
        if pieces and not self.text[pieces[-1][1] : turn.closes].strip():
            pieces[-1] = (pieces[-1][0], turn.end)
        return pieces

    def _place_marks(self) -> tuple[list[Placement], list[Edge]]:
        count = len(self.messages)
        # without closing tokens a reply's own last space is its end: where whitespace is stripped must be told one by one
        for where in (Placement.OUTER, Placement.INNER) if self.template.closes_last else (Placement.OUTER,):
            placements = [where] * count
            if (edges := self._edges(placements)) is not None:
                return placements, edges
        placements = [Placement.NONE] * count
        for i in range(count):
            for where in (Placement.OUTER, Placement.INNER, Placement.END):
                alone = [where if k == i else Placement.NONE for k in range(count)]
                if self._edges(alone) is not None:
                    placements[i] = where
                    break
        edges = self._edges(placements)
        if edges is None:
            raise BadRow("the template rewrites what a message says: its targets cannot be told")
        return placements, edges

    def _edges(self, placements: list[Placement]) -> list[Edge] | None:
        return render_marked(self.template, self._pen, self.messages, self.tools, placements, expected=self.text)[1]

    def _check_shown(self) -> None:
        """Is all that is said in the text? What a reply lacks is refused, thinking and other messages are remarked on."""
        shown = {edge.key for edge in self.edges if edge.is_end}
        replies = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        for i, message in enumerate(self.messages):
            # of mere space nothing is missed
            given = self._pen.given(message, i, Placement.INNER) if self._placements[i] is not Placement.NONE else set()
            lost = {key.kind for key in given - shown}
            if message["role"] != "assistant":
                if lost:
                    self._remark(f"the template leaves out a {message['role']} message")
                continue
            if self._placements[i] is Placement.NONE and self._pen.given(message, i, Placement.OUTER):
                raise BadRow("the template rewrites a reply: its targets cannot be told")
            if CALL in lost:
                raise BadRow("the template leaves out a tool call")
            if WORDS in lost:
                raise BadRow("the template leaves out or shortens a reply: its targets cannot be told")
            # the same reasoning may be given under several names
            if THOUGHT in lost or (REASONING in lost and not any(key[:2] == (i, REASONING) for key in shown)):
                which = "the last" if i == replies[-1] else "an earlier"
                self._remark(f"the template leaves out the reasoning of {which} reply")

    def _check_tools(self) -> None:
        try:
            if self.tools and self.template.apply(self.messages, None) == self.text:
                self._remark("the template leaves out the tools")
        except BadRow:
            return

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)

    def _turn(self, i: int) -> Turn | None:
        mine = [place for place, edge in enumerate(self.edges) if edge.message == i]
        if mine and any(edge.message != i for edge in self.edges[mine[0] : mine[-1]]):
            raise BadRow("the template writes messages into each other: its targets cannot be told")
        start = self._header_end(i, self.edges[mine[0]].at if mine else None)
        if start is None:
            return None
        return self._end(i, start, mine[-1] if mine else None)

    def _header_end(self, i: int, first: int | None) -> int | None:
        """Where the assistant begins to write, or None for an empty reply that is not in the text."""
        anchor = self._anchor(i, first)
        here = anchor.at if anchor else 0
        prompt = self._prompt(i, anchor)
        if prompt is None:
            return self._header_end_by_text(i, first)
        if self.text.startswith(prompt, here):
            end = here + len(prompt)
            # after a tool's answer DiffusionGemma prompts with nothing, and writes a header; Qwen1.5 does so after a reply
            header = self.template.prompt
            at = self.text.find(header, here, first) if header and first else -1
            return at + len(header) if here <= at <= end < at + len(header) else end
        shared = common_length(self.text[here:first], prompt)
        # words come where the prompt goes on, as DeepSeek-R1's does with <think>; or it went on with mere space
        if here + shared == first or not prompt[shared:].strip():
            return here + shared
        plain = self._before_plain_reply(i, anchor)
        if plain is not None and prompt.startswith(plain) and shared >= len(plain):
            return here + len(plain)
        if first is None:
            return None
        raise BadRow("the template begins a reply otherwise than its generation prompt: its targets cannot be told")

    def _anchor(self, i: int, first: int | None) -> Edge | None:
        """The last edge of what earlier messages say."""
        earlier = [edge for edge in self.edges if edge.message < i]
        if earlier and first is not None and earlier[-1].at > first:
            raise BadRow("the template writes messages in another order: its targets cannot be told")
        return earlier[-1] if earlier else None

    def _prompt(self, i: int, anchor: Edge | None) -> str | None:
        """From the anchor on, the text that the model would be given to reply to. None where it cannot be told."""
        if not self.template.has_prompt:
            return self._before_plain_reply(i, anchor)
        if i == 0:
            return None
        before = self.messages[:i]
        try:
            text, edges = render_marked(self.template, self._pen, before, self.tools, self._placements[:i], prompt=True)
        except BadRow:
            return None
        return _after(text, edges, anchor)

    def _before_plain_reply(self, i: int, anchor: Edge | None) -> str | None:
        """From the anchor on, what the template writes before the first word of a reply that is one word, in this place."""
        whole = len(self.messages)
        for upto in (whole, i + 1):  # a template may refuse what follows a call behind a plain reply
            messages = [*self.messages[:i], _PLAIN, *self.messages[i + 1 : upto]]
            placements = [*self._placements[:i], Placement.OUTER, *self._placements[i + 1 : upto]]
            try:
                text, edges = render_marked(self.template, self._pen, messages, self.tools, placements)
                break
            except BadRow:
                continue
        else:
            return None
        word = next((edge for edge in edges or [] if edge.message == i), None)
        if edges is None or word is None:
            return None
        return _after(text[: word.at], [edge for edge in edges if edge.message < i], anchor)

    def _header_end_by_text(self, i: int, first: int | None) -> int:
        """Where marks do not help: the prompt stands in the text as it is, or the reply comes first and shows it."""
        if i == 0 and first is not None and (at := self.text.rfind(self.template.prompt, 0, first)) >= 0:
            return at + len(self.template.prompt)
        prompt = self.template.apply(self.messages[:i], self.tools, prompt=True) if i else None
        if prompt is not None and self.text.startswith(prompt) and self.template.has_prompt:
            return len(prompt)
        raise BadRow("the template does not show where a reply begins: its targets cannot be told")

    def _end(self, i: int, start: int, last: int | None) -> Turn:
        if last is not None and not self.edges[last].is_end:
            raise BadRow("the template leaves out or shortens a reply: its targets cannot be told")
        after = start if last is None else max(start, self.edges[last].at)
        later = self.edges if last is None else self.edges[last + 1 :]
        following = [edge for edge in later if edge.message > i and edge.at >= after]
        rest = self.text[after : following[0].at if following else None]
        is_last = i == len(self.messages) - 1
        found = self.template.closing(rest, last is None or self.edges[last].key.kind == WORDS)
        # where only the last reply is closed, what stands behind another header closes that one
        if found and (is_last or self.template.closes_all or not rest[: found.start()].strip()):
            return Turn(start, after + found.start(), after + found.end())
        if self.template.closes_last if is_last else self.template.closes_all:
            raise BadRow("the template does not show where a reply ends: its targets cannot be told")
        own = rest if is_last else self._own_end(i, start)
        if own is not None and not rest.startswith(own):
            own = own.rstrip()
        if own is None or not rest.startswith(own):
            raise BadRow("the template does not show where a reply ends: its targets cannot be told")
        return Turn(start, after + len(own), after + len(own))

    def _own_end(self, i: int, start: int) -> str | None:
        """What the template itself writes after a reply's last word, where nothing follows it. None where that is not told."""
        upto = i + 1
        text, edges = render_marked(self.template, self._pen, self.messages[:upto], self.tools, self._placements[:upto])
        if edges and edges[-1].message == i:
            return text[edges[-1].at :]
        anchor = self._anchor(i, None)
        after = _after(text, edges, anchor)
        return after[start - (anchor.at if anchor else 0) :] if after is not None else None


def _after(text: str, edges: list[Edge] | None, anchor: Edge | None) -> str | None:
    """A text from the anchor on, where its last edge is the anchor."""
    if edges is None:
        return None
    if anchor is None:
        return text if not edges else None
    return text[edges[-1].at :] if edges and edges[-1][:2] == anchor[:2] else None
