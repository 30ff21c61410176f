"""What a run was, as one page a person can read: ``report.html``, and the same in a terminal.

The page is made from the four files of a run folder (see `ince.record`) and from nothing
else, so that it can be made again from a copied folder, years later, without the model.
It is one file: no script, no font, no request. It computes no result; a number that is
not in the files is not on the page.
"""

from ince.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
