"""The processes of a training in rounds: all of them train and score; the first makes the masks and keeps the record."""

from dataclasses import dataclass

from accelerate import PartialState

from tokenstats.errors import InputError
from tokenstats.modeling.load import pick_device
from tokenstats.scoring.workers import Worker


@dataclass(frozen=True)
class Crew:
    """One process among those that torchrun started, or the only one.

    They meet between the stages: what one writes, the others find. A process that fails is torchrun's to notice; it ends the
    others, who would wait for it.
    """

    worker: Worker
    on_cpu: bool

    @classmethod
    def of(cls, device: str) -> "Crew":
        """As the environment says. Raises InputError where training would not be one run of them all."""
        found = cls(Worker.from_environment(), pick_device(device).type == "cpu")
        if found.worker.count > 1 and (trains := found._state.num_processes) != found.worker.count:
            raise InputError(
                f"this is one of {found.worker.count} processes, but training sees {trains}; expected torchrun to start them, "
                "or a single one"
            )
        return found

    @property
    def leads(self) -> bool:
        """Is this the process that makes masks and keeps the record?"""
        return self.worker.rank == 0

    def meet(self) -> None:
        """Go on when all are here."""
        if self.worker.count > 1:
            self._state.wait_for_everyone()

    @property
    def _state(self) -> PartialState:
        return PartialState(cpu=self.on_cpu)
