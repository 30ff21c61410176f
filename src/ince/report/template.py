"""`page_template`: the templates of the pages, which escape every value and miss none."""

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

__all__ = ["page_template"]


@cache
def page_template(name: str, *included: str) -> "jinja2.Template":
    """A template of this package.

    Args:
        name: its file, such as ``report.html.j2``.
        included: the files that it includes, which lie beside it.
    """
    import jinja2  # what draws no page need not wait for it

    here = resources.files("ince.report")
    sources = {each: here.joinpath(each).read_text(encoding="utf-8") for each in (name, *included)}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(sources),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
