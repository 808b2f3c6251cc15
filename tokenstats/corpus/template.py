"""From an example to text, and to the stretches of it that are targets.

Targets are what the assistant itself must write: its words, its tool calls, the thinking that the template gives it, and the
end-of-turn token that closes them; nothing of the header that the generation prompt gives, nothing that follows. One
definition, read from the template by rendering (:mod:`tokenstats.corpus.turns`); where a template has ``{% generation %}``
blocks they say which of that is learned.

Plain strings need no template: ``completion`` (what follows the prompt) or ``text`` (all of it).
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tokenstats.corpus.chat_template import ChatTemplate, Span, Tools
from tokenstats.corpus.encode import Encoded, Encoder
from tokenstats.corpus.formats import BadRow, Example
from tokenstats.corpus.marks import spans_of
from tokenstats.corpus.options import OWN, TRAINING, CorpusOptions
from tokenstats.corpus.turns import Conversation, Turn
from tokenstats.errors import InputError, argument, one_line
from tokenstats.options import refuse
from tokenstats.schema import BY_COMPARISON, BY_COMPLETION, BY_MARKERS, BY_TEXT, BY_TRAINING_TEMPLATE, ROLES

_DEFINITION = 3  # of targets: a store that was made with another is not gone on with
_ROLE_CODE = {name: code for code, name in enumerate(ROLES)}


@dataclass(frozen=True)
class Rendered:
    """Text, the character spans to learn, and who wrote what: (end, role code), in order.

    Attributes:
        said: The spans that the row itself says; the rest is the template's.
        unbounded: Values of the row that may stand in the text, nobody knows where.
        remarks: What the template did to the row that its reader should know.
    """

    text: str
    targets: list[Span]
    roles: list[tuple[int, int]]
    said: list[Span]
    unbounded: list[Any] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class Renderer:
    """Renders examples with one tokenizer's chat template. ``targets`` says how targets are found."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, shape: str, options: CorpusOptions = CorpusOptions()):
        self.tokenizer, self.source, self.special_text = tokenizer, options.template, options.special_text
        self.targets = BY_TEXT if shape == "text" else BY_COMPLETION
        self._variants: dict[str, ChatTemplate] = {}
        if not options.chat and shape not in ("prompt", "text"):
            raise InputError(
                f"{argument('chat', False)} is for plain prompts and completions; "
                f"the dataset holds chats ({shape}): leave it out"
            )
        if shape == "text" or not options.chat:
            refuse(options, "template", because="plain text is not put into a chat template; leave it out")
            return
        texts = _template_texts(tokenizer, options.template)
        if not texts:
            if shape == "prompt":
                return
            raise InputError(
                f"the dataset holds chats ({shape}), but the tokenizer has no chat template; "
                "use a chat model's tokenizer, or bring the data as prompt + completion or text"
            )
        self._variants = {name: ChatTemplate(tokenizer, text) for name, text in texts.items()}
        marked = all(variant.has_markers for variant in self._variants.values())
        self.targets = BY_TRAINING_TEMPLATE if options.template == TRAINING else BY_MARKERS if marked else BY_COMPARISON

    @property
    def is_chat(self) -> bool:
        """Do rows go through a chat template?"""
        return bool(self._variants)

    @property
    def brought(self) -> str | None:
        """The template of a file: the one that a model learns from these tokens, in place of the tokenizer's own."""
        return self._variants["default"].text if self.source not in (OWN, TRAINING) else None

    @property
    def adds_special_tokens(self) -> bool:
        """Does the tokenizer add its own, as it does to plain text?"""
        return not self.is_chat

    @cached_property
    def encoder(self) -> Encoder:
        """What makes ids of rendered texts."""
        return Encoder(self.tokenizer, [word for variant in self._variants.values() for word in variant.closing_tokens()])

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides how rows become text and targets."""
        texts = "\n".join(f"{name}\n{variant.text}" for name, variant in self._variants.items())
        return hashlib.blake2b(f"{_DEFINITION}\n{self.targets}\n{texts}".encode(), digest_size=16).hexdigest()

    def render(self, example: Example) -> Rendered:
        """Raises BadRow for an example that the template refuses or that has no reply."""
        if not self.is_chat:
            return self._render_plain(example)
        messages = example.messages or []
        if not any(m["role"] == "assistant" for m in messages):
            raise BadRow("no assistant turn")
        template = self._variant(example.tools)
        messages, remarks = template.with_objects(messages)
        chat = Conversation(template, messages, example.tools)
        turns = chat.turns()
        learned = {i: turn for i, turn in turns.items() if example.is_learned(i)}
        said = spans_of(chat.edges)
        remarks = [*example.remarks, *remarks, *chat.remarks]
        return Rendered(chat.text, chat.targets(learned), _roles(chat, turns), said, chat.unbounded(), remarks)

    def encode_as_is(self, rendered: list[Rendered]) -> list[Encoded]:
        """Special tokens that rows write out are those tokens."""
        return self.encoder.encode([r.text for r in rendered], self.adds_special_tokens)

    def encode_plain(self, rendered: Rendered) -> Encoded:
        """Special tokens that the row writes out are characters. Raises BadRow where none can tell them from the template's."""
        if self.encoder.has_controls(rendered.unbounded):
            raise BadRow("a special token in its text cannot be told from the template's: it cannot be written as plain text")
        return self.encoder.encode_plain(rendered.text, rendered.said, self.adds_special_tokens)

    def end_of_turn_ids(self) -> list[int]:
        """Tokens that close a reply: those that the template writes, where each is one token, and the tokenizer's eos."""
        found = {self.tokenizer.eos_token_id} - {None}
        added = {token.content: i for i, token in self.tokenizer.added_tokens_decoder.items()}
        for variant in self._variants.values():
            found |= {added[word] for word in variant.closing_tokens() if word in added}
            found |= self._plain_end(variant)
        return sorted(found)

    def _plain_end(self, variant: ChatTemplate) -> set[int]:
        """The token that closes a small reply, where it is a plain word of the vocabulary."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            conversation = Conversation(variant, chat, None)
            turn = conversation.turns()[1]
        except BadRow:
            return set()
        if turn is None or not conversation.text[turn.closes : turn.end].strip():
            return set()
        (encoded,) = self.encoder.encode([conversation.text], False)
        touched = encoded.touched_by([(turn.closes, turn.end)])
        alone = touched.sum() == 1 and (encoded.begins[touched] >= turn.closes).all()
        return {int(encoded.ids[touched][0])} if alone else set()

    def _variant(self, tools: Tools) -> ChatTemplate:
        """As transformers chooses among named templates."""
        return self._variants.get("tool_use" if tools is not None else "default") or self._variants["default"]

    def _render_plain(self, example: Example) -> Rendered:
        if example.messages is not None or example.system or example.tools:
            raise BadRow("messages, a system prompt or tools need a chat template")
        text, start = example.prompt + example.completion, len(example.prompt)
        if start == len(text):
            raise BadRow("empty text" if self.targets == BY_TEXT else "empty completion")
        role = "text" if self.targets == BY_TEXT else "assistant"
        roles = [(start, _ROLE_CODE["user"]), (len(text), _ROLE_CODE[role])]
        return Rendered(text, [(start, len(text))], roles, [(0, len(text))])


def _roles(chat: Conversation, turns: dict[int, Turn | None]) -> list[tuple[int, int]]:
    """Ends of the stretches of the text and who wrote them: what a message says, to the end of its turn, is its role's.

    What the template puts before it (headers, a default system prompt, tools) is 'other'.
    """
    ends: list[tuple[int, int]] = []
    for begin, end, role in sorted(chat.stretches(turns)):
        if not ends or begin >= ends[-1][0]:
            ends += [(begin, _ROLE_CODE["other"]), (end, _ROLE_CODE.get(role, 0))]
    return [*ends, (len(chat.text), _ROLE_CODE["other"])]


def _template_texts(tokenizer: PreTrainedTokenizerFast, source: str) -> dict[str, str]:
    """The named templates that are used, ``default`` among them; none where the tokenizer has none."""
    if source == TRAINING:
        return {"default": _training_template(tokenizer)}
    if source != OWN:
        return {"default": _template_file(source)}
    own = tokenizer.chat_template
    if isinstance(own, str):
        return {"default": own} if own else {}
    texts = {name: text for name, text in (own or {}).items() if name in ("default", "tool_use")}
    if own and "default" not in texts:
        raise InputError(
            f"the tokenizer's chat templates have no default (there are: {one_line(', '.join(sorted(own)), 80)}); "
            f"name one with {argument('template', 'FILE.jinja')}"
        )
    return texts


def _template_file(source: str) -> str:
    path = Path(source).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error, 80)
        raise InputError(
            f"{argument('template')} got {one_line(source, 80)!r}, which cannot be read ({reason}); "
            "expected own, training or a Jinja file"
        ) from None
    if not text.strip():
        raise InputError(f"{argument('template')} got {one_line(source, 80)!r}, which is empty; expected a Jinja chat template")
    return text


def _training_template(tokenizer: PreTrainedTokenizerFast) -> str:
    asked = argument("template", TRAINING)
    if find_spec("trl") is None:
        raise InputError(f"{asked} needs trl, which is not installed; pip install 'tokenstats[trl]'")
    from trl.chat_template_utils import get_training_chat_template

    if not tokenizer.chat_template:
        raise InputError(f"{asked} needs a chat template to start from, and the tokenizer has none")
    try:
        text = get_training_chat_template(tokenizer)
    except Exception as error:  # ValueError where trl knows none; a template may raise what it likes when it is tried
        raise InputError(
            f"{asked}: trl ships none for this tokenizer's chat template ({one_line(error, 80)}); leave it out"
        ) from None
    if not text:
        raise InputError(f"{asked}: the tokenizer's own template is fit for training as it is; leave it out")
    return text
