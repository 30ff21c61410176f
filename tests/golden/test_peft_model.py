"""The API against PEFT's: what is active, trained, merged, combined and reported is the same.

Adapters are made by PEFT, saved, and loaded on both sides, so that both hold the same numbers.
"""

import dataclasses
import json
import re
import warnings
from pathlib import Path

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

import ince
from ince.errors import AdapterError

# PEFT warns of what it does by itself, and asks transformers by a name that is going away.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted"),
    pytest.mark.filterwarnings("ignore:Already following adapters were merged"),
    pytest.mark.filterwarnings("ignore:Adapter cannot be set when the model is merged"),
    pytest.mark.filterwarnings("ignore:Already unmerged"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
]

IDS = torch.tensor([[1, 5, 9, 2, 7, 40], [3, 3, 0, 11, 30, 2], [8, 1, 1, 6, 4, 9]])
ADAPTERS = {
    "default": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
    "b": {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]},
    "c": {"r": 2, "lora_alpha": 5, "use_rslora": True, "target_modules": ["k_proj", "q_proj"]},
}


def base(**values):
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        vocab_size=48, hidden_size=32, intermediate_size=40, pad_token_id=0, **sizes, **values
    )
    return LlamaForCausalLM(config).eval()


def their_config(values, **more):
    values = {"task_type": "CAUSAL_LM", "init_lora_weights": False} | values | more
    return peft.LoraConfig(**values)


def theirs(adapters=ADAPTERS, make=base, seed=1):
    model, plain = None, make()
    torch.manual_seed(seed)
    for name, values in adapters.items():
        if model is None:
            model = peft.get_peft_model(plain, their_config(values), name)
        else:
            model.add_adapter(name, their_config(values))
    return model.eval()


@pytest.fixture
def sides(tmp_path):
    """PEFT's model and ours with the same adapters; all frozen but the first."""
    other = theirs()
    other.save_pretrained(tmp_path)
    model = ince.PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    for name in list(ADAPTERS)[1:]:
        model.load_adapter(tmp_path / name, name)
    return model.eval(), other


def logits(model, **kwargs):
    with torch.no_grad():
        return model(input_ids=IDS, **kwargs).logits


def close(model, other, **kwargs):
    torch.testing.assert_close(logits(model, **kwargs), logits(other, **kwargs), rtol=0, atol=1e-5)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def same(model, other):
    assert model.active_adapters == other.active_adapters
    assert trained(model) == trained(other)
    close(model, other)


# ---------------------------------------------------------------------------- active, trained


def test_one_and_several_active(sides):
    for names in ("b", "c", ["default", "b"], ["c", "b", "default"], ["b"]):
        for side in sides:
            side.base_model.set_adapter(names)
        same(*sides)
        assert sides[0].base_model.active_adapter in (names, names[0])


def test_set_for_inference_and_by_hand(sides):
    for side in sides:
        side.set_adapter("b", inference_mode=True)
    same(*sides)
    for side in sides:
        side.set_requires_grad(["b", "c"])
    same(*sides)
    for side in sides:
        side.set_requires_grad("c", requires_grad=False)
    same(*sides)
    for side in sides:
        side.set_adapter("default")
    same(*sides)


def test_loaded_and_added_adapters_wait(tmp_path, sides):
    for side in sides:
        side.load_adapter(str(tmp_path / "b"), "frozen")
        side.load_adapter(str(tmp_path / "c"), "trained", is_trainable=True)
        side.train()
        side.load_adapter(str(tmp_path / "c"), "again")
        assert not side.training
    same(*sides)
    ours, other = sides
    torch.manual_seed(3)
    ours.add_adapter("fresh", ince.LoraConfig(r=3, target_modules=["o_proj"]))
    torch.manual_seed(3)
    other.add_adapter("fresh", peft.LoraConfig(r=3, target_modules=["o_proj"]))
    same(*sides)


