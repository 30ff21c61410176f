"""From a reference to a placed, frozen, perhaps quantized model and its tokenizer."""

import json
from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ince.errors import CorruptFileError, InputError, ModelReferenceError, did_you_mean
from ince.lora.base_identity import note_origin
from ince.models.build import Places, check_filled, weights_to_pack
from ince.models.gguf import convert_gguf
from ince.models.layout import Layout, find_layout
from ince.models.opening import empty_model, open_source
from ince.models.packed_cache import AUTOMATIC_BYTES, CachedLoad, load_cached
from ince.models.prequantized import agreed_quantization, stored_quantization
from ince.models.quiet import quiet_transformers
from ince.models.reference import ResolvedModel, resolve
from ince.models.source import TensorSource
from ince.ops import native_dtype
from ince.quant import NF4Config, packed_modules, quantize_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["choose_device", "load_model", "load_tokenizer"]

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_DEVICES = ("auto", "cpu", "cuda", "mps")


def load_model(
    reference: str | Path | ResolvedModel,
    *,
    quantization: NF4Config | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "auto",
    revision: str | None = None,
    cache: bool | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a causal language model and its tokenizer.

    The model is in evaluation mode and frozen: no parameter asks for a gradient.
    Weights stream in a few MiB at a time, and linear layers are quantized as they arrive, so
    that memory holds little more than the finished model, whatever its size. A checkpoint
    that names its tensors in another way than the model's class, or keeps experts apart that
    the class fuses, streams too. Only where tensors must be computed from stored ones does the
    model go through transformers' loader, whole, and is quantized after it.

    Args:
        reference: a packaged name, folder, GGUF file or hub id; or what `resolve` returned.
        quantization: pack the linear layers in four bits. A folder of bitsandbytes' in four bits
            keeps its codes, with None or with settings that it fits.
        dtype: of what is not quantized. None: bfloat16, and float32 on a processor that only
            emulates it; packed layers then multiply in it too, unless their config says otherwise.
        device: ``"auto"`` takes CUDA, then MPS, then the CPU; else a torch device.
        revision: branch, tag or commit, for a hub id.
        cache: keep the packed model on disk, so that the next load with these settings is a
            memory map, and one that is cut off goes on where it was. None keeps models of
            1 GiB and more that are packed. What is packed on disk already needs no cache, and
            what goes through transformers' loader has none.
        progress: told ``(stage, done, total)``; stages are converting, downloading, loading.
            The numbers of loading are bytes, as stored.

    Raises:
        ModelReferenceError: no such model, or not one that ince can read.
        CorruptFileError: its files are damaged.

    A tokenizer without a padding token pads with its end token.
    """
    target = choose_device(device)
    kept = native_dtype(target) if dtype is None else dtype
    if kept not in _DTYPES:
        raise InputError(
            "a model cannot be loaded in this dtype",
            got=str(kept),
            expected=", ".join(str(d).removeprefix("torch.") for d in _DTYPES),
        )
    if isinstance(reference, ResolvedModel):
        resolved = reference
    else:
        resolved = resolve(reference, revision, convert=False, progress=progress)
    source = open_source(resolved)
    with quiet_transformers():
        config, stored = read_config(resolved.folder)
        tokenizer = load_tokenizer(resolved.folder)
        model = _load(resolved, config, source, kept, target, quantization, stored, cache, progress)
    if dtype is None and not _says_compute_dtype(quantization):
        _multiply_natively(model, kept)
    check_vocabulary(model, tokenizer, resolved.folder)
    model.name_or_path = resolved.name
    model.config.name_or_path = resolved.name
    note_origin(model, resolved)
    model.requires_grad_(False)
    return model.eval(), tokenizer


def _says_compute_dtype(quantization: NF4Config | None) -> bool:
    return quantization is not None and "compute_dtype" in quantization.model_fields_set


def _multiply_natively(model: "PreTrainedModel", native: torch.dtype) -> None:
    """Let packed layers multiply in float32 where 16 bits are emulated; what is kept stays."""
    if native == torch.float32:
        for module in packed_modules(model).values():
            module.compute_dtype = native


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device meant by `device`.

    Raises:
        InputError: not a device, or not on this machine.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(
            "not a device",
            got=str(device),
            expected="auto, cpu, cuda, cuda:N or mps",
            do=did_you_mean(str(device), _DEVICES),
        ) from error
    absent = (chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()) or (
        chosen.type == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise InputError(
            f"this machine, or this build of torch, has no device {str(chosen)!r}",
            do="use auto, which takes what there is",
        )
    return chosen


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a model folder; its padding token is set.

    Raises:
        ModelReferenceError: there is none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # JSON, missing files and unknown classes all fail differently
        raise ModelReferenceError(
            "the model's tokenizer cannot be loaded",
            where=folder,
            got=f"{type(error).__name__}: {error}",
            expected="tokenizer.json and tokenizer_config.json beside the weights",
            do="save the tokenizer into the folder (tokenizer.save_pretrained)",
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(
    resolved: ResolvedModel,
    config: Any,
    source: TensorSource,
    dtype: torch.dtype,
    device: torch.device,
    quantization: NF4Config | None,
    stored: NF4Config | None,
    cache: bool | None,
    progress: Callable[[str, int, int], None] | None,
) -> "PreTrainedModel":
    from ince.models.hf_quantizer import make_quantized

    model = empty_model(config, source, dtype)
    layout = find_layout(model, source, dtype)
    packed = weights_to_pack(model, quantization)
    if stored is not None:
        quantization = agreed_quantization(layout, stored, quantization, packed, source.folder)
        packed = frozenset()
    if layout is None or are_tied(model, packed):
        del model
        folder = source.folder
        if resolved.source is not None:
            folder = convert_gguf(resolved.source, progress=progress)
        return _load_whole(folder, dtype, device, quantization, progress)
    load = CachedLoad(resolved, source, layout, packed, quantization, dtype, device, progress)
    places = Places(model)
    if stored is None and _is_cached(cache, quantization, source):
        load_cached(load, places.put)
    else:
        for finished in load.stream():
            places.put(finished)
    _finish(model, layout, source.folder, device)
    if quantization is not None:
        make_quantized(model, quantization)
    return model


def _is_cached(cache: bool | None, quantization: NF4Config | None, source: TensorSource) -> bool:
    if cache is not None:
        return cache
    stored = sum(entry.num_bytes for entry in source.entries.values())
    return quantization is not None and stored >= AUTOMATIC_BYTES


def are_tied(model: "PreTrainedModel", packed: Container[str]) -> bool:
    """Whether two layers to pack share their weight: tying works on floats only."""
    tied: dict[str, str] = model.all_tied_weights_keys
    return any(name in packed or source in packed for name, source in tied.items())


def _finish(model: "PreTrainedModel", layout: Layout, folder: Path, device: torch.device) -> None:
    """What is left when all stored tensors are in their places."""
    from transformers import GenerationConfig

    model.tie_weights()
    check_filled(model, folder)
    # Buffers that the class computed are still where it computed them.
    model.to(device)  # pyright: ignore[reportArgumentType]
    # As transformers does: saving names the tensors as they were named in the files.
    vars(model)["_weight_conversions"] = list(layout.conversions)
    if (folder / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(str(folder))
        except (OSError, ValueError, TypeError) as error:
            raise CorruptFileError(
                "the generation settings cannot be read",
                where=folder / "generation_config.json",
                got=str(error),
                do="repair the file, or remove it to use the defaults",
            ) from error


def read_config(folder: Path) -> tuple[Any, NF4Config | None]:
    """transformers' config, and how the weights are packed where they are."""
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptFileError(
            "not readable as JSON", where=path, got=str(error), do="get the model again"
        ) from error
    # What is no object transformers refuses below.
    stored = stored_quantization(raw, path) if isinstance(raw, dict) else None
    try:
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelReferenceError(
            "transformers cannot read the model's config",
            where=path,
            got=f"{type(error).__name__}: {error}",
            expected="the config of an architecture that the installed transformers knows",
            do="code that comes with a model is never run; update transformers if it is newer",
        ) from error
    if stored is not None:
        # The layers of the model say it; transformers would quantize what it saves once more.
        vars(config).pop("quantization_config", None)
    return config, stored


def _load_whole(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantization: NF4Config | None,
    progress: Callable[[str, int, int], None] | None,
) -> "PreTrainedModel":
    """Load through transformers, which knows how to rename and fuse tensors."""
    from transformers import AutoModelForCausalLM

    if progress is not None:
        progress("loading", 0, 1)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelReferenceError(
            "transformers cannot load these weights",
            where=folder,
            got=f"{type(error).__name__}: {error}",
        ) from error
    model, info = loaded
    for key, what in (
        ("missing_keys", "absent from the weight files"),
        ("unexpected_keys", "in the weight files but not part of the model"),
        ("mismatched_keys", "of another shape than the config says"),
    ):
        names = sorted(str(name) for name in info.get(key) or ())
        if names:
            raise ModelReferenceError(
                f"tensors {what}: {len(names)}",
                where=folder,
                got=", ".join(names[:5]),
                expected="every tensor of the config's architecture, and no other",
                do="config.json and the weights belong to different models; get both again",
            )
    model.to(device)
    if quantization is not None:
        from ince.models.hf_quantizer import make_quantized

        quantize_model(model, quantization)
        make_quantized(model, quantization)
    if progress is not None:
        progress("loading", 1, 1)
    return model


def check_vocabulary(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> None:
    embedding: Any = model.get_input_embeddings()
    num_rows = int(embedding.weight.shape[0])
    if len(tokenizer) > num_rows:
        raise ModelReferenceError(
            "the tokenizer has more tokens than the model has embeddings",
            where=folder,
            got=f"{len(tokenizer)} tokens",
            expected=f"at most {num_rows}",
            do="the tokenizer belongs to another model; get both again",
        )
