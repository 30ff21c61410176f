"""Batched decoding gives what each row would say alone, and stops where it should."""

from dataclasses import dataclass

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from ince.errors import InputError, TemplateError
from ince.infer import evaluating, generate, stop_tokens, stream
from ince.infer.decode import decode
from ince.infer.prompt import encode_prompt
from ince.infer.sampling import Sampling
from ince.quant import Linear4bit, NF4Config, quantize_model


@dataclass(frozen=True)
class Said:
    role: str
    content: str


QUESTIONS = [[Said("user", "word " * n + "?")] for n in (1, 9, 3, 30, 2, 5, 17, 4, 6, 1, 12, 8)]


@pytest.fixture
def model(tiny_llama):
    # Strong weights and a head of its own: else it would repeat one token, whatever it was asked.
    return tiny_llama(seed=4, initializer_range=0.3, tie_word_embeddings=False)


@pytest.fixture
def small(tiny_llama):
    """A model over sixteen tokens only, which soon says one that stops it."""
    return tiny_llama(seed=2, vocab_size=16, initializer_range=0.5, tie_word_embeddings=False)


def texts(answers) -> list[str]:
    return [answer.text for answer in answers]


def plain_decode(model, prompt: list[int], stops: frozenset[int], limit: int) -> list[int]:
    """Greedy decoding as anybody would write it: no cache, no batch."""
    ids = list(prompt)
    while len(ids) - len(prompt) < limit:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def run_decode(model, prompts, *, limits, stops, **sampling) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    with evaluating(model):
        for new in decode(
            model,
            prompts,
            rows=range(len(prompts)),
            stops=stops,
            pad_id=0,
            limits=limits,
            sampling=Sampling(**sampling),
        ):
            for i, token in new:
                answers[i].append(token)
    return answers


@pytest.mark.parametrize("num_shared", [0, 11])
def test_batch_with_rows_taken_out_equals_rows_alone(small, num_shared: int) -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [
        [*range(1, 1 + num_shared), *torch.randint(3, 16, (n,), generator=generator).tolist()]
        for n in (1, 2, 3, 4, 5, 6, 7, 9, 11, 14)
    ]
    limits = [20, 3, 20, 20, 1, 20, 8, 20, 20, 20]
    stops = frozenset({0, 5})
    together = run_decode(small, prompts, limits=limits, stops=stops)
    alone = [plain_decode(small, p, stops, n) for p, n in zip(prompts, limits, strict=True)]
    assert together == alone
    lengths = sorted(map(len, together))
    assert lengths[0] < lengths[len(lengths) // 2] <= lengths[-1]  # some stopped early


@pytest.mark.parametrize("num_shared", [0, 9])
def test_sliding_windows_survive_padding_and_leaving_rows(num_shared: int) -> None:
    torch.manual_seed(0)
    settings = Gemma3TextConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    model = Gemma3ForCausalLM(settings).requires_grad_(False).eval()
    model.model.embed_tokens.weight.mul_(0.1)  # what was said before counts, not the last token
    ends = [[3], [4, 5, 6, 7, 8, 9, 10, 11], [3, 3, 4], [9, 8, 7, 6, 5], [12, 2]]
    prompts = [[*range(2, 2 + num_shared), *end] for end in ends]
    limits = [12, 2, 2, 12, 2]
    together = run_decode(model, prompts, limits=limits, stops=frozenset())
    alone = [plain_decode(model, p, frozenset(), n) for p, n in zip(prompts, limits, strict=True)]
    assert together == alone
    assert len(set(together[0])) > 3  # a model that repeats itself would show nothing


def answers_in_batches_of(batch_size, model, tokenizer, temperature):
    return generate(
        model,
        tokenizer,
        QUESTIONS,
        max_new_tokens=8,
        batch_size=batch_size,
        temperature=temperature,
        seed=5,
    )


def test_greedy_answers_do_not_depend_on_the_batch(model, small_tokenizer) -> None:
    one, five, all_ = (answers_in_batches_of(n, model, small_tokenizer, 0.0) for n in (1, 5, 64))
    assert one == five == all_
    assert len(set(texts(all_))) > 1


def test_drawn_answers_depend_on_the_batch_by_rounding_alone(model, small_tokenizer) -> None:
    # Random weights spread 49,152 tokens evenly: the last bit decides now and then.
    one, five, all_ = (answers_in_batches_of(n, model, small_tokenizer, 1.0) for n in (1, 5, 64))
    for other in (five, all_):
        num_equal = sum(a == b for a, b in zip(one, other, strict=True))
        assert num_equal >= 0.7 * len(one)
    assert len(set(texts(all_))) > 1


def test_seed_fixes_what_is_drawn(model, small_tokenizer) -> None:
    def run(seed: int) -> list[str]:
        torch.manual_seed(seed + 100)  # the global generator has no part in it
        return texts(
            generate(
                model,
                small_tokenizer,
                QUESTIONS[:3],
                max_new_tokens=6,
                temperature=1.0,
                top_p=0.95,
                seed=seed,
            )
        )

    assert run(1) == run(1) != run(2)


def test_same_question_twice_is_drawn_twice(model, small_tokenizer) -> None:
    first, second = generate(
        model, small_tokenizer, [QUESTIONS[0]] * 2, max_new_tokens=8, temperature=1.5
    )
    assert first.text != second.text


def test_stop_token_ends_an_answer_and_is_not_text(
    model, small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cut,) = generate(model, small_tokenizer, QUESTIONS[:1], max_new_tokens=6)
    assert (cut.stopped, cut.num_tokens) == (False, 6)
    prompt = encode_prompt(small_tokenizer, QUESTIONS[0])
    tokens = plain_decode(model, prompt, frozenset(), 6)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokens[3]])
    (ended,) = generate(model, small_tokenizer, QUESTIONS[:1], max_new_tokens=6)
    place = tokens.index(tokens[3])
    assert (ended.stopped, ended.num_tokens) == (True, place + 1)
    assert ended.text == small_tokenizer.decode(tokens[:place], skip_special_tokens=True)


