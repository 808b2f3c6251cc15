"""From an example to text, and to the stretches of it that are targets.

Targets are what the assistant says, its end-of-turn token included. They are found, in this order of preference:

    generation markers          the chat template has ``{% generation %}`` blocks
    training template           the trl extra ships one, with markers, for this very template
    with and without the reply  what a reply adds to the rendered text

Plain strings need no template: ``completion`` (what follows the prompt) or ``text`` (all of it).
"""

import hashlib
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tokenstats.corpus.formats import BadRow, Example
from tokenstats.errors import InputError, one_line
from tokenstats.modeling.tokenizer import special_ids
from tokenstats.schema import BY_COMPARISON, BY_COMPLETION, BY_MARKERS, BY_TEXT, BY_TRAINING_TEMPLATE, ROLES

Span = tuple[int, int]
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ROLE_CODE = {name: code for code, name in enumerate(ROLES)}


@dataclass(frozen=True)
class Rendered:
    """Text, the character spans to learn, and who wrote what: (end, role code), in order."""

    text: str
    targets: list[Span]
    roles: list[tuple[int, int]]


class Renderer:
    """Renders examples with one tokenizer's chat template. ``targets`` says how targets are found."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, shape: str, chat: bool = True):
        self.tokenizer = tokenizer
        self.template: str | None = None
        self.targets = BY_TEXT if shape == "text" else BY_COMPLETION
        if not chat and shape not in ("prompt", "text"):
            raise InputError(f"--no-chat is for plain prompts and completions; the dataset holds chats ({shape}): leave it out")
        if shape == "text" or not chat:
            return
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            if shape == "prompt":
                return
            raise InputError(
                f"the dataset holds chats ({shape}), but the tokenizer has no chat template; "
                "use a chat model's tokenizer, or bring the data as prompt + completion or text"
            )
        self.template, self.targets = _training_template(tokenizer, template)

    @property
    def is_chat(self) -> bool:
        return self.template is not None

    @property
    def adds_special_tokens(self) -> bool:
        return not self.is_chat

    @property
    def fingerprint(self) -> str:
        return hashlib.blake2b(f"{self.targets}\n{self.template}".encode(), digest_size=16).hexdigest()

    def render(self, example: Example) -> Rendered:
        """Raises BadRow for an example that the template refuses or that has no reply."""
        if not self.is_chat:
            return self._render_plain(example)
        messages = example.messages or []
        if not any(m["role"] == "assistant" for m in messages):
            raise BadRow("no assistant turn")
        if self.targets == BY_COMPARISON:
            text = self._apply(messages, example.tools)
            targets = self._compare(messages, example.tools, text)
        else:
            text, targets = self._apply_with_markers(messages, example.tools)
        if any(m.get("tool_calls") for m in messages):
            bare = [{k: v for k, v in m.items() if k != "tool_calls"} for m in messages]
            if self._apply(bare, example.tools) == text:
                raise BadRow("the template leaves out a tool call")
        return Rendered(text, targets, self._roles(messages, example.tools, text))

    def end_of_turn_ids(self) -> list[int]:
        """Special tokens that close a reply, by rendering one; the tokenizer's eos token always counts."""
        found = {self.tokenizer.eos_token_id} - {None}
        if self.is_chat:
            chat: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            try:
                rendered = self.render(Example(chat))
            except BadRow:
                return sorted(found)
            if not rendered.targets:
                return sorted(found)
            tail = rendered.text[rendered.targets[-1][0] : rendered.targets[-1][1]].rpartition("b")[2]
            ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
            found |= set(ids) & special_ids(self.tokenizer)
        return sorted(found)

    def _render_plain(self, example: Example) -> Rendered:
        if example.messages is not None or example.system or example.tools:
            raise BadRow("messages, a system prompt or tools need a chat template")
        text, start = example.prompt + example.completion, len(example.prompt)
        if start == len(text):
            raise BadRow("empty text" if self.targets == BY_TEXT else "empty completion")
        role = "text" if self.targets == BY_TEXT else "assistant"
        return Rendered(text, [(start, len(text))], [(start, _ROLE_CODE["user"]), (len(text), _ROLE_CODE[role])])

    def _apply(self, messages: list[dict], tools: list[dict] | None, prompt: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=self.template, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # templates raise what they like
            raise BadRow(f"the chat template refuses it: {one_line(error, 80)}") from None

    def _apply_with_markers(self, messages: list[dict], tools: list[dict] | None) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:
            raise BadRow(f"the chat template refuses it: {one_line(error, 80)}") from None
        return texts[0], [(start, end) for start, end in spans[0] if end > start]

    def _compare(self, messages: list[dict], tools: list[dict] | None, text: str) -> list[Span]:
        """A reply is what the text gains from the generation prompt before it to its end-of-turn token."""
        spans = []
        if messages[0]["role"] == "assistant":
            raise BadRow("a reply comes first: without generation markers its beginning cannot be told")
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._apply(messages[:i], tools, prompt=True)
            after = self._apply(messages[: i + 1], tools)
            if not (after.startswith(before) and text.startswith(after)):
                raise BadRow("the template writes a prompt differently once a reply follows; its targets cannot be told")
            # a newline that the template puts after the end-of-turn token is not the assistant's
            reply = after[len(before) :].rstrip()
            ends_turn = any(reply.endswith(token) for token in self.tokenizer.all_special_tokens)
            spans.append((len(before), len(before) + len(reply) if ends_turn else len(after)))
        return spans

    def _roles(self, messages: list[dict], tools: list[dict] | None, text: str) -> list[tuple[int, int]]:
        """Ends of the stretches of the text and who wrote them: a message's content is its role's, what the template

        puts before it (headers, a default system prompt, tools) is 'other', and so is a message whose end it hides.
        """
        ends: list[tuple[int, int]] = []
        start, known = 0, True
        for i, message in enumerate(messages):
            prefix: str | None = text
            if i < len(messages) - 1:
                try:
                    prefix = self._apply(messages[: i + 1], tools)
                except BadRow:
                    prefix = None
            if prefix is None or not text.startswith(prefix):
                known = False
                continue
            content = str(message.get("content") or "").strip()
            begins = text.find(content, start, len(prefix)) if known and content else -1
            ends += [(begins, _ROLE_CODE["other"])] if begins >= 0 else []
            ends.append((len(prefix), _ROLE_CODE.get(message["role"], 0) if begins >= 0 else _ROLE_CODE["other"]))
            start, known = len(prefix), True
        return ends


def _training_template(tokenizer: PreTrainedTokenizerFast, template: str) -> tuple[str, str]:
    if _MARKERS.search(template):
        return template, BY_MARKERS
    if find_spec("trl") is not None:
        from trl.chat_template_utils import get_training_chat_template

        try:
            patched = get_training_chat_template(tokenizer)
        except ValueError:  # trl ships none for this template
            patched = None
        if patched:
            return patched, BY_TRAINING_TEMPLATE
    return template, BY_COMPARISON
