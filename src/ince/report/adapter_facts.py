"""An adapter in words: the facts and lines of tables that terminal, page and picture share."""

from collections.abc import Sequence

from ince.lora.insight import AdapterInsight
from ince.lora.insight.inspection import LayerInsight
from ince.lora.insight.settings import AdapterSettings
from ince.lora.insight.summary import KindSummary, PairSummary
from ince.report.loose import shown
from ince.units import format_bytes, format_count

__all__ = [
    "PAIR_HEAD",
    "facts_of",
    "kind_head",
    "kind_line",
    "layer_head",
    "layer_line",
    "one_line",
    "pair_line",
    "percent",
    "plain_number",
    "short_number",
]

_MAX_TARGETS_SHOWN = 12


def short_number(value: float | None) -> str:
    """Three digits, or a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}"


def plain_number(value: float) -> str:
    """As a person writes it: ``2``, ``0.0625``."""
    return f"{value:.4g}"


def percent(value: float | None) -> str:
    """``0.0412`` → ``"4.12%"``; a dash for what is not known."""
    return "–" if value is None else f"{short_number(100 * value)}%"


def _one_or_range(values: Sequence[float]) -> str:
    if not values:
        return "–"
    low, high = plain_number(values[0]), plain_number(values[-1])
    return low if low == high else f"{low} to {high}"


def _span(low: float, high: float) -> str:
    return f"{short_number(low)} to {short_number(high)}"


def _start(settings: AdapterSettings) -> str:
    words = {"true": "the default, ΔW = 0", "false": "random, ΔW ≠ 0"}
    return words.get(settings.start, shown(settings.start, limit=80)) + (
        ", taken from the base, which changed" if settings.changes_base else ""
    )


def one_line(insight: AdapterInsight) -> str:
    """Method, rank, parameters and base, for a title."""
    base = insight.settings.base
    return (
        f"{insight.settings.method}, rank {_one_or_range(insight.ranks)}, "
        f"{insight.num_parameters:,} parameters" + (f", on {shown(base, limit=80)}" if base else "")
    )


def facts_of(insight: AdapterInsight) -> list[tuple[str, str]]:
    """What the adapter is, as (name, value) in reading order."""
    settings = insight.settings
    facts = [("method", settings.method), ("rank", _one_or_range(insight.ranks))]
    if settings.peft_type != "VERA":
        facts.append(("alpha", plain_number(settings.alpha)))
        facts.append(("scale", _one_or_range(insight.scales)))
    facts.append(("targets", _targets(insight)))
    base = settings.base
    facts.append(("base", shown(base, limit=160) if base else "not named"))
    facts.append(("start", _start(settings)))
    facts.append(("parameters", _parameters(insight)))
    size = f"{format_bytes(insight.file_bytes)}, {' and '.join(insight.dtypes)}"
    facts.append(("file", size))
    facts += _trained(insight)
    magnitudes = [each.magnitude for each in insight.layers if each.magnitude is not None]
    if magnitudes:
        low, high = min(low for low, _ in magnitudes), max(high for _, high in magnitudes)
        facts.append(("magnitude m", _span(low, high)))
    gains = [each.gain for each in insight.layers if each.gain is not None]
    if gains:
        low, high = min(low for low, _ in gains), max(high for _, high in gains)
        facts.append(("m / ‖W + ΔW‖", _span(low, high)))
    return facts


def _targets(insight: AdapterInsight) -> str:
    targets = insight.settings.targets
    names = [targets] if isinstance(targets, str) else [*(targets or ())]
    names += insight.settings.target_parameters
    kept = ", ".join(shown(name, limit=120) for name in names[:_MAX_TARGETS_SHOWN])
    more = len(names) - _MAX_TARGETS_SHOWN
    return (kept or "not named") + (f" and {more} more" if more > 0 else "")


def _parameters(insight: AdapterInsight) -> str:
    num_weights = len(insight.layers) + len(insight.unread)
    numbers = {each.number for each in insight.layers if each.number is not None}
    where = f"in {num_weights:,} weights" + (f" of {len(numbers)} layers" if numbers else "")
    return f"{insight.num_parameters:,} {where}"


def _trained(insight: AdapterInsight) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for each in insight.trained:
        if each.kind == "bias":
            continue
        changed = "" if each.change is None else f", {percent(each.change)} from the base"
        shape = " x ".join(str(side) for side in each.shape)
        facts.append(
            (each.kind, f"{shown(each.name)}: {shape}, norm {short_number(each.norm)}{changed}")
        )
    biases = [each for each in insight.trained if each.kind == "bias"]
    if biases:
        total = sum(each.num_parameters for each in biases)
        norm = sum(each.norm**2 for each in biases) ** 0.5
        facts.append(("biases", f"{len(biases)} with {total:,} values, norm {short_number(norm)}"))
    return facts


# -------------------------------------------------------------------------------------- tables


def kind_head(*, has_base: bool) -> list[str]:
    """Columns of the table of kinds."""
    beside = ["‖ΔW‖/‖W‖", "ampl."] if has_base else []
    return ["kind", "n", "params", "‖ΔW‖", *beside, "σ₁", "90%", "99%", "stable"]


def kind_line(line: KindSummary, *, has_base: bool) -> list[str]:
    """A row of the table of kinds."""
    beside = [percent(line.relative_norm), short_number(line.amplification)] if has_base else []
    return [
        shown(line.kind, limit=40),
        f"{line.num_layers}",
        format_count(line.num_parameters),
        short_number(line.update_norm),
        *beside,
        short_number(line.spectral_norm),
        f"{line.rank_90:.1f}",
        f"{line.rank_99:.1f}",
        f"{line.stable_rank:.2f}",
    ]


def layer_head(*, has_base: bool) -> list[str]:
    """Columns of the table of layers."""
    beside = ["‖ΔW‖/‖W‖", "ampl.", "random", "cos"] if has_base else []
    return ["layer", "shape", "r", "s", "params", "‖ΔW‖", *beside, "σ₁", "90%", "99%", "stable"]


def layer_line(layer: LayerInsight, *, has_base: bool) -> list[str]:
    """A row of the table of layers."""
    beside: list[str] = []
    if has_base and layer.beside is not None:
        beside = [
            percent(layer.relative_norm),
            short_number(layer.beside.amplification),
            short_number(layer.beside.random_amplification),
            short_number(layer.beside.cosine),
        ]
    elif has_base:
        beside = ["–"] * 4
    out, fan_in = layer.update.shape
    return [
        shown(layer.name, limit=120),
        f"{out} x {fan_in}",
        f"{layer.update.rank}",
        plain_number(layer.update.s),
        format_count(layer.update.num_parameters),
        short_number(layer.frobenius_norm),
        *beside,
        short_number(layer.spectral_norm),
        f"{layer.rank_90}",
        f"{layer.rank_99}",
        f"{layer.stable_rank:.2f}",
    ]


PAIR_HEAD = ["kind", "n", "cosine", "φ A, 1", "φ A, all", "φ ΔW, 1", "random 1", "random all"]


def pair_line(line: PairSummary) -> list[str]:
    """A row of the table of shared directions."""
    a, delta, random = (each or (None, None) for each in (line.phi_a, line.phi_delta, line.random))
    values = (line.cosine, *a, delta[0], *random)
    return [
        shown(line.kind, limit=40),
        f"{line.num_layers}",
        *("–" if value is None else f"{value:.3f}" for value in values),
    ]
