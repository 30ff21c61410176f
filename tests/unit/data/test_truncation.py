"""Whatever is cut away, what is left teaches what its own conversation would."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import processors

from ince.data.batch import IGNORED
from ince.data.collation import collate
from ince.data.conversation import Completion, Conversation, Document, Message
from ince.data.order import epoch_order
from ince.data.packing import pack_rows, single_rows
from ince.data.template import Encoder
from ince.data.truncation import encode, fit
from ince.errors import DataError

# Templates that keep words as they are, with what they put before and after a reply.
ENDS = {
    "chatml": "<|im_end|>",
    "chatml_with_marks": "<|im_end|>",
    "llama3": "<|im_end|>",
    "mistral": "<|im_end|>",
    "gemma": "<|end|>",
    "zephyr": "<|im_end|>",
    "drops_reasoning": "<|im_end|>",
    "marks": "<|im_end|>",
}
WITHOUT_SYSTEM = ("mistral",)
MERGES = (("Ċ", "Ċ"), ("Ġ", "a"), ("a", "b"))
texts = st.text("ab İş👩‍🚀\n <|", min_size=1, max_size=14).filter(lambda text: bool(text.strip()))
often = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def encoders(make_tokenizer):
    return {name: Encoder(make_tokenizer(name, MERGES)) for name in (*ENDS, None)}


@st.composite
def talks(draw):
    """Conversations of one to four exchanges, some of them with several questions or replies."""
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        roles = draw(st.sampled_from(["ua", "ua", "ua", "uua", "uaa"]))
        names = {"u": "user", "a": "assistant"}
        messages += [Message(names[role], draw(texts)) for role in roles]
    return Conversation(tuple(messages), "here")


def decoded(encoder, ids):
    return encoder._tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def stretches(encoder, example):
    """(text before, text) of each stretch of targets; a stop token ends one."""
    found, begin = [], None
    for place, target in enumerate((*example.targets, False)):
        if begin is not None and (not target or place - 1 in example.stops):
            before, text = example.input_ids[:begin], example.input_ids[begin:place]
            found.append((decoded(encoder, before), decoded(encoder, text)))
            begin = None
        if target and begin is None:
            begin = place
    return found


def tried(item, encoder, **options):
    """What `fit` makes of an item, or None and why it makes nothing."""
    try:
        return fit(item, encoder, **options), ""
    except DataError as error:
        return None, str(error)


def replies(item):
    return [message.content for message in item.messages if message.role == "assistant"]


def check_part(encoder, example, part, *, end, only_last):
    """The targets of an example are its part's replies, behind the prompts of generation."""
    indices = [i for i, m in enumerate(part.messages) if m.role == "assistant"]
    if only_last:
        indices = indices[-1:]
    found = stretches(encoder, example)
    assert 0 < len(found) <= len(indices)
    assert len(example.stops) >= len(found) - 1, "none but the last turn may be cut"
    for number, (i, (before, text)) in enumerate(zip(indices, found, strict=False)):
        prompt = encoder.template.render(part.messages[:i], generation_prompt=True)
        if encoder.template.render(part.messages).startswith(prompt):
            assert before == prompt
        whole = part.messages[i].content
        if number < len(example.stops):
            assert text.endswith(end)
            assert text.removesuffix(end).strip().endswith(whole.strip())
        else:
            assert number == len(found) - 1
            # The cut may go through a letter of several tokens.
            assert (
                whole.strip() in text
                or text.rstrip("�").strip().removeprefix("<think>\n\n</think>\n\n").strip()
                in f"<think>\n\n</think>\n\n{whole}"
            )


