"""A recipe: everything that decides a run, in six typed parts.

    model     what is adapted, and in how many bits it is held
    lora      the adapter
    data      rows to learn from, rows to be measured on
    train     budget, batches, optimizer
    evaluate  what is measured when it is done
    output    the run's folder

Only `model.base`, `data.train` and `output` must be given. Names are short, for people;
each section turns itself into the config of the room that does the work.

Relative paths: data files, and a model that is a path, are relative to the recipe file, so
that recipe and data move together. `output` is relative to the working directory, as one
expects of results. Values given on the command line are relative to the working directory.
"""

import json
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ince.data.config import DataConfig
from ince.files import sha256_bytes
from ince.models import AttentionChoice
from ince.recipe.yaml_text import dump_yaml
from ince.train.config import NOT_OF_THE_RESULT, TrainConfig

if TYPE_CHECKING:
    import torch

    from ince.lora import LoraConfig
    from ince.quant import NF4Config

__all__ = ["EvaluateConfig", "LoraSection", "ModelSection", "Recipe"]

_SECTION = ConfigDict(
    extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
)


class ModelSection(BaseModel):
    """Section `model`: the base that is adapted and never changed."""

    model_config = _SECTION

    base: str = Field(min_length=1)
    """A packaged name (``smollm2-135m-instruct``), a hub id, a folder or a GGUF file."""

    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit of a hub id."""

    quantize: Literal["nf4"] | None = "nf4"
    """Bits in which the frozen base is held: ``nf4`` (QLoRA), or null or ``none`` for 16 bits,
    which is the default where `train.method` is ``full``."""

    double_quant: bool = True
    """Quantize the blocks' scales as well: 0.37 bits less for each weight. Only with nf4."""

    blocksize: int = Field(default=64, ge=32, le=4096)
    """Weights that share a scale, a power of two. Only with nf4."""

    scale_search: bool = False
    """Store each block's scale of least squared error instead of its largest weight. With nf4."""

    quantize_head: bool = False
    """Pack the output head too, unless it shares its weight with the embedding. With nf4."""

    expand: bool = False
    """Hold a 16-bit copy of the 4-bit weights while training: faster where unpacking is slow,
    for the memory of a 16-bit base. Only with nf4."""

    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of the activations and of the products. ``auto``: bfloat16, and float32 on a
    processor that only emulates it."""

    attention: AttentionChoice = "auto"
    """How attention is computed: ``sdpa``, ``eager``, ``flex_attention`` or, on a GPU where it is
    installed, ``flash_attention_2`` or ``3``. ``auto``: what the model's class takes, and on a CPU
    ince's own kernel for packed rows."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$")
    """``auto`` takes an accelerator when there is one."""

    @field_validator("quantize", mode="before")
    @classmethod
    def _none_is_null(cls, value: object) -> object:
        return None if value == "none" else value

    @field_validator("blocksize", mode="after")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"got {value}, expected a power of two")
        return value

    def to_nf4_config(self) -> "NF4Config | None":
        """The quantization of the base, or None for 16 bits."""
        if self.quantize is None:
            return None
        from ince.quant import NF4Config

        settings: dict[str, object] = {
            "blocksize": self.blocksize,
            "double_quant": self.double_quant,
            "scale_search": self.scale_search,
            "quantize_head": self.quantize_head,
        }
        if self.compute_dtype != "auto":
            settings["compute_dtype"] = self.compute_dtype
        return NF4Config.model_validate(settings)

    @property
    def torch_dtype(self) -> "torch.dtype | None":
        """`compute_dtype` as `load_model` takes it: None for ``auto``."""
        import torch

        return None if self.compute_dtype == "auto" else getattr(torch, self.compute_dtype)


