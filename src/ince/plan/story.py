"""The table of what LoRA and QLoRA changed, computed: the published figures beside ince's own.

`story_table` is what stands in ``docs/plan.md``; a test holds the two equal.
"""

from collections.abc import Iterator

from ince.plan.known_shapes import KNOWN_SHAPES
from ince.plan.memory import MemoryPlan, Overheads, plan_memory
from ince.plan.setup import Setup
from ince.plan.weights import weight_parts

__all__ = ["story_table"]

_HOURS_OF_A_WEEK = 7 * 24
_PRICE = 3.0


def story_table() -> str:
    """The table, in Markdown."""
    lines = ["| what | computed | published |", "|---|---|---|"]
    lines += [f"| {what} | {computed} | {published} |" for what, computed, published in _rows()]
    return "\n".join(lines)


def _rows() -> Iterator[tuple[str, str, str]]:
    yield from _lora()
    yield from _llama_3()
    yield from _qlora()
    week = _HOURS_OF_A_WEEK * _PRICE
    yield f"a week of one H100 at {_PRICE:g} $ an hour", f"{week:,.0f} $", "≈ 500 $"


def _lora() -> Iterator[tuple[str, str, str]]:
    gpt3 = KNOWN_SHAPES["GPT-3-175B"]
    published = {1: "4.7M", 4: "18.8M", 8: "37.7M"}
    for r, figure in published.items():
        count = gpt3.lora_parameters(r, ("q_proj", "v_proj"))
        yield f"LoRA of GPT-3 175B on queries and values, r = {r}", f"{count:,} parameters", figure
    base = gpt3.counts.total * 2
    adapter = gpt3.lora_parameters(4, ("q_proj", "v_proj")) * 2
    yield (
        "a checkpoint of it: all weights, the adapter of r = 4, in 16 bits",
        f"{base / 1e9:,.0f} GB → {adapter / 1e6:.1f} MB",
        "350 GB → 35 MB",
    )


def _llama_3() -> Iterator[tuple[str, str, str]]:
    for name, ranks in (("Llama-3-8B", (16, 64)), ("Llama-3-70B", (16, 64))):
        shape = KNOWN_SHAPES[name]
        counts = shape.counts
        yield f"{name}: all parameters", f"{counts.total:,}", ""
        yield f"{name}: in linear layers", f"{counts.linear:,}", ""
        parts = weight_parts(shape, Setup())
        yield f"{name}: 4-bit codes", f"{parts['codes']:,} bytes", ""
        yield (
            f"{name}: codes and double-quantized scales",
            f"{parts['codes'] + parts['scales']:,} bytes",
            "",
        )
        yield (
            f"{name}: with embedding, head and norms in 16 bits",
            f"{sum(parts.values()):,} bytes",
            "“35 GB”, without scales and embedding" if name.endswith("70B") else "",
        )
        for r in ranks:
            count = shape.lora_parameters(r)
            share = f"{count:,} parameters, {count / counts.total:.3%}"
            yield f"{name}: all seven linear layers, r = {r}", share, ""


def _tensors(plan: MemoryPlan) -> int:
    """What the figures count: weights, gradients and moments."""
    return sum(num for name, num in plan.moments[-1].parts.items() if name != "work")


def _qlora() -> Iterator[tuple[str, str, str]]:
    none = Overheads.none()
    llama_65b, llama_70b = KNOWN_SHAPES["Llama-65B"], KNOWN_SHAPES["Llama-3-70B"]
    in_16_bits = Setup(method="full", gradient_bytes=2, master_bytes=0)
    full = _tensors(plan_memory(llama_65b, in_16_bits, none))
    paged = Setup(r=64, activations="recompute", length=512, optimizer="paged_adamw")
    packed = plan_memory(llama_65b, paged, none).peak.total
    yield (
        "65B: all weights in 16 bits; QLoRA, r = 64, 512 tokens, paged",
        f"{full / 1e9:,.0f} GB → {packed / 1e9:.1f} GB",
        "> 780 GB → < 48 GB",
    )
    in_32_bits = Setup(method="full", gradient_bytes=4, master_bytes=0)
    whole = _tensors(plan_memory(llama_70b, in_32_bits, none))
    yield (
        "70B: all weights in 16 bits, gradients and moments in 32",
        f"{whole / 1e12:.2f} TB",
        "≈ 1 TB",
    )
    with_master = Setup(method="full", gradient_bytes=2, master_bytes=4)
    whole = _tensors(plan_memory(llama_70b, with_master, none))
    yield (
        "70B: all weights and gradients in 16 bits, a master copy and moments in 32",
        f"{whole / 1e12:.2f} TB",
        "≈ 1.13 TB",
    )
    limit = 48 * 2**30
    for optimizer, r in (("adamw", 16), ("adamw", 64), ("paged_adamw", 64), ("adamw_8bit", 64)):
        wish = Setup(r=r, activations="recompute", optimizer=optimizer)
        peak = plan_memory(llama_70b, wish, none).peak.total
        verdict = "fits" if peak <= limit else "does not fit"
        yield (
            f"70B by QLoRA, r = {r}, {optimizer}, 2,048 tokens, layers recomputed",
            f"{peak / 2**30:.1f} GiB: {verdict} in 48 GiB",
            "",
        )
