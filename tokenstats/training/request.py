"""What a run was asked for, opened and resolved, and the run file that says it again."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenstats.options import effective
from tokenstats.run_file import to_toml
from tokenstats.store import Store
from tokenstats.store.drafts import whole_file
from tokenstats.training.legs import Leg
from tokenstats.training.mixture import Source, masks_of
from tokenstats.training.options import TrainOptions
from tokenstats.training.provenance import joined_fingerprint, write_record
from tokenstats.training.selection import Selector

if TYPE_CHECKING:
    from tokenstats.training.callbacks import Callback

RUN_FILE = "run.toml"
"""Name of the run file, beside the weights."""


@dataclass(frozen=True)
class Request:
    """A run that was asked for.

    Attributes:
        sources: The stores, of one tokenizer, and their masks.
        model: A folder or Hub id, as it was given.
        options: Resolved.
        follow: A rule that decides in each step, or None.
        callbacks: Of transformers' Trainer.
        leg: The stretch of the run that is trained; None: the run is not cut into legs.
    """

    sources: tuple[Source, ...]
    model: str
    out: Path
    options: TrainOptions
    follow: Selector | None = None
    callbacks: "tuple[Callback, ...]" = ()
    leg: Leg | None = None

    @property
    def store(self) -> Store:
        """The first store: its tokenizer and template are those of all."""
        return self.sources[0].store

    @property
    def ends_the_run(self) -> bool:
        """Is nothing of the run left to train after this?"""
        return self.leg is None or self.leg.last_step == self.options.max_steps

    @property
    def fingerprint(self) -> str:
        """What the rows are: of one store its fingerprint."""
        return joined_fingerprint([source.store.fingerprint for source in self.sources])

    @property
    def weighted(self) -> bool:
        """Are kept tokens weighed?"""
        return any(source.mask.weighted for source in self.sources) if self.follow is None else self.follow.weighted

    @property
    def decided_by(self) -> str:
        """What decides which tokens are kept, for messages."""
        if self.follow is not None:
            return "the rule that is followed"
        return " and ".join(dict.fromkeys(f"the mask {source.mask.title!r}" for source in self.sources))

    def run_file(self) -> str:
        """The run as a TOML file. What no file can say stands in its comments."""
        notes = ["# every option as it took effect; paths as they were given"]
        if self.follow is not None and self.follow.source is None:
            notes.append("# a rule made in Python was followed: tokenstats.json has it")
        if self.callbacks:
            notes.append("# with callbacks in Python")
        paths = [str(source.store.path) for source in self.sources]
        own = {
            "store": paths[0] if len(paths) == 1 else paths,
            "mask": masks_of(self.sources),
            "model": self.model,
            "out": self.out,
            "follow": self.follow.source if self.follow is not None else None,
        }
        return "\n".join([*notes, to_toml({**own, **effective(self.options)})])

    def write_beside(self, record: dict[str, Any]) -> None:
        """Write what the weights in ``out`` come from: the record, and the run file; of legs who trains them writes it."""
        write_record(self.out, record)
        if self.leg is None:
            with whole_file(self.out / RUN_FILE) as file:
                file.write(self.run_file().encode())