@pytest.mark.parametrize("is_trainable", [False, True])
def test_from_pretrained(tmp_path, sides, is_trainable):
    del sides
    pair = [
        side.PeftModel.from_pretrained(base().train(), tmp_path / "b", "x", is_trainable)
        for side in (ince, peft)
    ]
    assert [side.training for side in pair] == [is_trainable] * 2
    same(*[side.eval() for side in pair])


def test_an_inference_config_is_frozen():
    values = {"target_modules": ["q_proj"], "inference_mode": True}
    pair = [
        side.get_peft_model(base(), side.LoraConfig(**values, task_type="CAUSAL_LM"))
        for side in (ince, peft)
    ]
    assert trained(pair[0]) == trained(pair[1]) == set()


def test_disabled_and_enabled_again(sides):
    plain = logits(base())
    for side in sides:
        with side.disable_adapter():
            assert torch.equal(logits(side), plain)
    same(*sides)
    for side in sides:
        side.base_model.disable_adapter_layers()
        assert torch.equal(logits(side), plain)
        with side.disable_adapter():
            pass
        assert torch.equal(logits(side), plain)
        side.base_model.enable_adapter_layers()
    same(*sides)


def test_deleting(sides):
    for side in sides:
        side.delete_adapter("c")
    same(*sides)
    for side in sides:
        side.delete_adapter("default")  # the active one
    same(*sides)
    assert sides[0].active_adapter == sides[1].active_adapter == "b"
    for side in sides:
        side.delete_adapter("b")
    assert sides[0].active_adapters == sides[1].active_adapters == []
    assert list(sides[0].peft_config) == list(sides[1].peft_config) == []
    # PEFT's shell looks for the config of the adapter that is gone.
    assert torch.equal(logits(sides[0]), logits(base()))


def test_deleting_one_of_several_active(sides):
    for side in sides:
        side.base_model.set_adapter(["c", "default"])
        side.delete_adapter("c")
    same(*sides)


