"""``ince inspect``: what an adapter is made of, and what two adapters share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ince.cli.adapter_base import CONFIG_FILE, AdapterBase, base_here, named_base
from ince.cli.output import common_options, print_json, progress_console, result_console
from ince.errors import AdapterError, InputError, did_you_mean

if TYPE_CHECKING:
    from ince.lora.insight import AdapterInsight, Comparison

__all__ = ["inspect"]

_PLOTS = (".png", ".html")
# Wide enough for every column, where no terminal folds lines.
_PIPE_WIDTH, _PIPE_TABLE_WIDTH = 200, 120
_NEEDS = "an adapter folder, with adapter_config.json and adapter_model.safetensors, or a run"


def _find_adapter(text: str) -> Path:
    """The adapter's folder that `text` names: itself, or the one inside a run."""
    path = Path(text).expanduser()
    if (path / "run.json").is_file():
        from ince.cli.target import find_target

        found = find_target(str(path))
        if found.adapter is None:
            raise InputError(
                "every weight of this run was trained; inspect reads adapters",
                where=text,
                expected=_NEEDS,
                do=f"measure it with ince eval {text}",
            )
        return found.adapter
    if (path / CONFIG_FILE).is_file():
        return path
    if (path / "adapter" / CONFIG_FILE).is_file():
        return path / "adapter"
    raise _not_an_adapter(text, path)


def _not_an_adapter(text: str, path: Path) -> InputError:
    from ince.models.packaged import PACKAGED_MODELS

    is_model = path.suffix == ".gguf" or (path / "config.json").is_file()
    if is_model or (text in PACKAGED_MODELS and not path.exists()):
        return InputError(
            "this is a model; inspect reads adapters",
            where=text,
            expected=_NEEDS,
            do=f"give an adapter of it: ince inspect ADAPTER --base {text}",
        )
    if not path.exists():
        parent = path.parent
        nearby = [each.name for each in parent.iterdir()] if parent.is_dir() else []
        return InputError(
            "no such adapter folder",
            where=text,
            expected=_NEEDS,
            do=did_you_mean(path.name, nearby)
            or "check the path; an adapter of the hub is to be downloaded first",
        )
    if path.is_file():
        return InputError(
            "this is a file; an adapter is a folder",
            where=text,
            expected=_NEEDS,
            do=f"give {path.parent}" if (path.parent / CONFIG_FILE).is_file() else None,
        )
    inside = sorted(each.parent.name for each in path.glob(f"*/{CONFIG_FILE}"))
    return AdapterError(
        f"not an adapter: {CONFIG_FILE} is missing",
        where=text,
        got=", ".join(sorted(each.name for each in path.iterdir())[:8]) or "an empty folder",
        expected=_NEEDS,
        do=f"give one of the adapters inside: {', '.join(inside[:8])}" if inside else None,
    )


def _check_plot(plot: Path) -> None:
    # Before the work, not after.
    if plot.suffix.lower() not in _PLOTS:
        raise InputError(
            "a plot is a picture or a page",
            where=plot,
            got=plot.suffix or "no ending",
            expected="a name that ends in .png or .html",
        )
    if not plot.parent.is_dir():
        raise InputError(
            "no such folder for the plot", where=plot.parent, do="make the folder first"
        )
    if plot.is_dir():
        raise InputError("there is a folder where the plot is to be written", where=plot)
    if plot.suffix.lower() == ".png":
        from ince.report.adapter_picture import check_can_draw_png

        check_can_draw_png()


def _check_fits(insight: "AdapterInsight", base: str) -> None:
    """A base that the user names and that has none of the adapter's weights is a mistake."""
    num_uncompared = sum(len(names) for names in insight.uncompared.values())
    if not insight.layers or num_uncompared < len(insight.layers):
        return
    reason, names = max(insight.uncompared.items(), key=lambda item: len(item[1]))
    if reason.startswith("stored as"):  # the right base, in bits that are not read
        return
    raise AdapterError(
        "the adapter does not belong to this base",
        where=f"{insight.folder} on {base}",
        got=f"{names[0]}: {reason}",
        expected=f"a base such as {insight.settings.base}" if insight.settings.base else None,
        do="name the base that it was trained on",
    )


def _plot_names(insights: "list[AdapterInsight]") -> tuple[str, ...]:
    """Short names that tell adapters apart: of a run its folder's, not ``adapter``."""
    folders = [each.folder.resolve() for each in insights]
    names = [each.parent.name if each.name == "adapter" else each.name for each in folders]
    if len(set(names)) < len(names):
        names = ["/".join(each.parts[-3:]) for each in folders]
    if len(set(names)) < len(names):
        names = [f"{name} ({n})" for n, name in enumerate(names, 1)]
    return tuple(names)


