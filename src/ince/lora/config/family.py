"""`LoraFamilyConfig`: the options that LoRA and AdaLoRA share.

PEFT's AdaLoRA has all options of LoRA and uses some; which, its own config says.

Source of the fields: Hugging Face PEFT; LoRA, arXiv:2106.09685.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field, StrictBool

from ince.errors import Problem
from ince.lora.config.base import PeftConfig
from ince.lora.config.fields import (
    ALL_LINEAR,
    Alpha,
    Count,
    Names,
    NamesOrPattern,
    PatternTable,
    Rank,
    Replication,
    Share,
    Start,
    Tokens,
)
from ince.lora.config.options import Clash, Options
from ince.lora.config.parts import EvaConfig, LoftQConfig, LoraGAConfig, LoraRuntimeConfig

__all__ = ["LoraFamilyConfig"]

_QALORA_GROUP_SIZE = 16


class LoraFamilyConfig(PeftConfig):
    """Options of LoRA and AdaLoRA. Not a method: use `LoraConfig` or `AdaLoraConfig`."""

    _not_built: ClassVar[Mapping[str, object]] = {
        "alora_invocation_tokens": None,
        "arrow_config": None,
        "corda_config": None,
        "kasa_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "monteclora_config": None,
        "use_bdlora": None,
        "use_qalora": False,
        "velora_config": None,
    }
    _parts: ClassVar[Mapping[str, type[Options]]] = {
        "eva_config": EvaConfig,
        "loftq_config": LoftQConfig,
        "lora_ga_config": LoraGAConfig,
        "runtime_config": LoraRuntimeConfig,
    }

    r: Rank = 8
    """Rank of the update."""
    lora_dropout: Share = 0.0
    """Share of a layer's inputs that A does not see in a training step."""
    exclude_modules: NamesOrPattern | None = None
    """Modules left out, by names, suffixes or a regular expression."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the base are trained: none, all, or those of adapted layers."""
    use_rslora: StrictBool = False
    """Scale by lora_alpha / sqrt(r) instead (arXiv:2312.03732)."""
    use_dora: StrictBool = False
    """Train the length of each output's weights apart from their direction
    (arXiv:2402.09353)."""
    init_lora_weights: Start = True
    """True: A Kaiming-uniform, B zero. "gaussian": A normal of deviation 1/r, B zero.
    False: both uniform, so that the adapter is no identity at its start (for tests).
    "orthogonal": rows of A and columns of B from one orthogonal matrix, so that BA = 0.
    "pissa" (arXiv:2404.02948), "pissa_niter_N" (the same from N rounds of a fast SVD), "olora"
    (arXiv:2406.01775): from the weight. "loftq" (arXiv:2310.08659): from what its quantization
    loses. "eva" (arXiv:2410.07170): from inputs. "lora_ga" (arXiv:2407.05000): from gradients.
    """
    alpha_pattern: PatternTable[Alpha] = Field(default_factory=dict)
    """Other alphas, by suffix or regular expression."""
    trainable_token_indices: Tokens | None = None
    """Tokens whose embeddings are trained: of the input embedding, or by names of modules."""
    target_parameters: Names | None = None
    """Parameters that are adapted where no module stands for them, such as the experts of a
    MoE: dotted suffixes of their names."""
    lora_bias: StrictBool = False
    """Train a bias beside B, for updates that were taken from a full fine-tuning."""
    layer_replication: Replication | None = None
    """Ranges [start, end) of layers that make up a deeper model over the same weights."""
    ensure_weight_tying: StrictBool = False
    """Keep what is trained of tied modules tied."""
    loftq_config: LoftQConfig | None = None
    """Settings of the start "loftq"."""
    eva_config: EvaConfig | None = None
    """Settings of the start "eva"."""
    lora_ga_config: LoraGAConfig | None = None
    """Settings of the start "lora_ga"."""
    qalora_group_size: Count = _QALORA_GROUP_SIZE
    """Of QALoRA, which is not built; in files for the format's sake."""
    runtime_config: LoraRuntimeConfig = Field(default=LoraRuntimeConfig(), exclude=True)
    """What concerns the run alone; never saved."""

    def to_peft_dict(self) -> dict[str, object]:
        """The config as PEFT writes it, every key of its format included."""
        values = super().to_peft_dict()
        return values if self.loftq_config is not None else {**values, "loftq_config": {}}

    @classmethod
    def _prepare(cls, values: dict[str, object]) -> Iterator[Problem]:
        yield from super()._prepare(values)
        loftq = values.get("loftq_config")
        if isinstance(loftq, Mapping) and not loftq:  # how PEFT says that there is none
            values["loftq_config"] = None
        if values.get("runtime_config", True) is None:
            del values["runtime_config"]
        start = values.get("init_lora_weights")
        for name, kind in cls._parts.items():
            of_start = isinstance(start, str) and name == f"{start.lower()}_config"
            if of_start and values.get(name) is None:
                values[name] = kind()

    def _clashes(self) -> Iterator[Clash]:
        yield from super()._clashes()
        for name in ("loftq_config", "eva_config", "lora_ga_config"):
            start = name.removesuffix("_config")
            if getattr(self, name) is not None and self.init_lora_weights != start:
                yield Clash(
                    (name, "init_lora_weights"),
                    f"says nothing with init_lora_weights={self.init_lora_weights!r}",
                    f"set init_lora_weights={start!r}",
                    training=True,
                )
        if self.target_modules == () and not self.target_parameters:
            yield Clash(
                ("target_modules", "target_parameters"),
                "names no module, and target_parameters no parameter",
                "leave it out, or say 'all-linear'",
            )
        if self.exclude_modules == ALL_LINEAR:
            yield Clash(
                ("exclude_modules",), f"{ALL_LINEAR!r} is for target_modules", "name modules"
            )
        if self.lora_bias and self.use_dora:
            yield Clash(("lora_bias", "use_dora"), "does not go with use_dora")
        # PEFT refuses to load a file that says otherwise.
        if self.lora_bias and not isinstance(self.init_lora_weights, bool):
            yield Clash(("lora_bias", "init_lora_weights"), "needs init_lora_weights True or False")
        if isinstance(self.trainable_token_indices, dict):
            for name in sorted({*self.trainable_token_indices} & {*(self.modules_to_save or ())}):
                yield Clash(
                    ("trainable_token_indices", "modules_to_save"),
                    f"{name!r} is in modules_to_save, which trains all its tokens",
                )
        if self.qalora_group_size != _QALORA_GROUP_SIZE:
            yield Clash(
                ("qalora_group_size",),
                "QALoRA is not supported",
                f"leave it at {_QALORA_GROUP_SIZE}",
                training=True,
            )
