"""What decides how a dataset becomes tokens: every default and check in one place. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenstats.corpus.formats import check_columns, parse_columns
from tokenstats.options import at_least, check, field, one_of

OWN, TRAINING = "own", "training"
"""The chat template that a tokenizer brings, and the one that trl ships in its place; anything else is a file's path."""

AS_IS, PLAIN = "as-is", "plain"
"""What becomes of a special token that is written out in the dataset's text: the token itself, or its characters."""


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """How rows are read and become tokens. Raises InputError for a value that makes no sense.

    ``columns`` maps our names to the dataset's, {"prompt": "question"}; a killed run loses at most one part.
    """

    columns: Mapping[str, str] | None = field(
        None, "the dataset's own names: prompt=question,completion=answer", parse=parse_columns
    )
    split: str | None = field(None, "split of a Hub dataset [train]")
    chat: bool = field(True, "put plain prompts and completions into the chat template")
    template: str = field(OWN, "chat template: own, training (the one trl ships in its place) or a Jinja file")
    special_text: str = field(
        AS_IS, "special tokens written out in the data: as-is (they are tokens) or plain (characters)", one_of(AS_IS, PLAIN)
    )
    max_length: int | None = field(None, "cut sequences after so many tokens", at_least(2))
    part_tokens: int = field(1_000_000, "tokens in a part, the most that a kill can lose", at_least(1))

    def __post_init__(self) -> None:
        check(self)
        check_columns(self.columns or {})
