import pytest

from ince.cli.recipe_argument import read_recipe
from ince.errors import InputError


@pytest.fixture
def project(tmp_path, rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "model: {base: b}\ndata: {train: rows.jsonl}\noutput: run\n"
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path


def test_a_file_or_the_folder_of_a_run(project):
    recipe = read_recipe("recipe.yaml", ["lora.r=3"])
    assert (recipe.lora.r, recipe.output) == (3, "run")
    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "recipe.yaml").write_text(recipe.to_yaml())
    assert read_recipe("elsewhere", []).output == "elsewhere"
    assert read_recipe("elsewhere", ["output=other"]).output == "other"


def test_a_folder_without_a_recipe(project):
    (project / "empty").mkdir()
    with pytest.raises(InputError, match="a folder without a recipe"):
        read_recipe("empty", [])