@often
@given(
    item=talks(),
    name=st.sampled_from(list(ENDS)),
    max_length=st.integers(4, 160),
    loss_on=st.sampled_from(["assistant", "last", "all"]),
    truncation=st.sampled_from(["right", "left", "split", "drop"]),
    packing=st.booleans(),
)
def test_the_contract_holds_after_truncation_and_packing(
    encoders, item, name, max_length, loss_on, truncation, packing
):
    assume(name not in WITHOUT_SYSTEM or item.num_system == 0)
    # A last reply gets an empty thought, so one that another follows is written anew.
    doubled = any(a.role == b.role == "assistant" for a, b in pairwise(item.messages))
    assume(name != "drops_reasoning" or not doubled)
    encoder = encoders[name]
    whole = encoder.encode(item, loss_on=loss_on)
    fitted, reason = tried(
        item, encoder, max_length=max_length, loss_on=loss_on, truncation=truncation
    )
    if fitted is None:
        assert "max_length" in reason, "nothing but a lack of room is a reason"
        return
    assert fitted.num_tokens == whole.num_tokens
    if truncation == "drop" and whole.num_tokens > max_length:
        assert fitted.examples == ()
        assert fitted.lost.num_targets == whole.num_targets
        return
    for example, part in zip(fitted.examples, fitted.parts, strict=True):
        assert example.num_tokens <= max_length
        assert example.num_targets > 0
        assert not example.targets[0]
        if loss_on == "all":
            assert all(example.targets[1:])
        else:
            check_part(encoder, example, part, end=ENDS[name], only_last=loss_on == "last")
    # The kept and the lost are the whole.
    kept = sum(len(example.stops) for example in fitted.examples)
    assert kept + fitted.lost.num_stops == len(whole.turns)
    if loss_on == "assistant" and name != "drops_reasoning":
        learnt = sum(example.num_targets for example in fitted.examples)
        assert learnt + fitted.lost.num_targets == whole.num_targets
    if whole.num_tokens <= max_length:
        assert fitted.lost == type(fitted.lost)()
    # Packed with copies of itself, every label and every stop is where it was.
    every = [example for example in fitted.examples for _ in range(3)]
    order = epoch_order(len(every), 0, 0)
    rows = pack_rows(every, order, max_length) if packing else single_rows(every, order)
    batch = collate(rows, encoder._tokenizer.pad_token_id)
    assert batch.num_targets == sum(example.num_targets for example in every)
    stop = encoder._tokenizer.convert_tokens_to_ids(ENDS[name])
    if loss_on != "all":
        assert int((batch.labels == stop).sum()) == 3 * kept
    assert not bool((batch.labels[batch.position_ids == 0] != IGNORED).any())


@often
@given(item=talks(), max_length=st.integers(40, 120))
def test_split_learns_every_reply_once(encoders, item, max_length):
    encoder = encoders["chatml"]
    fitted, _ = tried(item, encoder, max_length=max_length, truncation="split")
    assume(fitted is not None)
    told = item.messages[: item.num_system]
    assert all(part.messages[: part.num_system] == told for part in fitted.parts)
    assert [m for part in fitted.parts for m in part.messages[part.num_system :]] == list(
        item.messages[item.num_system :]
    )
    learnt = [text for e in fitted.examples for _, text in stretches(encoder, e)]
    if not fitted.lost.num_tokens:
        assert learnt == [reply + "<|im_end|>" for reply in replies(item)]
    sources = [example.source for example in fitted.examples]
    assert len(set(sources)) == len(sources)


@often
@given(item=talks(), max_length=st.integers(30, 120))
def test_left_keeps_the_end_and_the_system_message(encoders, item, max_length):
    encoder = encoders["chatml"]
    fitted, reason = tried(item, encoder, max_length=max_length, truncation="left")
    if fitted is None:
        assert "does not fit" in reason
        return
    [part], [example] = fitted.parts, fitted.examples
    assert part.messages[: part.num_system] == item.messages[: item.num_system]
    kept = part.messages[part.num_system :]
    assert kept[1:] == item.messages[len(item.messages) - len(kept) + 1 :]
    question = item.messages[-len(kept)]
    assert kept[0].role == question.role == "user"
    assert question.content.endswith(kept[0].content)
    assert len(example.stops) == len(replies(part)), "no reply is cut"
    assert example.num_truncated == fitted.lost.num_tokens


def talk(*contents):
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], c) for i, c in enumerate(contents)), "here")


def test_left_cuts_a_question_where_a_word_begins(encoders):
    item = talk("bir iki üç dört beş altı", "yedi")
    fitted = fit(item, encoders["chatml"], max_length=37, truncation="left")
    assert [m.content for m in fitted.parts[0].messages] == ["beş altı", "yedi"]


def test_left_cuts_no_letter_from_its_mark(encoders):
    item = talk("x" * 30 + "e\u0301e\u0301e\u0301", "yedi")
    for max_length in range(49, 56):
        [part] = fit(item, encoders["chatml"], max_length=max_length, truncation="left").parts
        assert part.messages[0].content[0] in "xe"


def test_a_reply_that_does_not_fit_is_no_example_of_left(encoders):
    with pytest.raises(DataError, match="the last reply does not fit into max_length"):
        fit(talk("soru", "x" * 99), encoders["chatml"], max_length=64, truncation="left")


