"""A plan of what a person wishes: a model by name, or a recipe, with a device, a limit and a price.

And the way back: what fits, as a recipe that runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from ince.errors import InputError
from ince.files import write_text
from ince.plan import (
    DEVICES,
    Calibration,
    Overheads,
    Rate,
    Setup,
    Shape,
    fill_pages,
    find_device,
    rate_of,
    read_shape,
    this_device,
)
from ince.plan.overview import Overview, Question, overview
from ince.recipe.load import parse_recipe
from ince.recipe.plan import setup_of_recipe, value_bytes_of
from ince.recipe.schema import Recipe

__all__ = ["Wish", "planned_model", "planned_recipe", "write_recipe"]


@dataclass(frozen=True)
class Wish:
    """What was said beside the model; None: nothing.

    Attributes:
        memory: bytes that it may take.
        device: by name; None: this machine's, or with `memory` any of that size.
        num_tokens: of the run.
        price: of an hour of a device.
        method, rank, length, rows, activations: of the setup.
    """

    memory: int | None = None
    device: str | None = None
    num_tokens: int | None = None
    price: float | None = None
    method: str | None = None
    rank: int | None = None
    length: int | None = None
    rows: int | None = None
    activations: str | None = None

    def changes(self) -> dict[str, object]:
        """Of a setup, those that were said."""
        said = {
            "method": self.method,
            "r": self.rank,
            "length": self.length,
            "num_rows": self.rows,
            "activations": self.activations,
        }
        return {name: value for name, value in said.items() if value is not None}


def planned_model(reference: str, wish: Wish) -> Overview:
    """The plan of training the model that `reference` names.

    Raises:
        InputError: no such model or device, or nothing makes it fit.
    """
    shape = read_shape(reference)
    is_here = wish.device is None and wish.memory is None
    if is_here:
        device = _here("auto")
        size = value_bytes_of("auto", device)
        setup = Setup(value_bytes=size, on_cpu=device == "cpu")
        return _answered(shape, setup.with_changes(**wish.changes()), wish, device)
    return _answered(shape, Setup().with_changes(**wish.changes()), wish, None)


def planned_recipe(recipe: Recipe, wish: Wish) -> Overview:
    """The plan of a recipe, on this machine unless a device is named.

    Raises:
        InputError: as of `planned_model`.
    """
    shape = read_shape(recipe.model.base, recipe.model.revision)
    device = _here(recipe.model.device) if wish.device is None else "cuda"
    setup = setup_of_recipe(recipe, shape, device=device)
    setup = setup.with_changes(**wish.changes())
    if wish.memory is None and wish.device is None:
        wish = replace(wish, memory=recipe.train.memory)  # the run will keep to it
    return _answered(shape, setup, wish, device if wish.device is None else None)


def _here(wanted: str) -> str:
    from ince.models.load import choose_device

    return choose_device(wanted).type


def _answered(shape: Shape, setup: Setup, wish: Wish, here: str | None) -> Overview:
    limit, rate = wish.memory, None
    if here is not None:
        calibration = Calibration.read(this_device(here))
        overheads = calibration.overheads(setup)
        rate = calibration.rate(setup.value_bytes, here)
        name = "this processor" if setup.on_cpu else "this machine's accelerator"
    else:
        overheads = Overheads.assumed(setup.with_changes(on_cpu=False))
        name = "an accelerator"
    if wish.device is not None:
        device = find_device(wish.device)
        name, rate = device.name, rate_of(device)
        limit = device.memory_bytes if limit is None else limit
    elif here is None and limit is not None:
        rate = _rate_of_any(limit)
    setup = fill_pages(shape, setup, limit, overheads)
    return overview(
        Question(
            shape,
            setup,
            name,
            overheads,
            limit_bytes=limit,
            rate=rate,
            num_tokens=wish.num_tokens,
            price=wish.price,
        )
    )


def _rate_of_any(limit: int) -> Rate:
    """Of the smallest device of the table with so much memory, and it says so."""
    by_memory = sorted(DEVICES.values(), key=lambda device: device.memory_bytes)
    device = next((each for each in by_memory if each.memory_bytes >= limit), by_memory[-1])
    rate = rate_of(device)
    return replace(rate, source=f"no device was named, so as on one {rate.source}")


def write_recipe(
    path: Path, found: Overview, *, base: str, recipe: Recipe | None, data: str | None
) -> None:
    """Save the solution of `found`, or what was asked where no limit was given.

    Args:
        path: of the file.
        found: the plan.
        base: the model that it is of, as it was named.
        recipe: that it is of; None for a model's.
        data: rows to train on, for a model's.

    Raises:
        InputError: the recipe would not run: it names no data, or none that are there.
    """
    setup = found.question.setup if found.solution is None else found.solution.setup
    values: dict[str, Any]
    if recipe is None:
        if data is None:
            raise InputError(
                "a recipe that runs names its data",
                where="--write",
                do="give --data FILE, a file of rows to train on",
            )
        if not Path(data).expanduser().is_file():
            raise InputError("no such file of rows to train on", where="--data", got=data)
        values = {
            "model": {"base": found.question.shape.hub_id or base},
            "data": {"train": str(Path(data).expanduser().absolute())},
            "output": f"runs/{path.stem}",
        }
    else:
        values = recipe.to_dict()
    _apply(values, setup)
    written = parse_recipe(values, where=str(path))
    write_text(path, written.to_yaml())


def _apply(values: dict[str, Any], setup: Setup) -> None:
    """What `setup` says, as keys of a recipe."""
    is_packed: Literal["nf4"] | None = "nf4" if setup.method == "qlora" else None
    sections: Mapping[str, Mapping[str, object]] = {
        "model": {"quantize": is_packed, "quantize_head": setup.quantize_head},
        "lora": {} if setup.method == "full" else {"r": setup.r},
        "data": {"max_length": setup.length},
        "train": {
            "micro_batch_tokens": setup.num_tokens,
            "activations": setup.activations,
            "optimizer": setup.optimizer,
            **({"method": "full"} if setup.method == "full" else {}),
        },
    }
    for name, keys in sections.items():
        values.setdefault(name, {})
        cast("dict[str, object]", values[name]).update(keys)
    train = cast("dict[str, Any]", values["train"])
    if not setup.is_paged:
        train["pages"] = None
    elif setup.device_moment_bytes == 0:
        held = {"device": 0, "memory": 0} if setup.on_cpu else {"device": 0}
        train["pages"] = {**(train.get("pages") or {}), **held}
    # A step has a forward at least.
    train["batch_tokens"] = max(int(train.get("batch_tokens", 4096)), setup.num_tokens)
