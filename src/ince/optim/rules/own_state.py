"""State that is taken as it was written: the slots by their names, no more and no fewer."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ince.errors import CorruptFileError
from ince.optim.rules.rule import Slot

__all__ = ["own_state"]


def own_state(state: Mapping[str, Tensor], slots: Sequence[Slot], numel: int) -> dict[str, Tensor]:
    """The tensors of `state` for `slots`, each looked at.

    Raises:
        CorruptFileError: one is missing, surplus, or of another number of elements.
    """
    names = [slot.name for slot in slots]
    if sorted(state) != sorted(names):
        raise CorruptFileError(
            "the state of a parameter is that of another optimizer",
            got=", ".join(sorted(map(str, state))) or "nothing",
            expected=", ".join(sorted(names)),
        )
    for slot in slots:
        value: object = state[slot.name]
        if not isinstance(value, Tensor) or value.numel() != slot.numel(numel):
            raise CorruptFileError(
                "the state of a parameter has another size than the parameter",
                where=slot.name,
                got=f"{value.numel()} elements" if isinstance(value, Tensor) else value,
                expected=f"{slot.numel(numel)} elements",
            )
    return {name: state[name] for name in names}
