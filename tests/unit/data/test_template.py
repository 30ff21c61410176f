"""The mask contract, for every way in which templates behave."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from ince.data.conversation import Completion, Conversation, Document, Message
from ince.data.template import Encoder
from ince.data.truncation import encode
from ince.errors import DataError, TemplateError

WELL_BEHAVED = ("chatml", "llama3", "trims", "mistral", "strict")
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Words that may begin and end with spaces and line ends, with Turkish letters and emoji.
texts = st.text("ab İıŞçğ👩‍🚀'\n <|", min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)


def talk(*contents, system=None, source="here"):
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], content) for i, content in enumerate(contents)]
    if system is not None:
        messages.insert(0, Message("system", system))
    return Conversation(tuple(messages), source)


def learnt(example, tokenizer):
    """The text of each stretch of targets."""
    stretches, ids = [], []
    for token, target in zip((*example.input_ids, 0), (*example.targets, False), strict=True):
        if target:
            ids.append(token)
        elif ids:
            stretches.append(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
            ids = []
    return stretches


@pytest.mark.parametrize("template", WELL_BEHAVED)
@quick
@given(contents=st.lists(texts, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_what_is_learnt_is_the_replies_and_their_stop(make_tokenizer, template, contents):
    tokenizer = make_tokenizer(template, (("Ċ", "Ċ"), ("Ġ", "a")))
    example = encode(talk(*contents), tokenizer, max_length=10_000)
    replies = contents[1::2]
    if template in ("llama3", "trims"):
        replies = [reply.strip() for reply in replies]
    if template == "mistral":
        replies = [" " + reply for reply in replies]
    assert learnt(example, tokenizer) == [reply + "<|im_end|>" for reply in replies]


@quick
@given(contents=st.lists(texts, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0))
def test_the_packaged_model_learns_the_replies_and_their_stop(smollm2_tokenizer, contents):
    example = encode(talk(*contents), smollm2_tokenizer, max_length=10_000)
    expected = [reply + "<|im_end|>" for reply in contents[1::2]]
    assert learnt(example, smollm2_tokenizer) == expected
    assert example.input_ids[-1] == smollm2_tokenizer.eos_token_id
    assert example.targets[-1], "the stop token is the padding token, and is learnt all the same"


@quick
@given(question=texts, reply=texts)
def test_a_reply_comes_after_exactly_the_prompt_of_generation(smollm2_tokenizer, question, reply):
    example = encode(talk(question, reply), smollm2_tokenizer, max_length=10_000)
    prompt = smollm2_tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    assert list(example.input_ids[: example.targets.index(True)]) == prompt


def test_a_token_is_not_shared_by_prompt_and_reply(make_tokenizer):
    tokenizer = make_tokenizer("chatml", (("Ċ", "Ċ"),))
    example = encode(talk("a", "\nb"), tokenizer, max_length=100)
    assert learnt(example, tokenizer) == ["\nb<|im_end|>"]
    whole = tokenizer("<|im_start|>assistant\n\nb", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("ĊĊ") in whole, "in one piece the token would be shared"


def test_a_tokenizer_that_begins_with_a_space_is_fed_whole(make_spaced_tokenizer):
    tokenizer = make_spaced_tokenizer("mistral")
    example = encode(talk("abe", "ebb"), tokenizer, max_length=100)
    whole = tokenizer("<s>[INST] abe [/INST] ebb<|im_end|>", add_special_tokens=False)["input_ids"]
    assert list(example.input_ids) == whole
    first = example.targets.index(True)
    assert tokenizer.convert_ids_to_tokens(list(example.input_ids[first : first + 1])) == ["▁e"]


def test_a_token_across_the_beginning_of_a_reply_is_refused(make_spaced_tokenizer):
    tokenizer = make_spaced_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n", "assistant ").replace(
        "m['role'] + '\n'", "m['role'] + ' '"
    )
    with pytest.raises(TemplateError, match="reaches across"):
        encode(talk("a", "ebb"), tokenizer, max_length=100)


def test_the_template_adds_its_own_system_message_and_ours_replaces_it(smollm2_tokenizer):
    plain = encode(talk("a", "b"), smollm2_tokenizer, max_length=100)
    told = encode(talk("a", "b", system="Kısa yaz."), smollm2_tokenizer, max_length=100)
    assert "named SmolLM" in smollm2_tokenizer.decode(plain.input_ids)
    assert "named SmolLM" not in smollm2_tokenizer.decode(told.input_ids)
    assert learnt(plain, smollm2_tokenizer) == learnt(told, smollm2_tokenizer)


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [("assistant", ["b<|im_end|>", "d<|im_end|>"]), ("last", ["d<|im_end|>"])],
)
def test_loss_on_chooses_the_turns(make_tokenizer, loss_on, expected):
    tokenizer = make_tokenizer("chatml")
    example = encode(talk("a", "b", "c", "d"), tokenizer, max_length=100, loss_on=loss_on)
    assert learnt(example, tokenizer) == expected


def test_loss_on_all_learns_everything_but_the_first_token(make_tokenizer):
    example = encode(talk("a", "b"), make_tokenizer("chatml"), max_length=100, loss_on="all")
    assert example.targets == (False, *[True] * (example.num_tokens - 1))


def test_nothing_follows_the_last_stop(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    example = encode(
        Conversation((*talk("a", "b").messages, Message("user", "never answered")), "here"),
        tokenizer,
        max_length=100,
    )
    assert tokenizer.decode(example.input_ids).endswith("b<|im_end|>")


# ---------------------------------------------------------------------- templates with a will


def test_earlier_reasoning_that_is_dropped_is_noticed(make_tokenizer):
    tokenizer = make_tokenizer("drops_reasoning")
    thought = talk("a", "<think>x</think>\n\nb", "c", "<think>y</think>\n\nd")
    with pytest.raises(TemplateError, match="changes the assistant's words") as caught:
        encode(thought, tokenizer, max_length=1000)
    assert "loss_on: last" in str(caught.value)
    example = encode(thought, tokenizer, max_length=1000, loss_on="last")
    assert learnt(example, tokenizer) == ["<think>y</think>\n\nd<|im_end|>"]


def test_what_a_template_puts_before_a_reply_is_learnt_with_it(make_tokenizer):
    tokenizer = make_tokenizer("drops_reasoning")
    example = encode(talk("a", "b", "c", "d"), tokenizer, max_length=1000)
    assert learnt(example, tokenizer) == ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]


def test_a_thought_that_the_prompt_begins_is_learnt_from_where_the_model_goes_on(make_tokenizer):
    tokenizer = make_tokenizer("thinks")
    thought = talk("a", "<think>\nx\n</think>\n\nb", "c", "<think>\ny\n</think>\n\nd")
    example = encode(thought, tokenizer, max_length=1000)
    expected = ["x\n</think>\n\nb<|im_end|>", "y\n</think>\n\nd<|im_end|>"]
    assert learnt(example, tokenizer) == expected
    with pytest.raises(TemplateError, match="rewrites earlier messages") as caught:
        encode(talk("a", "b"), tokenizer, max_length=1000)
    assert "{% generation %}" in str(caught.value)


@pytest.mark.parametrize("template", ["marks", "marks_without_stop"])
def test_marks_are_taken_where_prompts_are_no_prefix(make_tokenizer, template):
    tokenizer = make_tokenizer(template)
    example = encode(talk("a", "b", "c", "d", system="s"), tokenizer, max_length=1000)
    assert learnt(example, tokenizer) == ["b<|im_end|>", "d<|im_end|>"]


def test_without_marks_a_rewriting_template_is_refused_but_its_last_turn(make_tokenizer):
    tokenizer = make_tokenizer("moves_system")
    moved = talk("a", "b", "c", "d", system="s")
    with pytest.raises(TemplateError, match="rewrites earlier messages"):
        encode(moved, tokenizer, max_length=1000)
    example = encode(moved, tokenizer, max_length=1000, loss_on="last")
    assert learnt(example, tokenizer) == ["d<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "conversation", "message"),
    [
        ("no_stop", talk("a", "b"), "no stop token"),
        ("no_stop", talk("a", "b", "c", "d"), "no stop token"),
        ("no_generation_prompt", talk("a", "b"), "no generation prompt"),
        ("shouts", talk("a", "b"), "changes the assistant's words"),
        ("two_stops", talk("a", "b", "c", "d"), "different tokens"),
        ("broken", talk("a", "b"), "cannot render"),
        ("mistral", talk("a", "b", system="s"), "cannot render"),
        ("strict", talk("a", "b", system="s"), "cannot render"),
        ("marks_header", talk("a", "b", "c", "d", system="s"), "does not mark one reply"),
        (None, talk("a", "b"), "no chat template"),
    ],
)
def test_a_template_that_cannot_be_masked_is_refused(
    make_tokenizer, template, conversation, message
):
    with pytest.raises(TemplateError, match=message):
        encode(conversation, make_tokenizer(template), max_length=1000)


def test_the_template_s_own_words_are_in_the_error(make_tokenizer):
    with pytest.raises(TemplateError, match="no system role here"):
        encode(talk("a", "b", system="s"), make_tokenizer("mistral"), max_length=1000)


@pytest.mark.parametrize("where", [0, 1])
def test_control_tokens_in_a_text_are_refused(make_tokenizer, where):
    contents = ["a", "b"]
    contents[where] += "<|im_end|>"
    with pytest.raises(DataError, match="control token"):
        encode(talk(*contents), make_tokenizer("chatml"), max_length=1000)


def test_special_tokens_that_give_no_form_are_words(smollm2_tokenizer):
    reply = "cp <filename> x"
    example = encode(talk("a", reply), smollm2_tokenizer, max_length=1000)
    assert learnt(example, smollm2_tokenizer) == [reply + "<|im_end|>"]


# -------------------------------------------------------------------------------- truncation


@pytest.mark.parametrize("template", WELL_BEHAVED)
@quick
@given(
    contents=st.lists(texts, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0),
    max_length=st.integers(2, 150),
    loss_on=st.sampled_from(["assistant", "last", "all"]),
)
def test_after_truncation_the_contract_holds_or_there_is_no_example(
    make_tokenizer, template, contents, max_length, loss_on
):
    encoder = Encoder(make_tokenizer(template))
    whole = encoder.encode(talk(*contents), loss_on=loss_on)
    try:
        example = whole.truncate(max_length)
    except DataError:
        assert not any(whole.targets[:max_length])
        return
    assert example.num_tokens == min(whole.num_tokens, max_length)
    assert example.num_tokens + example.num_truncated == whole.num_tokens
    assert example.input_ids == whole.input_ids[:max_length]
    assert example.num_targets > 0
    assert not example.targets[0]
    assert len(whole.turns) == (1 if loss_on == "last" else len(contents) // 2)
    assert example.stops == tuple(t.stop for t in whole.turns if t.stop < max_length)
    for turn in whole.turns:
        assert all(example.targets[turn.first : turn.stop + 1])


def test_a_prompt_that_fills_max_length_is_no_example(smollm2_tokenizer):
    with pytest.raises(DataError, match="no token to learn is left") as caught:
        encode(talk("uzun " * 50, "b"), smollm2_tokenizer, max_length=32)
    assert "max_length is 32" in str(caught.value)


def test_drop_refuses_what_is_too_long(smollm2_tokenizer):
    with pytest.raises(DataError, match="longer than max_length"):
        encode(talk("a", "b " * 50), smollm2_tokenizer, max_length=64, truncation="drop")


# -------------------------------------------------------------------------------- documents


def test_a_document_is_learnt_whole_with_its_end(make_tokenizer):
    tokenizer = make_tokenizer(None)
    example = encode(Document("çay içtik", "here"), tokenizer, max_length=100)
    assert tokenizer.decode(example.input_ids) == "çay içtik<|im_end|>"
    assert example.targets == (False, *[True] * (example.num_tokens - 1))


@pytest.mark.parametrize("kind", ["text", "completion"])
def test_what_has_no_template_needs_an_end_token(make_tokenizer, kind):
    tokenizer = make_tokenizer(None)
    tokenizer.eos_token = None
    item = Document("a", "here") if kind == "text" else Completion("a", "b", "here")
    with pytest.raises(TemplateError, match=f"no end token, so a {kind}"):
        encode(item, tokenizer, max_length=100)


@pytest.fixture
def beginning_tokenizer(make_tokenizer):
    """One that puts <s> before every text, as Llama's does."""
    tokenizer = make_tokenizer(None, (("Ġ", "a"), ("Ċ", "Ċ")))
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    return tokenizer


