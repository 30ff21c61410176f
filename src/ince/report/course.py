"""How a run went: the curves of its log, drawn and as numbers, and where its time went."""

from collections.abc import Mapping
from dataclasses import dataclass

from ince.report.curves import Chart, Mark, draw_chart
from ince.report.events import SKIPPED, SPIKE
from ince.report.facts import evenly, in_bytes, in_percent, in_seconds
from ince.report.loose import mapping, number, sequence, text
from ince.report.run_files import Curve, RunFiles
from ince.units import format_bytes, format_count

__all__ = ["charts", "curve_numbers", "segments"]

_NUM_ROWS_OF_NUMBERS = 12
_OTHER = "other"


@dataclass(frozen=True)
class _Segment:
    """One phase in the bar of time."""

    label: str
    seconds: str
    share: str
    peak: str
    x: str
    width: str
    middle: str
    shade: int
    is_wide: bool


def _steps(run: RunFiles) -> tuple[float, float]:
    ends = [s for c in run.curves.values() if len(c) for s in (c.steps[0], c.steps[-1])]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)


def _median(curve: Curve) -> float:
    ordered = sorted(curve.values)
    return ordered[len(ordered) // 2] if ordered else 0.0


def _scientific(value: float) -> str:
    """``2e-4`` rather than ``0.0002`` or ``2e-04``."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}".replace("-", "−")


def _plain(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.3g}"


def _marks(run: RunFiles) -> list[Mark]:
    spikes = [(e.step, e.value) for e in run.events if e.kind == SPIKE and e.value is not None]
    skipped = [(e.step, None) for e in run.events if e.kind == SKIPPED]
    marks = [Mark("spike", spikes, "spike"), Mark("skipped", skipped, "skipped step")]
    return [mark for mark in marks if mark.places]


def charts(run: RunFiles) -> list[Chart]:
    """A chart of each quantity that was logged; the loss first and widest."""
    steps = _steps(run)
    curves = run.curves
    loss, held_out, memory = curves["loss"], curves["eval_loss"], curves["peak_bytes"]
    peak = max(memory.values, default=0.0)
    gigabytes = peak >= 2**30
    unit, unit_name = (2.0**30, "GiB") if gigabytes else (2.0**20, "MiB")
    last = f"{loss.values[-1]:.3f}" if len(loss) else ""
    last_held = f"held-out {held_out.values[-1]:.3f}" if len(held_out) else ""
    drawn = [
        draw_chart(
            "loss",
            "Loss",
            loss,
            steps=steps,
            show=lambda v: f"{v:.3f}",
            show_tick=_plain,
            figure=", ".join(part for part in (last and f"last {last}", last_held) if part),
            evaluations=held_out,
            smooth=True,
            marks=_marks(run),
            wide=True,
        ),
        draw_chart(
            "lr",
            "Learning rate",
            curves["lr"],
            steps=steps,
            show=_scientific,
            figure=f"greatest {_scientific(max(curves['lr'].values, default=0.0))}",
        ),
        draw_chart(
            "grad_norm",
            "Gradient norm",
            curves["grad_norm"],
            steps=steps,
            show=_plain,
            figure=f"median {_median(curves['grad_norm']):.3g}",
            smooth=True,
        ),
        draw_chart(
            "speed",
            "Tokens a second",
            curves["tokens_per_second"],
            steps=steps,
            show=format_count,
            figure=f"median {format_count(_median(curves['tokens_per_second']))}",
            smooth=True,
            from_zero=True,
        ),
        draw_chart(
            "memory",
            "Peak memory",
            memory,
            steps=steps,
            show=format_bytes,
            show_tick=lambda v: f"{v:g} {unit_name}",
            unit=unit,
            figure=f"peak {format_bytes(peak)}",
            from_zero=True,
            mark_peak=True,
        ),
    ]
    return [chart for chart in drawn if chart is not None]


def curve_numbers(run: RunFiles) -> dict[str, list[list[str]]]:
    """The curves as a table: what the drawings say, for whoever cannot see them."""
    shows = (
        ("loss", "loss", lambda v: f"{v:.4f}"),
        ("eval_loss", "held-out loss", lambda v: f"{v:.4f}"),
        ("lr", "learning rate", _scientific),
        ("grad_norm", "gradient norm", _plain),
        ("tokens_per_second", "tokens a second", format_count),
        ("peak_bytes", "peak memory", format_bytes),
    )
    shows = tuple(entry for entry in shows if len(run.curves[entry[0]]))
    by_step = {
        name: dict(zip(run.curves[name].steps, run.curves[name].values, strict=True))
        for name, _, _ in shows
    }
    steps = sorted({step for values in by_step.values() for step in values})
    # Steps with a held-out loss come first: they are few and the ones compared.
    wanted = evenly(sorted(by_step.get("eval_loss", {})), _NUM_ROWS_OF_NUMBERS)
    wanted = wanted + evenly(steps, max(2, _NUM_ROWS_OF_NUMBERS - len(wanted)))
    rows = [
        [f"{step:,.0f}"]
        + [show(by_step[name][step]) if step in by_step[name] else "–" for name, _, show in shows]
        for step in sorted(set(wanted))
    ]
    return {"head": [["step", *(label for _, label, _ in shows)]], "rows": rows if shows else []}


def segments(record: Mapping[str, object]) -> list[_Segment]:
    """Where the time went; what no phase accounts for is a last one, `_OTHER`."""
    spent: list[tuple[str, float, str]] = []
    for item in sequence(record.get("phases"))[:40]:
        phase = mapping(item)
        seconds = number(phase.get("seconds"))
        name = text(phase.get("name"), limit=80)
        if name is not None and seconds is not None and seconds >= 0:
            spent.append(
                (name.replace("_", " "), seconds, in_bytes(phase.get("peak_bytes")) or "–")
            )
    named = sum(seconds for _, seconds, _ in spent)
    whole_run = number(record.get("seconds")) or 0.0
    if spent and whole_run > 1.005 * named:
        spent.append((_OTHER, whole_run - named, "–"))
    total = max(named, whole_run)
    if total <= 0:
        return []
    parts: list[_Segment] = []
    start = 0.0
    for place, (label, seconds, peak) in enumerate(spent):
        share = 100 * seconds / total
        parts.append(
            _Segment(
                label=label,
                seconds=in_seconds(seconds) or "–",
                share=f"{share:.1f}%",
                peak=peak,
                x=in_percent(start),
                width=in_percent(share),
                middle=in_percent(start + share / 2),
                # The last shade, a gray, is kept for what has no name.
                shade=5 if label == _OTHER else place % 5,
                is_wide=share >= 4,
            )
        )
        start += share
    return parts
