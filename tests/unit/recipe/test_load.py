import pytest

from ince.errors import ConfigError
from ince.recipe import load_recipe

YAML = """\
model:  {base: smollm2-135m-instruct, quantize: nf4, double_quant: true, compute_dtype: auto}
lora:   {r: 16, alpha: 32, dropout: 0.05, target_modules: all-linear}
data:   {train: data/train.jsonl, eval: data/eval.jsonl, max_length: 1024, packing: true}
train:  {epochs: 2, batch_tokens: 4096, lr: 2e-4, schedule: cosine, seed: 7, eval_every: 50}
output: runs/turkish
"""
TOML = """\
output = "runs/turkish"
[model]
base = "smollm2-135m-instruct"
quantize = "nf4"
[lora]
dropout = 0.05
[data]
train = "data/train.jsonl"
eval = "data/eval.jsonl"
[train]
epochs = 2
eval_every = 50
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    for name in ("train", "eval"):
        (folder / "data" / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (folder / "recipe.yaml").write_text(YAML)
    (folder / "recipe.toml").write_text(TOML)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def test_numbers_are_read_as_people_write_them(project):
    assert load_recipe(project / "recipe.yaml").train.lr == 2e-4


def test_yaml_and_toml_say_the_same(project):
    assert load_recipe(project / "recipe.yaml") == load_recipe(project / "recipe.toml")


def test_data_are_beside_the_recipe_and_output_is_here(project):
    recipe = load_recipe(project / "recipe.yaml")
    assert recipe.data.train == str(project / "data" / "train.jsonl")
    assert recipe.output == "runs/turkish"


def test_a_path_on_the_command_line_is_as_the_shell_sees_it(project):
    recipe = load_recipe(project / "recipe.yaml", ["data.train=../project/data/eval.jsonl"])
    assert recipe.data.train == str(project / "data" / "eval.jsonl")


@pytest.mark.parametrize(
    "written, absolute",
    [
        ("./models/m", True),
        ("../m", True),
        ("m.gguf", True),
        ("models/m.GGUF", True),
        ("owner/name", False),
        ("smollm2-135m-instruct", False),
    ],
)
def test_a_model_that_is_a_path_is_beside_the_recipe(project, written, absolute):
    path = project / "recipe.yaml"
    path.write_text(YAML.replace("smollm2-135m-instruct", written))
    base = load_recipe(path).model.base
    expected = (project / written).resolve() if absolute else written
    assert base == str(expected)


def test_overrides_take_lists_mappings_null_and_plain_text(project):
    recipe = load_recipe(
        project / "recipe.yaml",
        [
            "lora.target_modules=[q_proj, v_proj]",
            "lora.rank_pattern={q_proj: 4}",
            "lora.alpha_pattern.v_proj=8",
            "data.eval=null",
            "data.system=Answer: briefly, #1",
            "train.lr=1e-3",
            "train.lr=3e-3",
            "lora.use_rslora=true",
        ],
    )
    assert recipe.lora.target_modules == ("q_proj", "v_proj")
    assert recipe.lora.rank_pattern == {"q_proj": 4}
    assert recipe.lora.alpha_pattern == {"v_proj": 8}
    assert recipe.data.eval is None
    assert recipe.data.system == "Answer: briefly, #1"
    assert recipe.train.lr == 3e-3
    assert recipe.lora.use_rslora is True


def test_an_override_of_one_key_leaves_its_neighbors(project):
    recipe = load_recipe(project / "recipe.yaml", ["lora.r=4"])
    assert (recipe.lora.r, recipe.lora.dropout) == (4, 0.05)


def test_mistakes_name_their_lines(project):
    path = project / "recipe.yaml"
    path.write_text(YAML.replace("r: 16", "r: 0").replace("seed: 7", "sed: 7"))
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert "lora.r: got 0, expected at least 1 [line 2]" in message
    assert "train.sed: unknown key [line 4] (did you mean 'seed'?)" in message
    assert str(path) in message
    # What an override put there stands in no line.
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, ["lora.r=-1", "train.sed=3"])
    assert "line" not in "".join(p.what for p in caught.value.problems)


def test_a_missing_recipe_suggests_its_neighbor(project):
    with pytest.raises(ConfigError, match=r"recipe\.toml|recipe\.yaml") as caught:
        load_recipe(project / "recipe.yml")
    assert "did you mean" in (caught.value.do or "")


def test_a_byte_order_mark_does_not_matter(project):
    path = project / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + YAML.replace("\n", "\r\n").encode())
    assert load_recipe(path).lora.r == 16


@pytest.mark.parametrize("setting", ["train.early_stopping={patience: 2}", "train.keep_best=true"])
def test_what_looks_at_the_held_out_loss_needs_held_out_rows(project, setting):
    load_recipe(project / "recipe.yaml", [setting])
    with pytest.raises(ConfigError) as caught:
        load_recipe(project / "recipe.yaml", [setting, "data.eval=null"])
    (problem,) = caught.value.problems
    assert problem.key == setting.partition("=")[0]
    assert "data.eval" in problem.what


def test_a_part_of_a_section_inside_a_section_can_be_overridden(project):
    changes = ["train.early_stopping.patience=3", "train.early_stopping.min_delta=0.01"]
    early_stopping = load_recipe(project / "recipe.yaml", changes).train.early_stopping
    assert (early_stopping.patience, early_stopping.min_delta) == (3, 0.01)
    with pytest.raises(ConfigError, match=r"train\.early_stopping\.patiense.*'patience'"):
        load_recipe(project / "recipe.yaml", ["train.early_stopping.patiense=3"])
