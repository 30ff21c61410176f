from ince.lora.insight.layer_kinds import customary, kinds_of, layer_number


def test_the_last_part_is_enough_where_it_tells_kinds_apart():
    names = [f"model.layers.{n}.self_attn.{kind}" for n in (0, 11) for kind in ("q_proj", "o_proj")]
    assert set(kinds_of(names).values()) == {"q_proj", "o_proj"}


def test_more_of_the_name_where_kinds_end_alike():
    names = [
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
        "encoder.block.0.layer.0.SelfAttention.q",
        "encoder.block.0.layer.1.DenseReluDense.wi",
    ]
    kinds = kinds_of(names)
    assert kinds[names[1]] == "EncDecAttention.q"
    assert kinds[names[3]] == "wi"
    assert len({kinds[name] for name in names}) == 4


def test_experts_and_numbers_are_no_kinds():
    kinds = kinds_of(["a.0.experts.down[0]", "a.0.experts.down[1]", "a.1.list.0", "a.1.list.1"])
    assert set(kinds.values()) == {"down", "list.*"}
    assert kinds_of(["a.experts[0]", "a.experts.base_layer[0]"])["a.experts.base_layer[0]"] == (
        "experts.base_layer"
    )


def test_a_name_that_is_the_end_of_another():
    assert kinds_of(["head", "model.head"]) == {"head": "head", "model.head": "model.head"}


def test_layer_numbers():
    assert layer_number("model.layers.12.mlp.experts.3.up") == 12
    assert layer_number("lm_head") is None
    assert layer_number("3.weight") == 3


def test_kinds_are_listed_as_people_list_them():
    kinds = ["down_proj", "zeta", "q_proj", "self_attn.o_proj", "alpha", "up_proj"]
    assert sorted(kinds, key=customary) == [
        "q_proj",
        "self_attn.o_proj",
        "up_proj",
        "down_proj",
        "alpha",
        "zeta",
    ]
