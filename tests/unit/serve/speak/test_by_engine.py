import shutil
import threading

import pytest

from ince.errors import CorruptFileError, InputError, ModelReferenceError, TemplateError
from ince.infer import stream
from ince.infer.prompt import encode_prompt
from ince.lora import PeftModel
from ince.serve.speak import AnswerOptions
from ince.serve.speak.by_engine import EngineSpeaker

SHORT = AnswerOptions(max_new_tokens=24)


@pytest.fixture
def speaker(make_model, small_tokenizer):
    opened = EngineSpeaker(make_model(), small_tokenizer, has_adapters=True)
    yield opened
    opened.close()
    assert not [each for each in threading.enumerate() if each.name == "ince-engine"]


def answer(speaker, conversation, adapter=None, options=SHORT):
    return "".join(speaker.answer(conversation, adapter, options))


def test_greedy_answers_are_those_of_the_model_itself(
    speaker, make_model, small_tokenizer, adapters, talk
):
    conversation = talk("Where is the sea?", "It is there.", "How far?")
    said = set()
    for name in (None, "lora", "dora", None, "lora"):
        model = make_model()
        if name is not None:
            PeftModel.from_pretrained(model, adapters[name]).eval()
        expected = "".join(stream(model, small_tokenizer, conversation, max_new_tokens=24))
        said.add(answer(speaker, conversation, None if name is None else adapters[name]))
        assert expected in said
    assert len(said) == 3


def test_the_next_turn_computes_only_what_is_new(speaker, small_tokenizer, talk, adapters):
    opening = ["Tell me about the sea, the hills and the sky, and who lives there, in one line."]
    answer(speaker, talk(*opening), adapters["lora"])
    before = speaker.engine.stats()
    second = talk(*opening, "It is blue.", "And then?")
    read = len(encode_prompt(small_tokenizer, talk(*opening, "It is blue.")[:1]))
    answer(speaker, second, adapters["lora"], AnswerOptions(max_new_tokens=1))
    after = speaker.engine.stats()
    num_prompt = len(encode_prompt(small_tokenizer, second))
    # Whole blocks of 16 are found again.
    assert after.prefix_hit_tokens - before.prefix_hit_tokens >= (read - 8) // 16 * 16 >= 16
    assert after.tokens - before.tokens == num_prompt - after.prefix_hit_tokens
    # What one adapter read is nothing to another, nor to the base.
    answer(speaker, second, None, AnswerOptions(max_new_tokens=1))
    assert speaker.engine.stats().prefix_hit_tokens == after.prefix_hit_tokens


def test_an_answer_that_is_closed_ends_in_the_engine(speaker, talk):
    pieces = speaker.answer(talk("Go on"), None, AnswerOptions(max_new_tokens=200))
    next(pieces)
    pieces.close()
    stats = speaker.engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.generated_tokens < 200
    assert answer(speaker, talk("Go on"))


def test_a_seed_says_what_is_drawn(speaker, talk):
    drawn = [
        answer(speaker, talk("Hi"), None, AnswerOptions(24, temperature=1.0, seed=seed))
        for seed in (1, 1, 2, -1, 10**30)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_adapter_that_was_trained_anew_answers_anew(speaker, adapters, talk, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(adapters["lora"], folder)
    speaker.load(folder)
    first = answer(speaker, talk("Hi"), folder)
    shutil.rmtree(folder)
    shutil.copytree(adapters["dora"], folder)
    assert answer(speaker, talk("Hi"), folder) == first
    speaker.load(folder)
    assert answer(speaker, talk("Hi"), folder) == answer(speaker, talk("Hi"), adapters["dora"])


def test_a_bad_adapter_disturbs_nobody_and_is_tried_again(speaker, adapters, talk, tmp_path):
    folder = tmp_path / "torn"
    shutil.copytree(adapters["lora"], folder)
    good = answer(speaker, talk("Hi"), adapters["lora"])
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(CorruptFileError):
        speaker.load(folder)
    assert answer(speaker, talk("Hi"), adapters["lora"]) == good
    weights.write_bytes(whole)
    speaker.load(folder)
    assert answer(speaker, talk("Hi"), folder) == good


def test_a_full_context_is_said_and_a_nearly_full_one_is_used_up(speaker, small_tokenizer, talk):
    word = "sea "
    long = talk(word * 300)
    with pytest.raises(InputError, match="whole context"):
        answer(speaker, long)
    fits = 200
    while len(encode_prompt(small_tokenizer, talk(word * (fits + 1)))) < 256:
        fits += 1
    pieces = speaker.answer(talk(word * fits), None, AnswerOptions(max_new_tokens=500))
    for _ in pieces:
        pass
    assert len(encode_prompt(small_tokenizer, talk(word * fits))) < 256


def test_a_model_without_a_template_is_said(make_model, small_tokenizer, talk, monkeypatch):
    opened = EngineSpeaker(make_model(), small_tokenizer)
    monkeypatch.setattr(small_tokenizer, "chat_template", None)
    with pytest.raises(TemplateError, match="no chat template"):
        answer(opened, talk("Hi"))
    opened.close()
    opened.close()


def test_a_model_that_reads_further_by_itself_is_not_cut_short(make_model, small_tokenizer):
    rope = {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 128,
    }
    model = make_model(rope_parameters=rope)
    with pytest.raises(ModelReferenceError, match="whole context"):
        EngineSpeaker(model, small_tokenizer)
    assert model.config._attn_implementation == "sdpa"
