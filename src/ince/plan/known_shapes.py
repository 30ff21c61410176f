"""Well-known shapes, from the configs that their makers published.

So that a plan needs neither a network nor a file. `find_known` takes the name, the hub id or an
alias of a model, in any case; what is not here is read from its config (`ince.plan.shape_source`).
"""

from types import MappingProxyType

from ince.plan.shape import Shape

__all__ = ["KNOWN_SHAPES", "find_known"]


def _llama(
    name: str,
    sizes: tuple[int, int, int, int, int, int],
    hub_id: str | None,
    max_length: int,
    *,
    head_dim: int | None = None,
    is_tied: bool = False,
    qkv_bias: bool = False,
) -> Shape:
    hidden, mlp, num_layers, num_heads, num_kv_heads, vocabulary = sizes
    return Shape(
        name,
        hidden=hidden,
        mlp=mlp,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=hidden // num_heads if head_dim is None else head_dim,
        vocabulary=vocabulary,
        is_tied=is_tied,
        qkv_bias=qkv_bias,
        max_length=max_length,
        hub_id=hub_id,
    )


def _qwen3(name: str, sizes: tuple[int, int, int, int], *, is_tied: bool) -> Shape:
    hidden, mlp, num_layers, num_heads = sizes
    return Shape(
        f"Qwen3-{name}",
        hidden=hidden,
        mlp=mlp,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=8,
        head_dim=128,
        vocabulary=151_936,
        is_tied=is_tied,
        has_qk_norm=True,
        max_length=40_960,
        hub_id=f"Qwen/Qwen3-{name}",
    )


def _gemma3(name: str, sizes: tuple[int, int, int, int, int, int], vocabulary: int) -> Shape:
    hidden, mlp, num_layers, num_heads, num_kv_heads, head_dim = sizes
    return Shape(
        f"Gemma-3-{name}",
        hidden=hidden,
        mlp=mlp,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        is_tied=True,
        norms_per_layer=4,
        has_qk_norm=True,
        max_length=32_768 if name in ("270m", "1b") else 131_072,
        hub_id=f"google/gemma-3-{name}-it",
    )


def _smollm2(
    name: str, sizes: tuple[int, int, int, int, int, int], max_length: int = 8_192
) -> Shape:
    hub_id = f"HuggingFaceTB/SmolLM2-{name}-Instruct"
    return _llama(f"SmolLM2-{name}", sizes, hub_id, max_length, is_tied=True)


_L3, _META = 128_256, "meta-llama"

_ALL = (
    _llama("Llama-3-8B", (4096, 14336, 32, 32, 8, _L3), f"{_META}/Meta-Llama-3-8B", 8_192),
    _llama("Llama-3-70B", (8192, 28672, 80, 64, 8, _L3), f"{_META}/Meta-Llama-3-70B", 8_192),
    _llama("Llama-3-405B", (16384, 53248, 126, 128, 8, _L3), f"{_META}/Llama-3.1-405B", 131_072),
    _llama(
        "Llama-3-1B",
        (2048, 8192, 16, 32, 8, _L3),
        f"{_META}/Llama-3.2-1B",
        131_072,
        is_tied=True,
    ),
    _llama(
        "Llama-3-3B",
        (3072, 8192, 28, 24, 8, _L3),
        f"{_META}/Llama-3.2-3B",
        131_072,
        is_tied=True,
    ),
    _llama("Llama-65B", (8192, 22016, 80, 64, 64, 32_000), "huggyllama/llama-65b", 2_048),
    _llama("Llama-2-7B", (4096, 11008, 32, 32, 32, 32_000), f"{_META}/Llama-2-7b-hf", 4_096),
    _llama("Llama-2-70B", (8192, 28672, 80, 64, 8, 32_000), f"{_META}/Llama-2-70b-hf", 4_096),
    _llama("Mistral-7B", (4096, 14336, 32, 32, 8, 32_768), "mistralai/Mistral-7B-v0.3", 32_768),
    _qwen3("0.6B", (1024, 3072, 28, 16), is_tied=True),
    _qwen3("1.7B", (2048, 6144, 28, 16), is_tied=True),
    _qwen3("4B", (2560, 9728, 36, 32), is_tied=True),
    _qwen3("8B", (4096, 12288, 36, 32), is_tied=False),
    _qwen3("14B", (5120, 17408, 40, 40), is_tied=False),
    _qwen3("32B", (5120, 25600, 64, 64), is_tied=False),
    _gemma3("270m", (640, 2048, 18, 4, 1, 256), 262_144),
    _gemma3("1b", (1152, 6912, 26, 4, 1, 256), 262_144),
    _gemma3("4b", (2560, 10240, 34, 8, 4, 256), 262_208),
    _gemma3("12b", (3840, 15360, 48, 16, 8, 256), 262_208),
    _gemma3("27b", (5376, 21504, 62, 32, 16, 128), 262_208),
    _smollm2("135M", (576, 1536, 30, 9, 3, 49_152)),
    _smollm2("360M", (960, 2560, 32, 15, 5, 49_152)),
    _smollm2("1.7B", (2048, 8192, 24, 32, 32, 49_152)),
    # Queries, keys and values are counted apart, as the LoRA paper adapts them.
    Shape(
        "GPT-3-175B",
        hidden=12_288,
        mlp=49_152,
        num_layers=96,
        num_heads=96,
        num_kv_heads=96,
        head_dim=128,
        vocabulary=50_257,
        is_tied=True,
        is_gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        norm_bias=True,
        num_positions=2_048,
        max_length=2_048,
    ),
)

KNOWN_SHAPES = MappingProxyType({shape.name: shape for shape in _ALL})
"""By name, as it is shown."""

_ALIASES = {
    "llama-3.1-8b": "Llama-3-8B",
    "llama-3.1-70b": "Llama-3-70B",
    "llama-3.1-405b": "Llama-3-405B",
    "llama-3.2-1b": "Llama-3-1B",
    "llama-3.2-3b": "Llama-3-3B",
    "llama-3.3-70b": "Llama-3-70B",
    "mistral-7b-v0.3": "Mistral-7B",
    "gpt-3": "GPT-3-175B",
}

_BASE_ENDINGS = ("-it", "-instruct", "-base", "-pt", "-hf")


def _key(name: str) -> str:
    key = name.strip().lower().rpartition("/")[2].removeprefix("meta-")
    for ending in _BASE_ENDINGS:
        key = key.removesuffix(ending)
    return key


def find_known(name: str) -> Shape | None:
    """The shape of this name, hub id or alias; None where it is not in the table."""
    owner, slash, _ = name.strip().lower().rpartition("/")
    key = _key(name)
    for shape in KNOWN_SHAPES.values():
        hub_owner = (shape.hub_id or "").lower().partition("/")[0]
        if slash and owner != hub_owner:
            continue  # somebody else's model of a similar name may be of another shape
        if key in (shape.name.lower(), _key(shape.hub_id or shape.name)):
            return shape
        if key in _ALIASES and _ALIASES[key] == shape.name:
            return shape
    return None