def test_a_second_adapter_with_biases_is_refused_on_both_sides():
    for side, kind in ((ince, AdapterError), (peft, ValueError)):
        config = side.LoraConfig(target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")
        model = side.get_peft_model(base(attention_bias=True), config)
        with pytest.raises(kind, match=r"only (one|1) adapter"):
            model.add_adapter("b", config)
        assert list(model.peft_config) == ["default"]


# ------------------------------------------------------------------------------------- merging


def test_merged_in_place_and_unmerged(sides):
    weights = [dict(side.get_base_model().named_parameters()) for side in sides]
    before = weights[0]["model.layers.0.self_attn.q_proj.base_layer.weight"].clone()
    for names in (None, ["b"], ["b", "c"]):
        wanted = []
        for side in sides:
            side.merge_adapter(names)
            wanted.append(side.get_model_status().merged_adapters)
        assert wanted[0] == wanted[1]
        close(*sides)
    for side in sides:
        side.unmerge_adapter()
    same(*sides)
    after = weights[0]["model.layers.0.self_attn.q_proj.base_layer.weight"]
    assert torch.equal(after, before)


def test_switching_a_merged_model_unmerges_it(sides):
    for side in sides:
        side.merge_adapter()
        side.set_adapter("b")
    same(*sides)
    assert sides[0].get_model_status().merged_adapters == []


def test_a_merged_adapter_is_not_deleted(sides):
    for side, kind in zip(sides, (AdapterError, ValueError), strict=True):
        side.merge_adapter(["b"])
        with pytest.raises(kind, match="merged"):
            side.delete_adapter("b")


@pytest.mark.parametrize("names", [None, ["b"], ["b", "c"]])
def test_merged_and_unloaded(sides, names):
    close(*[side.merge_and_unload(adapter_names=names) for side in sides])


def test_unloaded(sides):
    close(*[side.unload() for side in sides])


# ----------------------------------------------------------------------------------- combining

COMBINATIONS = {
    "svd": {},
    "linear": {},
    "cat": {},
    "ties": {"density": 0.4},
    "ties_svd": {"density": 0.4, "majority_sign_method": "frequency"},
    "dare_ties": {"density": 0.6},
    "dare_linear": {"density": 0.6},
    "dare_ties_svd": {"density": 0.6, "svd_rank": 3},
    "dare_linear_svd": {"density": 0.6},
    "magnitude_prune": {"density": 0.4},
    "magnitude_prune_svd": {"density": 0.4, "svd_clamp": 0.9},
}


@pytest.mark.parametrize("kind", COMBINATIONS)
def test_combined(tmp_path, sides, kind):
    for side in sides:
        torch.manual_seed(5)
        if side is sides[0]:
            # PEFT draws the start of the new adapter first.
            rank = COMBINATIONS[kind].get("svd_rank", 4)
            targets = ["q_proj", "down_proj", "v_proj"]
            theirs({"default": {"r": rank, "target_modules": targets}}, base, seed=5)
        side.base_model.add_weighted_adapter(
            ["default", "b"], [0.7, -0.4], "new", kind, **COMBINATIONS[kind]
        )
        side.set_adapter("new")
    same(*sides)
    configs = []
    for number, side in enumerate(sides):
        side.save_pretrained(tmp_path / str(number), selected_adapters=["new"])
        path = tmp_path / str(number) / "new" / "adapter_config.json"
        config = json.loads(path.read_text())
        configs.append(config | {"target_modules": sorted(config["target_modules"])})
    assert configs[0] == configs[1]


def test_combined_of_unequal_ranks(sides):
    for side in sides:
        side.base_model.add_weighted_adapter(["default", "c"], [1.0, 2.0], "new", "cat")
        side.set_adapter("new")
    same(*sides)
    for side, kind in zip(sides, (AdapterError, ValueError), strict=True):
        with pytest.raises(kind):
            side.base_model.add_weighted_adapter(["default", "c"], [1.0, 2.0], "x", "linear")


def test_combined_is_the_weighted_sum(sides):
    model, _ = sides
    model.add_weighted_adapter(["default", "c"], [0.5, 2.0], "new", "cat")
    deltas = [
        sum(
            weight * layer.get_delta_weight(name)
            for name, weight in (("default", 0.5), ("c", 2.0))
            if name in layer.specs
        )
        - layer.get_delta_weight("new")
        for layer in model.modules()
        if isinstance(layer, ince.lora.LoraLayer) and "new" in layer.specs
    ]
    assert all(delta.abs().max() < 1e-5 for delta in deltas)


# ------------------------------------------------------------------------------- mixed batches


def test_an_adapter_for_each_row(sides):
    names = ["c", "__base__", "default"]
    close(*sides, adapter_names=names)
    outputs = [
        side.generate(input_ids=IDS, adapter_names=names, max_new_tokens=4, do_sample=False)
        for side in sides
    ]
    assert torch.equal(*outputs)
    outputs = [
        side.generate(
            input_ids=IDS, adapter_names=names, max_new_tokens=4, num_beams=3, do_sample=False
        )
        for side in sides
    ]
    assert torch.equal(*outputs)
    same(*sides)


def test_rows_of_an_encoder_and_its_decoder_with_beams(tmp_path):
    def make():
        torch.manual_seed(0)
        sizes = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 2}
        config = T5Config(vocab_size=48, decoder_start_token_id=0, **sizes)
        return T5ForConditionalGeneration(config).eval()

    adapters = {
        name: {"r": 3, "target_modules": ["q", "v"], "lora_alpha": 30, "task_type": "SEQ_2_SEQ_LM"}
        for name in ("default", "b")
    }
    other = theirs(adapters, make)
    other.save_pretrained(tmp_path)
    model = ince.PeftModel.from_pretrained(make(), tmp_path)
    model.load_adapter(tmp_path / "b", "b")
    assert type(model).__name__ == type(other).__name__ == "PeftModelForSeq2SeqLM"
    for num_beams in (1, 3):
        outputs = [
            side.generate(
                input_ids=IDS,
                adapter_names=["b", "__base__", "default"],
                num_beams=num_beams,
                max_new_tokens=5,
                do_sample=False,
            )
            for side in (model, other)
        ]
        assert torch.equal(*outputs)