def test_stop_tokens_of_tokenizer_settings_and_template(
    model, small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.generation_config, "eos_token_id", [7, 8])
    assert stop_tokens(model, small_tokenizer) == {2, 7, 8}
    end_of_turn = "<jupyter_start>"  # any special token that the tokenizer has
    template = small_tokenizer.chat_template.replace("<|im_end|>", f" {end_of_turn}")
    monkeypatch.setattr(small_tokenizer, "chat_template", template)
    found = stop_tokens(model, small_tokenizer)
    assert small_tokenizer.convert_tokens_to_ids(end_of_turn) in found


def test_progress_counts_every_answer(model, small_tokenizer) -> None:
    told: list[tuple[int, int]] = []
    generate(
        model,
        small_tokenizer,
        QUESTIONS,
        max_new_tokens=3,
        batch_size=5,
        progress=lambda *step: told.append(step),
    )
    assert told[-1] == (len(QUESTIONS), len(QUESTIONS))
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_model_is_left_as_it_was(model, small_tokenizer) -> None:
    model.train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    generate(model, small_tokenizer, QUESTIONS[:2], max_new_tokens=2)
    assert [m.training for m in model.modules()] == modes
    with pytest.raises(TemplateError):
        generate(model, small_tokenizer, [[Said("user", None)]], max_new_tokens=2)
    assert [m.training for m in model.modules()] == modes


def test_quantized_model_answers_as_its_layers_do(model, small_tokenizer) -> None:
    quantize_model(model, NF4Config(compute_dtype="float32"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (answer,) = generate(model, small_tokenizer, QUESTIONS[:1], max_new_tokens=6)
    prompt = encode_prompt(small_tokenizer, QUESTIONS[0])
    tokens = plain_decode(model, prompt, stop_tokens(model, small_tokenizer), 6)
    assert answer.text == small_tokenizer.decode(tokens, skip_special_tokens=True)
    assert any(isinstance(m, Linear4bit) for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_nothing_to_answer(model, small_tokenizer) -> None:
    assert generate(model, small_tokenizer, [], max_new_tokens=2) == []


def test_context_that_is_nearly_full_cuts_that_row_only(tiny_llama, small_tokenizer) -> None:
    model = tiny_llama(seed=4, initializer_range=0.3)
    prompts = [encode_prompt(small_tokenizer, question) for question in QUESTIONS[:4]]
    model.config.max_position_embeddings = max(map(len, prompts)) + 2
    answers = generate(model, small_tokenizer, QUESTIONS[:4], max_new_tokens=5)
    assert [a.num_tokens for a in answers] == [5, 5, 5, 2]
    model.config.max_position_embeddings -= 2
    with pytest.raises(InputError, match="whole context"):
        generate(model, small_tokenizer, QUESTIONS[:4], max_new_tokens=5)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"batch_size": 0}])
def test_no_room(model, small_tokenizer, wrong) -> None:
    with pytest.raises(InputError, match="room"):
        generate(model, small_tokenizer, QUESTIONS, **({"max_new_tokens": 1} | wrong))


def test_conversations_that_cannot_be_rendered(
    model, small_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="empty conversation"):
        generate(model, small_tokenizer, [[]], max_new_tokens=1)
    refusing = "{{ raise_exception('roles must alternate') }}"
    monkeypatch.setattr(small_tokenizer, "chat_template", refusing)
    with pytest.raises(TemplateError, match="(?s)roles must alternate.*user"):
        generate(model, small_tokenizer, QUESTIONS[:1], max_new_tokens=1)
    monkeypatch.setattr(small_tokenizer, "chat_template", None)
    with pytest.raises(TemplateError, match="no chat template"):
        generate(model, small_tokenizer, QUESTIONS[:1], max_new_tokens=1)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_stream_is_the_answer_in_pieces(model, small_tokenizer, temperature) -> None:
    options = {"max_new_tokens": 12, "temperature": temperature, "seed": 3}
    pieces = list(stream(model, small_tokenizer, QUESTIONS[2], **options))
    (whole,) = generate(model, small_tokenizer, [QUESTIONS[2]], **options)
    assert "".join(pieces) == whole.text
    assert all(pieces)


def test_stream_that_is_left_early_leaves_the_model_as_it_was(model, small_tokenizer) -> None:
    model.train()
    pieces = stream(model, small_tokenizer, QUESTIONS[0], max_new_tokens=50)
    next(pieces)
    assert torch.is_grad_enabled()  # between pieces the caller's own work is as always
    pieces.close()
    assert model.training
