"""Everything that decides a training run, in sections. Same config, data and machine, same model
(with a step budget; a time budget gives as many steps as the machine takes)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from qpack.errors import ConfigError
from qpack.packing import PackSection
from qpack.sections import NotPaths, Section, read_section

from .model.config import GPTConfig
from .rules import contradictions, problems_of_model

WORDS = ("standard-library",)
"""Sources of text that are no files."""
AnyPath = Annotated[Path, Field(strict=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


Paths = Annotated[tuple[AnyPath, ...], BeforeValidator(_listed), Field(strict=False)]


class DataSection(Section):
    """What to train on: shards, or text to make them from."""

    train: Paths = ()
    """Token shards, or patterns of them (`shards/fineweb_train_*.bin`)."""
    val: Paths = ()
    """Token shards to validate on."""
    tokenizer: AnyPath | None = None
    """SentencePiece model of the shards. With `text` and none given, one is trained."""
    text: Annotated[Paths, NotPaths(WORDS)] = ()
    """Documents: .txt, .jsonl, plain or .xz or .zst, or `standard-library`. Shards are made from
    them in the run's folder."""
    val_text: Annotated[Paths, NotPaths(WORDS)] = ()
    """Held-out documents; none: every 20th of `text`."""
    repeat: Mapping[str, Count] = Field(default_factory=dict)
    """Times that the documents of a file of `text` are read in an epoch, by its name or a pattern
    (`"fineweb.*" = 3`); others once. Held-out documents are not repeated."""
    documents_per_tokenizer: Count = 20_000
    """Most documents that a new tokenizer is trained on."""
    order: Literal["random", "listed", "easy", "hard"] = "random"
    """`random` mixes the windows of all shards; otherwise shards are read one after another, as
    listed or by perplexity under a bigram model of a sample, lowest or highest first."""
    windows: Literal["shuffled", "stride", "documents"] = "shuffled"
    """How sequences are cut: disjoint windows in random order, the same visited by a stride coprime
    to their number, or documents packed whole."""
    curriculum: Annotated[float, Field(ge=0)] = 0.0
    """Power P of the Markov curriculum: token weights 1 + P min(surprise x entropy / 5, 1), divided
    by their mean. 0: off."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Threads that tokenize; 0: one a core."""


class OptimSection(Section):
    """Optimizers and their rates, by kind of parameter."""

    matrix: Literal["muon", "adamw"] = "muon"
    """Optimizer of the matrices inside the blocks; all others have AdamW."""
    orthogonalize: Literal["ns5", "polar-express"] = "ns5"
    """Coefficients of the Newton-Schulz iteration."""
    ns_steps: Annotated[int, Field(ge=1, le=12)] = 5
    """Its iterations."""
    normalize: Literal["none", "rows", "rows-columns"] = "none"
    """Before it: MuonEq-R divides each row by its norm; then also each column."""
    precondition: Literal["none", "mousse-diagonal", "mousse-kronecker"] = "none"
    """Mousse: whitening by moving second moments of rows and columns, or by Kronecker factors."""
    matrix_lr: Positive = 0.025
    embedding_lr: Positive = 0.035
    """Of token, hash and value tables."""
    head_lr: Positive = 0.008
    """Of an untied head."""
    scalar_lr: Positive = 0.025
    """Of gains, gates and scales."""
    matrix_decay: Annotated[float, Field(ge=0)] = 0.04
    """Decoupled weight decay, times the learning rate."""
    embedding_decay: Annotated[float, Field(ge=0)] = 0.04
    head_decay: Annotated[float, Field(ge=0)] = 0.0
    scalar_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Decay = 0.95
    """Of Muon, after its warm-up."""
    momentum_start: Decay = 0.85
    momentum_warmup_steps: Annotated[int, Field(ge=0)] = 300
    """Steps over which the momentum rises from `momentum_start`."""
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    eps: Positive = 1e-8
    clip: Annotated[float, Field(ge=0)] = 0.3
    """Largest global norm of the gradient; 0: no clipping."""


class ScheduleSection(Section):
    """The one factor on all learning rates."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear rise."""
    warmdown: Fraction = 0.6
    """Last part of the budget, over which the factor falls to `floor`."""
    warmdown_steps: Annotated[int, Field(ge=0)] = 0
    """The same counted in steps at the pace measured so far; if given, `warmdown` is not used."""
    shape: Literal["linear", "cosine"] = "linear"
    floor: Fraction = 0.0


class AverageSection(Section):
    """Averages of the weights, and which weights are shipped."""

    ema_decay: Decay = 0.0
    """0: no EMA."""
    ema_warmup: bool = False
    """Decay min(d, t / (t + 50)) at the t-th update."""
    ema_from: Fraction = 0.0
    """Progress at which the EMA begins."""
    ema_from_step: Annotated[int, Field(ge=0)] = 0
    """Step at which it begins at the earliest."""
    swa_every: Annotated[int, Field(ge=0)] = 0
    """Steps between the weights of the uniform average; 0: no SWA."""
    swa_below: Fraction = 0.2
    """It begins when the factor of the learning rates is below this."""
    ship: Literal["last", "ema", "swa", "mixture", "best"] = "last"
    """`mixture`: mix x EMA + (1 - mix) x SWA. `best`: of all that exist, the one of fewest bits
    per byte on `loop.select_tokens` of validation *after quantization*."""
    mix: Fraction = 0.5

    @model_validator(mode="after")
    def _consistent(self) -> AverageSection:
        needs_ema, needs_swa = self.ship in ("ema", "mixture"), self.ship in ("swa", "mixture")
        if needs_ema and not self.ema_decay:
            raise ValueError(f"ship = {self.ship!r} needs ema_decay above 0")
        if needs_swa and not self.swa_every:
            raise ValueError(f"ship = {self.ship!r} needs swa_every above 0")
        return self