def _write_plot(
    plot: Path, insights: "list[AdapterInsight]", comparison: "Comparison | None"
) -> None:
    from ince.files import replace_file, write_text
    from ince.report.adapter_curves import draw_adapters
    from ince.report.adapter_facts import one_line
    from ince.report.adapter_page import render_adapter_page
    from ince.report.adapter_picture import png_bytes

    first, second = insights[0], insights[1] if len(insights) > 1 else None
    names = _plot_names(insights)
    drawing = draw_adapters(first, second, comparison, names=names)
    if plot.suffix.lower() == ".html":
        write_text(plot, render_adapter_page(drawing, first, second, comparison))
        return
    subtitles = [
        line if len(insights) == 1 else f"{name}: {line}"
        for name, line in zip(names, map(one_line, insights), strict=True)
    ]
    content = png_bytes(drawing, title=" beside ".join(names), subtitles=subtitles)
    with replace_file(plot) as temporary:
        temporary.write_bytes(content)


def _print(
    insights: "list[AdapterInsight]", comparison: "Comparison | None", *, every_layer: bool
) -> None:
    from rich.text import Text

    from ince.report.adapter_terminal import adapter_lines, comparison_lines, side_by_side

    out = result_console()
    if not out.is_terminal:
        out.width = _PIPE_WIDTH if every_layer else _PIPE_TABLE_WIDTH
    if comparison is None:
        for line in adapter_lines(insights[0], every_layer=every_layer):
            out.print(line)
        return
    out.print(side_by_side(*insights))
    for insight in insights:
        out.print(Text(f"\n{insight.folder}", style="bold"))
        for line in adapter_lines(insight, every_layer=every_layer, with_facts=False):
            out.print(line)
    out.print(Text("\nshared", style="bold"))
    for line in comparison_lines(comparison, every_layer=every_layer):
        out.print(line)


@click.command(epilog="Example: ince inspect runs/turkish --plot turkish.html")
@click.argument("adapter")
@click.argument("other", required=False)
@click.option("--base", help="The model to compare with, when it is not the one the adapter names.")
@click.option("--layers", "every_layer", is_flag=True, help="A row for every layer.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw it, as a picture (.png) or a page that needs no network (.html).",
)
@common_options
def inspect(
    adapter: str,
    other: str | None,
    base: str | None,
    every_layer: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Show what ADAPTER (a run or an adapter) is made of; with OTHER, what both share.

    Rank, scale, parameters, and of each layer the norms and singular values of its update
    ΔW, and how many directions carry 90% and 99% of it. Where the base is on this machine, ΔW is
    measured against the weight that it changes. Two adapters are compared by the subspace
    similarity φ of the LoRA paper, beside what random directions reach.
    """
    from ince.lora.insight import compare_adapters, inspect_adapter
    from ince.recipe.progress import RunProgress

    if plot is not None:
        _check_plot(plot)
    folders = [_find_adapter(text) for text in (adapter, other) if text is not None]
    insights: list[AdapterInsight] = []
    comparison: Comparison | None = None
    remarks: list[str] = []
    console = progress_console()
    with RunProgress(console).bars() as progress:
        named = None if base is None else named_base(base, progress)
        known: dict[str, AdapterBase | str] = {}
        for folder in folders:
            found = named or base_here(folder, known, progress)
            if isinstance(found, str):
                remarks.append(f"{folder}: not compared with its base: {found}")
            at_hand = found if isinstance(found, AdapterBase) else None
            weights = None if at_hand is None else at_hand.weights
            insights.append(inspect_adapter(folder, base=weights, progress=progress))
            if base is not None:
                _check_fits(insights[-1], base)
            doubt = None if at_hand is None else at_hand.doubt(folder)
            if doubt is not None:
                remarks.append(f"{folder}: {doubt}")
        if len(insights) > 1:
            comparison = compare_adapters(*insights, progress=progress)
    for remark in remarks:
        console.print(remark, markup=False)
    if plot is not None:
        _write_plot(plot, insights, comparison)
    if as_json:
        print_json(_facts(insights, comparison, plot, remarks))
        return
    _print(insights, comparison, every_layer=every_layer)
    if plot is not None:
        result_console().print(f"plot           {plot}", markup=False)


def _facts(
    insights: "list[AdapterInsight]",
    comparison: "Comparison | None",
    plot: Path | None,
    remarks: list[str],
) -> dict[str, object]:
    from ince.lora.insight.summary import summarize_layers, summarize_pairs

    described = [
        {**each.to_dict(), "kinds": [line.to_dict() for line in summarize_layers(each.layers)]}
        for each in insights
    ]
    facts: dict[str, object] = {"adapter": described[0], "remarks": remarks}
    if comparison is not None:
        facts["other"] = described[1]
        lines = summarize_pairs(comparison.pairs)
        facts["comparison"] = {**comparison.to_dict(), "kinds": [line.to_dict() for line in lines]}
    if plot is not None:
        facts["plot"] = str(plot)
    return facts
