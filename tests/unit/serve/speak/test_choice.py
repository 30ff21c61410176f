import pytest

from ince.errors import AdapterError
from ince.infer import stream
from ince.lora import PeftModel
from ince.serve.speak import AnswerOptions, choice, open_speaker
from ince.serve.speak.by_engine import EngineSpeaker
from ince.serve.speak.by_model import ModelSpeaker

SHORT = AnswerOptions(max_new_tokens=12)


def test_the_engine_answers_where_it_can(make_model, small_tokenizer, adapters):
    remarks = []
    speaker = open_speaker(
        make_model(), small_tokenizer, first=adapters["lora"], remark=remarks.append
    )
    assert isinstance(speaker, EngineSpeaker)
    assert remarks == []
    speaker.close()


@pytest.mark.parametrize("name", ["whole", "untrained"])
def test_an_adapter_that_it_refuses_answers_from_the_model(
    make_model, small_tokenizer, adapters, talk, name
):
    remarks = []
    speaker = open_speaker(
        make_model(), small_tokenizer, first=adapters[name], remark=remarks.append
    )
    assert isinstance(speaker, ModelSpeaker)
    assert len(remarks) == 1
    assert "\n" not in remarks[0]
    # There, too, adapters change within a conversation.
    for each in (name, "lora", None, "dora", name):
        model = make_model()
        if each is not None:
            PeftModel.from_pretrained(model, adapters[each]).eval()
        expected = "".join(stream(model, small_tokenizer, talk("Hi"), max_new_tokens=12))
        folder = None if each is None else adapters[each]
        if folder is not None:
            speaker.load(folder)
        assert "".join(speaker.answer(talk("Hi"), folder, SHORT)) == expected
    speaker.close()


def test_a_model_that_it_does_not_run_answers_itself(
    make_model, small_tokenizer, talk, monkeypatch
):
    def strange(*_, **__):
        raise KeyError("a model's own code")

    expected = "".join(stream(make_model(), small_tokenizer, talk("Hi"), max_new_tokens=12))
    monkeypatch.setattr(choice, "EngineSpeaker", strange)
    remarks = []
    speaker = open_speaker(make_model(), small_tokenizer, remark=remarks.append)
    assert isinstance(speaker, ModelSpeaker)
    assert "KeyError" in remarks[0]
    assert "".join(speaker.answer(talk("Hi"), None, SHORT)) == expected


def test_an_adapter_that_fits_in_no_way_is_an_error(make_model, small_tokenizer, adapters):
    remarks = []
    with pytest.raises(AdapterError):
        open_speaker(
            make_model(hidden_size=64),
            small_tokenizer,
            first=adapters["lora"],
            remark=remarks.append,
        )
    assert remarks == []