def test_split_leaves_out_what_teaches_nothing(encoders):
    item = talk("a" * 20, "b", "c" * 20, "d")
    options = {"max_length": 50, "truncation": "split", "loss_on": "last"}
    fitted = fit(item, encoders["chatml"], **options)
    assert [part.messages[0].content for part in fitted.parts] == ["c" * 20]
    prompt = Conversation(item.messages, "here", num_prompt=2)
    fitted = fit(prompt, encoders["chatml"], **options | {"loss_on": "completion"})
    assert [part.messages[0].content for part in fitted.parts] == ["c" * 20]


# --------------------------------------------------------------------------------- without turns


@pytest.fixture(scope="module")
def beginning(make_tokenizer):
    """An encoder whose tokenizer puts <s> before every text."""
    tokenizer = make_tokenizer(None, MERGES)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return Encoder(tokenizer)


@often
@given(
    text=st.text("ab \n", min_size=1, max_size=60), max_length=st.integers(3, 40), bos=st.booleans()
)
def test_a_split_text_learns_every_token_once(encoders, beginning, text, max_length, bos):
    encoder = beginning if bos else encoders[None]
    whole = encoder.encode(Document(text, "here"), loss_on="all")
    fitted = fit(Document(text, "here"), encoder, max_length=max_length, truncation="split")
    learnt = [
        (token, previous)
        for example in fitted.examples
        for token, previous, target in zip(
            example.input_ids[1:], example.input_ids, example.targets[1:], strict=False
        )
        if target
    ]
    assert learnt == list(zip(whole.input_ids[1:], whole.input_ids, strict=False))
    start = [encoder._tokenizer.bos_token_id] if bos else []
    for example in fitted.examples:
        assert example.num_tokens <= max_length
        assert list(example.input_ids[: len(start)]) == start
    assert fitted.lost.num_tokens == fitted.lost.num_targets == fitted.lost.num_stops == 0
    assert [len(example.stops) for example in fitted.examples][-1] == 1


@often
@given(
    text=st.text("ab \n", min_size=1, max_size=60), max_length=st.integers(3, 40), bos=st.booleans()
)
def test_left_keeps_the_end_of_a_text(encoders, beginning, text, max_length, bos):
    encoder = beginning if bos else encoders[None]
    whole = encoder.encode(Document(text, "here"), loss_on="all")
    [example] = fit(
        Document(text, "here"), encoder, max_length=max_length, truncation="left"
    ).examples
    num_start = int(bos)
    assert example.num_tokens == min(max_length, whole.num_tokens)
    assert example.input_ids[num_start:] == whole.input_ids[num_start - example.num_tokens :]
    assert example.input_ids[:num_start] == whole.input_ids[:num_start]
    assert example.stops == (example.num_tokens - 1,)
    assert example.num_truncated == whole.num_tokens - example.num_tokens


@often
@given(
    prompt=st.text("ab ", min_size=1, max_size=40).filter(str.strip),
    completion=st.text("ab ", min_size=1, max_size=20).filter(str.strip),
    max_length=st.integers(4, 40),
    truncation=st.sampled_from(["left", "right", "split"]),
)
def test_a_completion_keeps_its_context(beginning, prompt, completion, max_length, truncation):
    item = Completion(prompt, completion, "here")
    whole = beginning.encode(item, loss_on="completion")
    fitted, reason = tried(
        item, beginning, max_length=max_length, loss_on="completion", truncation=truncation
    )
    if fitted is None:
        assert "max_length" in reason
        return
    [example] = fitted.examples
    [(before, text)] = stretches(beginning, example)
    if truncation == "left":
        assert text == completion + "<|im_end|>"
        assert ("<s>" + prompt).endswith(before.removeprefix("<s>"))
        assert before.startswith("<s>")
        assert len(before) > len("<s>"), "something of the prompt is left"
    else:
        assert before == "<s>" + prompt
        assert (completion + "<|im_end|>").startswith(text)
    assert example.num_targets + fitted.lost.num_targets == whole.num_targets
    assert len(example.stops) + fitted.lost.num_stops == 1


@pytest.mark.parametrize("truncation", ["left", "split"])
def test_a_text_needs_room_for_a_token_and_what_predicts_it(beginning, truncation):
    with pytest.raises(DataError, match="no token to learn is left"):
        fit(Document("abab", "here"), beginning, max_length=2, truncation=truncation)


def test_one_example_is_not_several(encoders, make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    item = talk("a" * 20, "b", "c" * 20, "d")
    with pytest.raises(DataError, match="longer than max_length"):
        encode(item, tokenizer, max_length=50, truncation="split")
    assert encode(item, tokenizer, max_length=50, truncation="left").num_truncated > 0