# ------------------------------------------------------------------------------------- reports


def test_layer_status(sides):
    for change in (
        lambda side: None,
        lambda side: side.base_model.set_adapter(["b", "c"]),
        lambda side: side.merge_adapter(["b"]),
        lambda side: side.unmerge_adapter(),
        lambda side: side.base_model.disable_adapter_layers(),
        lambda side: side.base_model.enable_adapter_layers(),
        lambda side: side.delete_adapter("b"),
    ):
        for side in sides:
            change(side)
        if not sides[0].get_model_status().enabled:
            continue  # PEFT takes gradients away from disabled adapters
        ours, other = (
            {each.name: dataclasses.asdict(each) for each in side.get_layer_status()}
            for side in sides
        )
        # PEFT keeps layers of which the last adapter is gone.
        assert ours == {name: each for name, each in other.items() if each["available_adapters"]}


def test_model_status(sides):
    ours, other = (dataclasses.asdict(side.get_model_status()) for side in sides)
    assert ours == other
    ours, other = (
        dataclasses.asdict(module.get_model_status(side.get_base_model()))
        for module, side in zip((ince, peft), sides, strict=True)
    )
    assert ours == other


def test_counts_and_attributes(sides, capsys):
    ours, other = sides
    assert ours.get_nb_trainable_parameters() == other.get_nb_trainable_parameters()
    for side in sides:
        side.print_trainable_parameters()
    one, two = capsys.readouterr().out.splitlines()
    assert one == two
    assert type(ours).__name__ == type(other).__name__ == "PeftModelForCausalLM"
    assert ours.active_adapter == other.active_adapter
    assert ours.peft_type == other.peft_type == ince.PeftType.LORA
    assert ours.modules_to_save is other.modules_to_save is None
    assert ours.device == other.device
    assert ours.dtype == other.dtype
    assert list(ours.peft_config) == list(other.peft_config)
    assert ours.active_peft_config.r == other.active_peft_config.r
    assert list(ours.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize("task", ince.TaskType)
def test_the_class_of_a_task(task):
    config = ince.LoraConfig(target_modules=["q_proj"], task_type=task)
    model = ince.get_peft_model(base(), config)
    wanted = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task.value].__name__
    assert type(model) is getattr(ince, wanted)
    assert isinstance(model, ince.PeftModel)
    assert model.get_model_status().adapter_model_type == "LoraModel"


# --------------------------------------------------------------------------------------- files


def test_a_config_without_a_task_names_the_base_class(tmp_path):
    configs = []
    for side in (ince, peft):
        model = side.get_peft_model(base(), side.LoraConfig(target_modules=["q_proj"]))
        model.save_pretrained(tmp_path / side.__name__)
        path = tmp_path / side.__name__ / "adapter_config.json"
        configs.append(json.loads(path.read_text()))
    assert configs[0] == configs[1]


def test_state_dicts(sides):
    for name in ADAPTERS:
        dicts = [
            module.get_peft_model_state_dict(side, adapter_name=name)
            for module, side in zip((ince, peft), sides, strict=True)
        ]
        assert dicts[0].keys() == dicts[1].keys()
        assert all(torch.equal(dicts[0][key], dicts[1][key]) for key in dicts[0])
    ours, other = sides
    changed = {key: tensor * 2 for key, tensor in dicts[1].items()}
    assert ince.set_peft_model_state_dict(ours, changed, "c").missing_keys == []
    peft.set_peft_model_state_dict(other, changed, "c")
    for side in sides:
        side.set_adapter("c")
    same(*sides)