class QatSection(Section):
    """Late quantization-aware training on the grid of the recipe in `[pack]`."""

    start_lr_scale: Fraction | None = None
    """Starts when the factor of the learning rates falls below this."""
    start_progress: Fraction | None = None
    """Starts at this part of the budget."""
    start_step: Annotated[int, Field(ge=0)] | None = None
    """Starts at this step. Without any of the three there is no QAT."""
    match: tuple[str, ...] = Field(default=("class:matrix",), strict=False)
    """Tensors, as in a recipe."""
    knob: Positive | None = None
    """Value of the recipe's knob; none: the rule's own."""
    soft_rounding: tuple[Positive, Positive] | None = Field(default=None, strict=False)
    """Sharpness at the start and at the end; none: straight-through rounding."""

    @model_validator(mode="after")
    def _has_a_start(self) -> QatSection:
        if self.model_fields_set and not self.enabled:
            raise ValueError("give start_lr_scale, start_progress or start_step, or no qat at all")
        return self

    @property
    def enabled(self) -> bool:
        """Whether any start is given."""
        starts = (self.start_lr_scale, self.start_progress, self.start_step)
        return any(start is not None for start in starts)


class PhaseSection(Section):
    """A change of the order of layers during training: depth recurrence that begins late."""

    at: Fraction | None = None
    """Progress at which it begins..."""
    step: Annotated[int, Field(ge=0)] | None = None
    """...or step."""
    layer_order: tuple[int, ...] = Field(strict=False)
    """Indices of the blocks, in the order in which they run."""

    @model_validator(mode="after")
    def _one_start(self) -> PhaseSection:
        if (self.at is None) == (self.step is None):
            raise ValueError("give one of at and step")
        return self


def _budget(loop: LoopSection) -> LoopSection:
    if loop.max_steps is None and loop.max_seconds is None:
        raise ValueError("max_steps, max_seconds: give at least one")
    if loop.batch_tokens % (loop.sequence * loop.accumulate):
        raise ValueError(
            f"batch_tokens = {loop.batch_tokens:,} must be a multiple of sequence x accumulate ="
            f" {loop.sequence * loop.accumulate:,}"
        )
    if loop.max_seconds is not None and loop.reserve_seconds >= loop.max_seconds:
        raise ValueError("reserve_seconds must be below max_seconds")
    return loop


class LoopSection(Section):
    """How long, in what pieces, and what is watched."""

    max_steps: Count | None = None
    max_seconds: Positive | None = None
    """Wall clock of the steps; compiling and validation do not count. The first budget reached ends
    the run."""
    reserve_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Part of `max_seconds` that is kept for packing."""
    sequence: Count = 1024
    """Tokens a sequence."""
    batch_tokens: Count = 65_536
    """Tokens a step, over all ranks."""
    accumulate: Count = 1
    """Forward and backward passes a step on each rank: more of them need less memory."""
    val_tokens: Count = 131_072
    """Targets scored in each validation."""
    validations: Count = 1
    """How many, evenly spread over the run; the last is of the shipped weights."""
    select_tokens: Count = 32_768
    """Targets scored to choose what `average.ship = "best"` ships."""
    log_every: Count = 10
    """Steps between logged losses."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Steps between checkpoints to resume from; 0: only on an interrupt and at the end."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; `auto`: on CUDA alone."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and products; weights and optimizers keep float32. `auto`: bfloat16 on CUDA
    alone."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """`auto`: FlexAttention on CUDA where documents are masked, else SDPA."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    tensorboard: bool = False
    """Also write TensorBoard files (extra `tensorboard`)."""
    q_gain: Positive = 1.5
    """Starting gain of the queries."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the starting weights and of the order of the data."""


class TrainConfig(Section):
    """One training run: the tables of a preset or config file."""

    model: Mapping[str, Any]
    """Configuration of the architecture `gpt`."""
    data: DataSection = DataSection()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    average: AverageSection = AverageSection()
    qat: QatSection = QatSection()
    loop: Annotated[LoopSection, AfterValidator(_budget)]
    phase: tuple[PhaseSection, ...] = Field(default=(), strict=False)
    """In the order in which they begin; until the first, every block runs once."""
    pack: PackSection | None = None
    """What `qpack run` makes of the model; QAT and `average.ship = "best"` need its recipe."""

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a TOML document.

        Raises `ConfigError` naming every problem of every section, the model's included.
        """
        problems: list[str] = []
        try:
            read = read_section(cls, config, what="the training configuration")
            problems += read.problems()
        except ConfigError as error:
            problems += error.items
            if isinstance(config.get("model"), Mapping):
                problems += problems_of_model(config["model"])
        if problems:
            raise ConfigError("the training configuration cannot be used", items=problems)
        return read

    def problems(self) -> list[str]:
        """What sections that are well formed alone contradict in each other, and the model."""
        found = [*problems_of_model(self.model), *contradictions(self)]
        if found:
            return found
        for number, phase in enumerate(self.phase):
            order = {"layer_order": list(phase.layer_order)}
            bad = problems_of_model({**self.model, **order})
            if len(phase.layer_order) > len(self.phase[-1].layer_order):
                bad.append("layer_order: longer than the last phase's")
            found += [f"phase.{number}: {problem}" for problem in bad]
        return found

    def model_config_of_gpt(self) -> GPTConfig:
        """The architecture that is trained: with phases, the last one's order of layers."""
        table = {"train_seq_len": self.loop.sequence, **self.model}
        if self.phase:
            table["layer_order"] = list(self.phase[-1].layer_order)
        return GPTConfig.from_mapping(table)
