import pytest

from ince.data.turkish import build_instructions, read_treebanks
from ince.demo import run_demo
from ince.demo.english import heldout_texts, rehearsal_rows
from ince.demo.journey import _questions, _task_metrics, demo_recipe
from ince.errors import OutputError
from ince.recipe.measure import Answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("demo")
    build_instructions(read_treebanks()[:600], made / "data", num_test=8, num_eval=4)
    return made


def test_the_recipe_is_a_recipe_and_a_quick_one_is_another(folder):
    full, quick = demo_recipe(folder), demo_recipe(folder, quick=True)
    assert full.model.quantize == "nf4"
    assert full.model.double_quant
    assert full.train.max_steps is None
    assert quick.train.max_steps is not None
    assert full.digest() != quick.digest()


def test_right_answers_score_all_and_echoes_nothing(folder):
    questions = _questions(folder / "data" / "test.jsonl")
    echo = tuple(question.echo for question in questions)
    right = tuple(question.gold for question in questions)
    metrics = {m["name"]: m for m in _task_metrics(Answers(tuple(questions), echo, right))}
    for name in ("inflection_exact_match", "diacritics_word_accuracy"):
        assert (metrics[name]["base"], metrics[name]["tuned"], metrics[name]["echo"]) == (0, 1, 0)
        assert metrics[name]["num_rows"] == 8
    assert metrics["diacritics_chrf"]["tuned"] == pytest.approx(100)
    assert 20 < metrics["diacritics_chrf"]["echo"] < 100


def test_what_is_rehearsed_is_not_what_is_measured():
    rehearsed = [row["messages"][1]["content"] for row in rehearsal_rows(60, seed=7)]
    assert len(rehearsed) == 60
    assert rehearsal_rows(60, seed=7) == rehearsal_rows(60, seed=7)
    measured = heldout_texts(limit=20)
    assert len(measured) >= 16
    assert all(200 < len(text) <= 1600 for text in measured)
    joined = "\n".join(measured)
    assert not any(text in joined for text in rehearsed)


def test_data_of_somebody_else_are_not_written_over(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match=r"train\.jsonl"):
        run_demo(output=tmp_path, quick=True)
    assert (tmp_path / "data" / "train.jsonl").read_text("utf-8") == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
