"""How a run trains: budget, batches, optimizer, and when it looks at itself.

The section `train` of a recipe. It describes; `ince.train` builds what is described.
"""

from collections.abc import Mapping
from typing import Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ince.errors import InputError
from ince.optim import OptimizerName, is_paged
from ince.train.pages import PagesSection
from ince.train.sinks.installed import SinkName
from ince.units import parse_bytes

__all__ = ["NOT_OF_THE_RESULT", "EarlyStopping", "TrainConfig"]

NOT_OF_THE_RESULT = (
    "compact_heap",
    "memory",
    "pages",
    "report_to",
    "save_retries",
    "save_wait_seconds",
)
"""Fields that may change while a run goes on: they decide how it fares, not what comes out."""

_SECTION = ConfigDict(
    extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
)


# What transformers calls the same optimizers.
_ELSEWHERE = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
    "lion_32bit": "lion",
    "paged_lion_32bit": "paged_lion",
}
_LION_BETAS = (0.9, 0.99)


class EarlyStopping(BaseModel):
    """When a run ends before its budget is used: the held-out loss does not fall any more."""

    model_config = _SECTION

    patience: int = Field(ge=1)
    """Evaluations in a row without a gain after which the run ends."""

    min_delta: float = Field(default=0.0, ge=0)
    """By how much the loss must have fallen since the last gain to be one, in nats."""


class TrainConfig(BaseModel):
    """The training section of a recipe. Counts of tokens are after packing, padding left out."""

    model_config = _SECTION

    method: Literal["lora", "full"] = "lora"
    """What learns: an adapter on a frozen base, or every weight of the model."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training data; a fraction stops inside a pass."""

    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, even when `epochs` would go on."""

    batch_tokens: int = Field(default=4096, ge=8)
    """Tokens in one optimizer step, at most: the global batch."""

    micro_batch_tokens: int | None = Field(default=None, ge=8)
    """Tokens in one forward, at most; gradients of several add up to a step.
    None: the whole batch at once."""

    memory: int | None = Field(default=None, ge=1)
    """What the run may hold, such as ``3GiB``: of the process on a CPU, of the device on a GPU.
    What does not fit is cut into smaller micro-batches. None: on a CPU no limit, on a GPU what
    is free."""

    activations: Literal["keep", "recompute", "offload"] = "keep"
    """What is kept for the backward pass: everything; the inputs of layers, which then run once
    more; or those, in pinned memory instead of on the accelerator."""

    compact_heap: bool = False
    """On a CPU with glibc, map blocks as large as activations apart from the heap: a fifth to a
    quarter less at the peak, for some per cent of the time, or more where pages are dear."""

    fused: bool = True
    """Compute norms, feed-forward blocks and q, k, v by fused functions, where there are such."""

    compile: bool = False
    """Compile the model's layers, if a trial before the first step shows that it helps."""

    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""

    loraplus_lr_ratio: float | None = Field(default=None, gt=0)
    """How many times as fast as A each B learns (LoRA+, arXiv:2402.12354); 16 is usual.
    None: as fast."""

    layer_lr_decay: float | None = Field(default=None, gt=0, le=1)
    """How fast each layer learns, as a share of the layer after it; 0.9 to 0.95 is usual.
    None: all alike."""

    lr_multipliers: dict[str, float] = Field(default_factory=dict)
    """Factors on the learning rate of what their patterns match: dotted words of a parameter's
    name (``q_proj``, ``layers.0``, ``lora_B``), or a regular expression for all of it."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warm-up: down to zero, or level."""

    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero to `lr`."""

    optimizer: OptimizerName = "adamw"
    """AdamW or Lion, with state in float32 or in 8 bits, and in pages that may lie in a file.
    transformers' names for them are known, too."""

    pages: PagesSection | None = None
    """What the pages of a ``paged_…`` optimizer may hold on the device, in memory and in a file.
    None: the defaults of the section."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's first and second moment, each in [0, 1). Lion's are (0.9, 0.99) where
    none are given."""

    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment, against division by zero."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of the adapter's weights, per step and unit of learning rate."""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this global norm; 0 leaves them alone."""

    neftune_alpha: float | None = Field(default=None, gt=0)
    """Noise on the input embeddings while training (NEFTune, arXiv:2310.05914); 5 to 15 is usual.
    None: none."""

    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """How slowly a moving average of the adapter forgets, such as 0.99; the average is then what
    is evaluated and what the run results in. None: the adapter itself."""

    max_skipped_steps: int = Field(default=5, ge=1)
    """Steps in a row whose loss or gradient is not finite before the run gives up; until then
    they are passed over, and nothing is updated."""

    seed: int = Field(default=7, ge=0, lt=2**63)
    """Of initialization, order of the data and dropout."""

    eval_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations of the held-out loss. None: at the end only."""

    early_stopping: EarlyStopping | None = None
    """End when the held-out loss does not fall any more. Needs `eval_every`. None: train on."""

    keep_best: bool | None = None
    """Whether the result is the adapter of the lowest held-out loss instead of the last one; its
    checkpoint is then kept. Needs `eval_every`. None: yes where there is an `eval_every`."""

    report_to: tuple[SinkName, ...] = ()
    """Where the run's numbers go besides log.jsonl: ``tensorboard``, ``wandb``, ``mlflow``,
    ``trackio``; each must be installed."""

    save_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints. None: at the end, and when the run is stopped."""

    sample_every: int | None = Field(default=None, ge=1)
    """Steps between sample answers in the log. None: none while training."""

    keep_checkpoints: int = Field(default=2, ge=1)
    """Checkpoints kept; older ones are removed after a newer one is whole."""

    save_retries: int = Field(default=6, ge=0, le=100)
    """Further attempts when a checkpoint cannot be saved, as on a full disk."""

    save_wait_seconds: float = Field(default=5.0, gt=0)
    """Pause before the first of them, doubled each time: by default five minutes in all."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_optimizer(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        values = {str(key): item for key, item in cast("Mapping[object, object]", value).items()}
        name = values.get("optimizer")
        if isinstance(name, str):
            name = values["optimizer"] = _ELSEWHERE.get(name, name)
            if "lion" in name:
                values.setdefault("betas", _LION_BETAS)
        return values

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return parse_bytes(value)
        except InputError as error:
            raise ValueError(f"{error.what}: {value!r}; write it as in 3GiB or 512 MiB") from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; each must be at least 0 and below 1")
        if self.micro_batch_tokens is not None and self.micro_batch_tokens > self.batch_tokens:
            raise ValueError(
                f"micro_batch_tokens is {self.micro_batch_tokens}, "
                f"more than batch_tokens, {self.batch_tokens}"
            )
        wrong = [f"{name}: {factor}" for name, factor in self.lr_multipliers.items() if factor <= 0]
        if wrong:
            raise ValueError(f"lr_multipliers has {', '.join(wrong)}; each must be more than 0")
        if self.pages is not None and not is_paged(self.optimizer):
            raise ValueError(
                f"pages are of a paged optimizer, and optimizer is {self.optimizer}; "
                f"write optimizer: paged_{self.optimizer}"
            )
        if self.eval_every is None and self.early_stopping is not None:
            raise ValueError("early_stopping needs eval_every, the steps between evaluations")
        if self.eval_every is None and self.keep_best:
            raise ValueError("keep_best needs eval_every, the steps between evaluations")
        return self

    @property
    def keeps_best(self) -> bool:
        """`keep_best`, decided."""
        return self.eval_every is not None if self.keep_best is None else self.keep_best
