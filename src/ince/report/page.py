"""From the files of a run to the page ``report.html``.

Every value reaches the template as text, number or geometry, never as markup; the template
escapes all of it, and the page forbids scripts and requests besides (its
Content-Security-Policy), so that a training set cannot speak through its report.
"""

from pathlib import Path

from ince.files import write_text
from ince.report.course import charts, curve_numbers, segments
from ince.report.events import event_table
from ince.report.facts import in_time
from ince.report.loose import mapping, shown, text
from ince.report.origin import (
    adapter_facts,
    base_facts,
    key_facts,
    machine_facts,
    recipe_sections,
    splits,
    status,
    version_facts,
)
from ince.report.outcome import (
    answers_by_prompt,
    headline,
    proofs,
    sample_counts,
    sample_views,
    score_groups,
)
from ince.report.plan_facts import plan_rows, plan_sentence
from ince.report.run_files import read_run_files
from ince.report.scores import ENGLISH, confidence_percent, read_scores
from ince.report.template import page_template

__all__ = ["render_report", "write_report"]


def render_report(run_dir: Path) -> str:
    """The page of the run in `run_dir`, as HTML.

    Raises:
        InputError: `run_dir` holds none of a run's files.
    """
    run = read_run_files(run_dir)
    record = run.record
    scores = read_scores(run.evaluation)
    sentence, cost = headline(run, scores)
    base_name = text(mapping(record.get("base")).get("name"), limit=120)
    folder = Path(run_dir).resolve()
    return page_template("report.html.j2", "report.css").render(
        name=shown(folder.name, limit=120),
        base_name=base_name,
        created=in_time(record.get("created")),
        finished=in_time(record.get("finished")),
        status=status(record),
        headline=sentence,
        cost=cost,
        key_facts=key_facts(record),
        proofs=proofs(record),
        confidence=confidence_percent(run.evaluation),
        learned=score_groups([s for s in scores if s.group.casefold() != ENGLISH]),
        english=score_groups([s for s in scores if s.group.casefold() == ENGLISH]),
        charts=charts(run),
        numbers=curve_numbers(run),
        events=event_table(run.events, run.num_more_events),
        segments=segments(record),
        samples=sample_views(run.samples),
        num_samples=len(run.samples),
        sample_counts=sample_counts(run.samples),
        answers=answers_by_prompt(run.answers),
        plan=plan_rows(record),
        plan_note=plan_sentence(record),
        splits=splits(record),
        recipe=recipe_sections(record),
        recipe_digest=text(record.get("recipe_digest"), limit=100),
        base=base_facts(record),
        adapter=adapter_facts(record),
        environment=machine_facts(record),
        versions=version_facts(record),
        notes=run.notes,
    )


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into the run folder `run_dir`, whole, and return its path.

    A run that was cut off gives a report of what it had written.

    Raises:
        InputError: `run_dir` holds none of a run's files, or cannot be written to.
        DiskFullError: no space is left; an older report is as it was.
    """
    target = Path(run_dir) / "report.html"
    write_text(target, render_report(run_dir))
    return target