@quick
@given(prompt=texts, completion=texts)
def test_a_completion_comes_after_exactly_the_prompt(beginning_tokenizer, prompt, completion):
    example = encode(Completion(prompt, completion, "here"), beginning_tokenizer, max_length=1000)
    assert learnt(example, beginning_tokenizer) == [completion + "<|im_end|>"]
    first = example.targets.index(True)
    assert list(example.input_ids[:first]) == beginning_tokenizer(prompt)["input_ids"]
    assert example.stops == (example.num_tokens - 1,)


def test_a_completion_is_learnt_with_its_prompt_where_all_is_learnt(beginning_tokenizer):
    item = Completion("soru", "cevap", "here")
    example = encode(item, beginning_tokenizer, max_length=100, loss_on="all")
    assert learnt(example, beginning_tokenizer) == ["sorucevap<|im_end|>"]


def test_of_a_prompt_with_replies_the_completion_is_learnt(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    row = Conversation(talk("a", "b", "c", "d", "e", "f").messages, "here", num_prompt=3)
    for item in (row, row.with_system("s")):
        example = encode(item, tokenizer, max_length=1000, loss_on="completion")
        assert learnt(example, tokenizer) == ["d<|im_end|>", "f<|im_end|>"]
    silent = Conversation(row.messages, "here", num_prompt=6)
    with pytest.raises(DataError, match="no assistant turn in the completion"):
        encode(silent, tokenizer, max_length=1000, loss_on="completion")


def test_ids_that_are_equal_are_one_object(make_tokenizer):
    encoder = Encoder(make_tokenizer("chatml"))
    first, second = (encoder.encode(talk("a", word), loss_on="last") for word in ("b", "c"))
    pairs = zip(first.input_ids[:9], second.input_ids[:9], strict=True)
    assert all(a is b for a, b in pairs)


def test_a_tokenizer_without_offsets_is_refused(make_tokenizer):
    class Slow:
        is_fast = False
        name_or_path = "slow"

    with pytest.raises(TemplateError, match="does not tell where"):
        Encoder(Slow())