class LoraSection(BaseModel):
    """Section `lora`: the adapter. Meanings are those of PEFT's `LoraConfig`."""

    model_config = _SECTION

    r: int = Field(default=16, ge=1, le=65_536)
    """Rank: the inner width of the update ``s · B A``."""

    alpha: int = Field(default=32, ge=1)
    """Scale of the update: s = alpha / r, or alpha / √r with `use_rslora`."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are dropped while training."""

    target_modules: str | tuple[str, ...] = Field(default="all-linear", min_length=1)
    """``all-linear``, names or dotted suffixes, or a regular expression for whole names."""

    exclude_modules: str | tuple[str, ...] | None = Field(default=None, min_length=1)
    """What `target_modules` matches and is left alone; read in the same way."""

    use_rslora: bool = False
    """Scale by 1/√r instead of 1/r, which keeps large ranks learning (arXiv:2312.03732)."""

    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Ranks of modules that differ from `r`, by name or regular expression."""

    alpha_pattern: dict[str, int] = Field(default_factory=dict)
    """Alphas of modules that differ from `alpha`, by name or regular expression."""

    layers_to_transform: int | tuple[int, ...] | None = None
    """Indices of the layers that get an adapter. None: all of them."""

    layers_pattern: str | tuple[str, ...] | None = Field(default=None, min_length=1)
    """Name of the list that `layers_to_transform` counts in, such as ``layers``."""

    use_dora: bool = False
    """Train the length of each output's weights apart from their direction
    (arXiv:2402.09353)."""

    lora_bias: bool = False
    """Train a bias beside B."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the base the adapter has its own copy of."""

    modules_to_save: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Modules trained whole, on a copy that is saved with the adapter."""

    trainable_token_indices: tuple[int, ...] | dict[str, tuple[int, ...]] | None = None
    """Tokens whose embeddings are trained: of the input embedding, or by names of modules."""

    target_parameters: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Parameters that no layer stands for, such as the fused experts of a MoE."""

    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = "default"
    """How it starts: A Kaiming-uniform as in PEFT or Gaussian as in the paper, and B zero;
    "orthogonal", both random and BA zero; or from the weights: "pissa" (arXiv:2404.02948),
    "olora" (arXiv:2406.01775)."""

    @field_validator("rank_pattern", "alpha_pattern", mode="after")
    @classmethod
    def _positive(cls, value: dict[str, int]) -> dict[str, int]:
        wrong = [f"{name}: {number}" for name, number in value.items() if number < 1]
        if wrong:
            raise ValueError(f"got {', '.join(wrong)}, expected at least 1")
        return value

    @model_validator(mode="after")
    def _layers_need_names(self) -> Self:
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs target_modules as a list of names")
        return self

    def to_lora_config(self, *, base_model: str | None = None) -> "LoraConfig":
        """The config of `ince.lora`, under PEFT's names.

        Args:
            base_model: reference of the base, recorded in the adapter.

        Raises:
            ConfigError: the parts do not fit together.
        """
        from ince.lora import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.target_modules,
            exclude_modules=self.exclude_modules,
            use_rslora=self.use_rslora,
            rank_pattern=self.rank_pattern,
            alpha_pattern={**self.alpha_pattern},
            layers_to_transform=self.layers_to_transform,
            layers_pattern=self.layers_pattern,
            use_dora=self.use_dora,
            lora_bias=self.lora_bias,
            bias=self.bias,
            modules_to_save=self.modules_to_save,
            trainable_token_indices=self.trainable_token_indices,
            target_parameters=self.target_parameters,
            init_lora_weights=True if self.init == "default" else self.init,
            base_model_name_or_path=base_model,
        )


class EvaluateConfig(BaseModel):
    """Section `evaluate`: what is measured before and after training, on the rows of data.eval."""

    model_config = _SECTION

    num_samples: int = Field(default=20, ge=0)
    """Rows that are answered by base and adapter, scored, and shown side by side; 0 for none."""

    max_new_tokens: int = Field(default=128, ge=1)
    """Length at which an answer is cut."""

    batch_size: int = Field(default=16, ge=1)
    """Answers generated at a time."""

    metrics: tuple[Literal["exact_match", "chrf"], ...] = ("exact_match", "chrf")
    """How answers are scored; held-out loss and perplexity are always measured."""

    english: str | None = Field(default=None, min_length=1)
    """A text file in what the base was good at; its bits per byte show what was forgotten."""


class Recipe(BaseModel):
    """A run, described. Build one with `load_recipe` or `parse_recipe`, or in Python."""

    model_config = _SECTION

    model: ModelSection
    """The base."""

    lora: LoraSection = Field(default_factory=LoraSection)
    """The adapter."""

    data: DataConfig
    """Rows to learn from, and rows to be measured on."""

    train: TrainConfig = Field(default_factory=TrainConfig)
    """Budget, batches, optimizer."""

    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    """What is measured when it is done."""

    output: str = Field(min_length=1)
    """The run's folder, relative to the working directory."""

    @model_validator(mode="before")
    @classmethod
    def _open_every_section(cls, value: Any) -> Any:
        # A section left out, or left empty as YAML allows, is one with defaults; a required
        # key is then reported by its own name, not by that of its section.
        if not isinstance(value, dict):
            return value
        filled: dict[str, object] = {str(key): item for key, item in value.items()}
        for section in ("model", "lora", "data", "train", "evaluate"):
            if filled.get(section) is None:
                filled[section] = {}
        model, train = filled["model"], filled["train"]
        if isinstance(model, dict) and isinstance(train, dict) and train.get("method") == "full":
            filled["model"] = {"quantize": None, **model}
        return filled

    @property
    def output_folder(self) -> Path:
        """`output` as a path."""
        return Path(self.output).expanduser()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, every default written out."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; `parse_recipe` reads it back equal."""
        return dump_yaml(self.to_dict())

    def digest(self) -> str:
        """Hex SHA-256 of what decides the result: canonical JSON without `output`, and without
        what `train` says about disks that are full.

        Files count by name, not by folder, so that a project may be moved to another machine
        and its run continued there. Their content is not in here: the run record has a digest
        of each file's bytes.
        """
        content = self.portable()
        for key in NOT_OF_THE_RESULT:
            del content["train"][key]
        text = json.dumps(
            content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return sha256_bytes(text.encode())

    def portable(self) -> dict[str, Any]:
        """The recipe without `output` and without folders: what is the same on any machine, and
        may be shown to others.
        """
        content = self.to_dict()
        del content["output"]
        for section, key in (("data", "train"), ("data", "eval"), ("evaluate", "english")):
            if isinstance(content[section].get(key), str):
                content[section][key] = PurePath(content[section][key]).name
        pages = content["train"]["pages"]
        if pages is not None:
            del pages["directory"]
        if PurePath(self.model.base).is_absolute():
            content["model"]["base"] = PurePath(self.model.base).name
        return content