def test_adapters_without_a_shell():
    models = []
    for side in (ince, peft):
        torch.manual_seed(2)
        config = side.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        models.append(side.inject_adapter_in_model(config, base()))
    assert trained(models[0]) == trained(models[1])
    close(*models)
    keys = [side.get_peft_model_state_dict(model).keys() for side, model in ((ince, models[0]),)]
    assert set(keys[0]) == {name.replace(".default", "") for name in trained(models[1])}


def test_embeddings_that_peft_puts_into_the_file(tmp_path):
    values = {"r": 3, "target_modules": ["embed_tokens", "q_proj"]}
    other = theirs({"default": values})
    other.save_pretrained(tmp_path)  # the base's embedding comes along
    model = ince.PeftModel.from_pretrained(base(), tmp_path)
    close(model, other)


def test_a_resized_vocabulary_travels_with_the_adapter(tmp_path):
    def resized(seed):
        model = base()
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.resize_token_embeddings(50, mean_resizing=False)
        return model

    other = theirs({"default": {"r": 3, "target_modules": ["q_proj"]}}, lambda: resized(1))
    other.save_pretrained(tmp_path, save_embedding_layers=True)
    model = ince.PeftModel.from_pretrained(resized(2), tmp_path)
    close(model, other)
    model.save_pretrained(tmp_path / "again")
    close(peft.PeftModel.from_pretrained(resized(3), tmp_path / "again"), other)
    with pytest.raises(AdapterError, match=r"resize_token_embeddings\(50\)"):
        ince.PeftModel.from_pretrained(base(), tmp_path)


def test_our_embeddings_are_read_by_peft(tmp_path):
    torch.manual_seed(4)
    config = ince.LoraConfig(
        r=3, target_modules=["embed_tokens"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = ince.get_peft_model(base(), config)
    for choice in (True, False, "auto"):
        model.save_pretrained(tmp_path / str(choice), save_embedding_layers=choice)
        close(peft.PeftModel.from_pretrained(base(), tmp_path / str(choice)), model)


def test_prepared_for_training_nothing_becomes_float32():
    model = ince.prepare_model_for_kbit_training(base().to(torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not trained(model)
    other = peft.prepare_model_for_kbit_training(base().to(torch.bfloat16))
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}


# -------------------------------------------------------------------------------- the document

PAGE = Path(__file__).parents[2] / "docs" / "peft.md"


@pytest.fixture
def program():
    block, *_ = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return block


def test_the_program_of_the_document_runs_with_either_import(
    program, tmp_path, monkeypatch, capsys
):
    assert program.count("from ince import") == 1
    ends, printed = [], []
    for side in ("ince", "peft"):
        folder = tmp_path / side
        base().save_pretrained(folder / "base")
        monkeypatch.chdir(folder)
        names = {}
        capsys.readouterr()
        exec(program.replace("from ince import", f"from {side} import"), names)  # noqa: S102
        printed.append([line for line in capsys.readouterr().out.splitlines() if line])
        ends.append(names["merged"])
    assert printed[0] == printed[1]
    assert len(printed[0]) == 2
    torch.testing.assert_close(logits(ends[0]), logits(ends[1]), rtol=0, atol=1e-4)


def test_every_name_in_the_document_is_there():
    text = PAGE.read_text()
    for name in ("LoadResult",):
        assert name not in text
    exported = [name for name in re.findall(r"`(\w+)`", text) if name[0].isupper()]
    assert {name for name in exported if name.endswith(("Config", "Model", "Type"))} <= set(
        ince.__all__
    )
    methods = re.findall(r"`(\w+)`", text.split("## What differs")[0])
    model = ince.get_peft_model(base(), ince.LoraConfig())
    missing = {
        name
        for name in methods
        if name.islower() and not hasattr(model, name) and name not in ince.__all__
    }
    assert missing <= {"forward", "generate", "path_initial_model_for_weight_conversion"}
