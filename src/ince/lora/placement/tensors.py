"""Do the tensors of a file fit the places of a model: each has its place, each place its tensor."""

from collections.abc import Mapping

from torch import Tensor

from ince.errors import AdapterError, Problem, did_you_mean

__all__ = ["check_tensors"]

_MAX_PROBLEMS_SHOWN = 12
_MAX_NAME_CHARACTERS = 120


def check_tensors(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], where: object
) -> None:
    """Compare by name and shape.

    Raises:
        AdapterError: tensors are missing, left over or of another shape; it names them.
    """
    missing = [name for name in shapes if name not in tensors]
    surplus = [name for name in tensors if name not in shapes]
    # Comparing names for likeness is quadratic: only for those that are shown.
    problems = [
        Problem(name, "is missing", did_you_mean(name, surplus))
        for name in missing[:_MAX_PROBLEMS_SHOWN]
    ]
    problems += [
        Problem(_cut(name), "has no place in the model") for name in surplus[:_MAX_PROBLEMS_SHOWN]
    ]
    misshaped = [
        Problem(name, f"is of shape {tuple(tensors[name].shape)}, the model's {shape}")
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    num_problems = len(missing) + len(surplus) + len(misshaped)
    if num_problems == 0:
        return
    shown = [str(problem) for problem in (*problems, *misshaped)[:_MAX_PROBLEMS_SHOWN]]
    if num_problems > len(shown):
        shown.append(f"and {num_problems - len(shown)} more")
    raise AdapterError(
        "the adapter does not fit the model\n" + "\n".join(f"  - {line}" for line in shown),
        where=where,
        got=f"{len(tensors)} tensors: {len(missing)} missing, {len(surplus)} surplus, "
        f"{len(misshaped)} of another shape",
        expected=f"{len(shapes)} tensors",
        do="load it on the base it was trained on",
    )


def _cut(name: str) -> str:
    if len(name) <= _MAX_NAME_CHARACTERS:
        return name
    return f"{name[:_MAX_NAME_CHARACTERS]}… ({len(name)} characters)"
