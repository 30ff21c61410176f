"""The table in the docs is the one that is computed, and says what is known to be so."""

from pathlib import Path

from ince.plan.story import story_table

DOCS = Path(__file__).parents[3] / "docs" / "plan.md"
BEGIN, END = "<!-- story: begin -->\n", "<!-- story: end -->"


def test_the_table_in_the_docs_is_computed():
    text = DOCS.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == story_table()


def test_what_is_known_stands_in_it():
    table = story_table()
    for figure in (
        "4,718,592 parameters",
        "18,874,368 parameters",
        "37,748,736 parameters",
        "8,030,261,248",
        "70,553,706,496",
        "41,943,040 parameters, 0.522%",
        "828,375,040 parameters, 1.174%",
        "504 $",
    ):
        assert figure in table
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()}
    fits = [line for line in rows.values() if "70B by QLoRA" in line]
    assert ["does not" in line for line in fits] == [False, True, False, False]
