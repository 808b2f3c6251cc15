"""What decides how models score, and who does the work: every default and check in one place. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from tokenstats.errors import InputError, argument
from tokenstats.options import above, at_least, check, field, given, one_of, refuse_useless

LOCAL, RAY = "local", "ray"
TOGETHER, SEPARATE = "together", "separate"


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How tokens are scored. Raises InputError for a value that makes no sense.

    ``dtype`` auto is float32 on a CPU, the checkpoint's own on a GPU; ``batch_tokens`` is halved where memory runs out;
    ``reference_pass`` separate keeps the reference's hidden states on disk until they are scored. Code that a model brings is
    never asked about on the terminal.
    """

    batch_tokens: int = field(8192, "tokens in one forward pass, padding included", at_least(1))
    topk: int = field(0, "keep the K most likely alternatives too", at_least(0))
    score_all: bool = field(False, "score prompt tokens too")
    dtype: str = field("auto", "auto, float32, bfloat16 or float16", one_of("auto", "float32", "bfloat16", "float16"))
    device: str = field("auto", "auto, cpu or cuda")
    attention: str | None = field(None, "attention as transformers names it: sdpa, flash_attention_2, …", alias="attn")
    compiled: bool = field(False, "compile the models first: pays over hours", alias="compile")
    reference_pass: str = field(
        TOGETHER, "together, or separate: the reference first, where two models do not fit", one_of(TOGETHER, SEPARATE)
    )
    trust_remote_code: bool = field(False, "run code that a model brings with it; read it first")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Who scores the parts. Raises InputError for a value that makes no sense, or does nothing with this engine.

    ``kind`` local is this process, or those that torchrun or srun started; ray: actors of a cluster.
    """

    kind: str = field(LOCAL, "local (also below torchrun and srun), or ray: a cluster", one_of(LOCAL, RAY), alias="engine")
    workers: int | None = field(None, "with ray: how many [one for each GPU, else each CPU]", at_least(1))
    ray_address: str | None = field(None, "with ray: the cluster [RAY_ADDRESS, else this machine alone]")
    patience: float = field(600.0, "seconds that a worker waits for the first one's next part of tokens", above(0))

    def __post_init__(self) -> None:
        check(self)
        refuse_useless(self)

    def useless(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What does nothing with this engine, and why."""
        if self.kind == RAY:
            yield ("patience",), f"no worker waits for tokens with {argument('kind', RAY)}; leave it out"
        else:
            yield ("workers", "ray_address"), f"the engine is {self.kind}; give {argument('kind', RAY)} with it"


@dataclass(frozen=True)
class Request:
    """What is scored with what. Goes from process to process."""

    model: str
    reference: str | None = None
    options: ScoringOptions = ScoringOptions()

    def __post_init__(self) -> None:
        if self.reference is None and given(self.options, "reference_pass"):
            raise InputError(
                f"{argument('reference_pass', SEPARATE)} got no reference; expected {argument('reference')} with it, or neither"
            )

    @property
    def separate(self) -> bool:
        """The reference first, its hidden states on disk, then the scored model: never both bodies in memory."""
        return self.options.reference_pass == SEPARATE
