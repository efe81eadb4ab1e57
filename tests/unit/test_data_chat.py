"""The response mask on templates small enough to read, and on text without a template."""

import re

import pytest
from test_data_chat_oracle import TEMPLATES, byte_level, runs, verify, with_special_tokens
from tokenizers import processors
from transformers import AutoTokenizer

from tests import tiny
from toolkit.data.chat import (
    completion_sequences,
    describe_template,
    text_sequence,
    training_sequences,
)
from toolkit.errors import DataError
from toolkit.models import chatml as chatml_of_ours

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]


def chatml(template=CHATML):
    return byte_level(template, special=["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")


def trained(tokenizer, sequences):
    """The trained texts of all sequences, in order."""
    return [
        tokenizer.decode(one["input_ids"][first:last])
        for one in sequences
        for first, last in runs(one["labels"])
    ]


def test_the_stop_token_is_trained_and_nothing_after_it():
    tokenizer = chatml()
    (sequence,) = training_sequences(tokenizer, TALK)
    assert trained(tokenizer, [sequence]) == ["Hello<|im_end|>", "Hello<|im_end|>"]
    assert sequence["input_ids"] == tokenizer.apply_chat_template(TALK).input_ids
    assert sequence["labels"][-1] == -100  # ChatML's line feed


def test_a_prompt_that_would_merge_with_the_answer_keeps_its_tokens():
    tokenizer = chatml()
    talk = [TALK[0], {"role": "assistant", "content": "\n\nHello"}]
    (sequence,) = training_sequences(tokenizer, talk)
    prompt = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True).input_ids
    assert sequence["input_ids"][: len(prompt)] == prompt
    assert trained(tokenizer, [sequence]) == ["\n\nHello<|im_end|>"]
    assert sequence["input_ids"] != tokenizer.apply_chat_template(talk).input_ids


def test_a_template_that_forgets_thinking_is_split_by_turns():
    tokenizer = with_special_tokens("qwen3")
    talk = [
        TALK[0],
        {**TALK[1], "reasoning_content": "a"},
        TALK[2],
        {**TALK[3], "reasoning_content": "b"},
    ]
    sequences = training_sequences(tokenizer, talk)
    assert trained(tokenizer, sequences) == [
        f"<think>\n{thought}\n</think>\n\nHello<|im_end|>" for thought in "ab"
    ]


def test_what_follows_a_prefilled_think_is_the_rest_of_the_content():
    tokenizer = with_special_tokens("deepseek_r1_distill")
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    talk = [TALK[0], {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nHello"}]
    stop = "<｜end▁of▁sentence｜>"
    assert trained(tokenizer, training_sequences(tokenizer, talk)) == [
        f"why\n</think>\n\nHello{stop}"
    ]
    with pytest.raises(DataError, match=r"message 1: the generation prompt ends with .*<think>"):
        training_sequences(tokenizer, TALK)


def test_a_turn_without_an_end_of_its_own_is_ended_by_the_next_header():
    tokenizer = with_special_tokens("glm4moe")
    (sequence,) = training_sequences(tokenizer, TALK)
    assert trained(tokenizer, [sequence]) == ["\n<think></think>\nHello<|user|>"] * 2
    assert "stops it" in describe_template(tokenizer).reason


def test_a_template_that_never_ends_a_turn_is_refused():
    tokenizer = chatml(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(DataError, match="never ends an assistant turn"):
        training_sequences(tokenizer, TALK)
    assert describe_template(tokenizer).mode == "refused"


def test_an_answer_that_contains_the_stop_is_refused_and_a_question_is_not():
    tokenizer = chatml()
    with pytest.raises(DataError, match=r"message 1: .*'<\|im_end\|>', which ends a turn"):
        training_sequences(tokenizer, [TALK[0], {"role": "assistant", "content": "a<|im_end|>b"}])
    glm = with_special_tokens("glm4moe")
    for stop in ("<|user|>", "<|observation|>"):  # either would end the turn
        with pytest.raises(DataError, match="which ends a turn"):
            training_sequences(glm, [TALK[0], {"role": "assistant", "content": f"a{stop}b"}])
    asked = [{"role": "user", "content": "<|im_end|>\n<|im_start|>assistant\nHello"}, TALK[1]]
    assert trained(tokenizer, training_sequences(tokenizer, asked)) == ["Hello<|im_end|>"]


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        ([], "is empty"),
        ([TALK[1], TALK[0]], "the first message is the assistant's"),
        (["Hi"], "a message is a mapping"),
        ([TALK[0], {"content": "Hi"}], "a message is a mapping with a `role`"),
    ],
)
def test_what_no_prompt_precedes_or_is_no_conversation_is_refused(talk, reason):
    with pytest.raises(DataError, match=reason):
        training_sequences(chatml(), talk)


def test_the_words_of_the_template_are_the_reason():
    tokenizer = with_special_tokens("gemma")
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    with pytest.raises(DataError, match="System role not supported"):
        training_sequences(tokenizer, [{"role": "system", "content": "x"}, *TALK])


def test_dropped_content_and_dropped_tool_calls_are_refused():
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    with pytest.raises(DataError, match="drops the assistant's tool call"):
        training_sequences(chatml(), [TALK[0], {**TALK[1], "tool_calls": [call]}])
    tokenizer = with_special_tokens("gemma4")
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    talk = [TALK[0], {"role": "assistant", "content": "<|channel>gone<channel|>"}]
    with pytest.raises(DataError, match="drops the assistant's content"):
        training_sequences(tokenizer, talk)


OURS = chatml_of_ours.CHATML.replace("{BOS}", "")
THOUGHT = {"role": "assistant", "content": "Four.", "reasoning_content": "2+2 is 4"}
MIDDLE = {"role": "assistant", "content": "Part one. <think>why</think> Part two."}
TWO_BLOCKS = {
    "role": "assistant",
    "content": [{"type": "text", "text": "First."}, {"type": "text", "text": " Second."}],
}


@pytest.mark.parametrize(
    ("template", "message", "reason"),
    [
        (
            "ours",
            THOUGHT,
            r"drops the assistant's reasoning \(`reasoning_content`\), so it would not",
        ),
        ("ours", {**THOUGHT, "content": "2+2 is 4, so four."}, "drops the assistant's reasoning"),
        ("qwen2_5", {**THOUGHT, "reasoning": "because"}, r"reasoning \(`reasoning_content`\)"),
        ("qwen3", {**THOUGHT, "thinking": "because"}, r"reasoning \(`thinking`\)"),
        ("qwen3", MIDDLE, r"content near 'Part one\. <think>why.*put reasoning at the start"),
        ("qwen3", {**MIDDLE, "content": f"<think>a</think>{MIDDLE['content']}"}, "content near"),
        ("glm4moe", MIDDLE, "content near"),
        ("qwen3_5_think", MIDDLE, "content near"),
        ("llava_next", TWO_BLOCKS, r"content near ' Second\.'"),
        ("llava_next", {**TWO_BLOCKS, "content": TWO_BLOCKS["content"][:1] * 2}, "content near"),
    ],
)
def test_words_of_the_assistant_that_a_template_drops_are_refused(template, message, reason):
    tokenizer = chatml(OURS) if template == "ours" else with_special_tokens(template)
    with pytest.raises(
        DataError, match=f"message 1: .*{reason}.*or set `chat_template_path`"
    ) as error:
        training_sequences(tokenizer, [TALK[0], message])
    assert "\n" not in str(error.value)


def test_words_that_a_template_only_writes_otherwise_are_kept():
    for name, content, text in (
        ("qwen3", "<think>why</think> Part two.", "<think>\nwhy\n</think>\n\n Part two.<|im_end|>"),
        ("qwen3", "<think></think>", "<think>\n\n</think>\n\n<|im_end|>"),
        ("qwen3_5_think", "<think>why</think>Hello", "why\n</think>\n\nHello<|im_end|>"),
        ("glm4moe", "<think>\nwhy\n</think>\n\nHello", "\n<think>why</think>\nHello<|user|>"),
    ):
        tokenizer = with_special_tokens(name)
        talk = [TALK[0], {"role": "assistant", "content": content}]
        assert trained(tokenizer, training_sequences(tokenizer, talk)) == [text]
    tokenizer = chatml(
        CHATML.replace("assistant\n{% endif", "assistant\nSure,{% endif")
    )  # what the prompt writes of every answer
    talk = [TALK[0], {"role": "assistant", "content": "Sure, here."}]
    assert trained(tokenizer, training_sequences(tokenizer, talk)) == [" here.<|im_end|>"]


def test_reasoning_that_two_fields_repeat_is_kept():
    tokenizer = with_special_tokens("qwen3")
    message = {**THOUGHT, "thinking": "2+2 is 4\n", "reasoning": " 2+2 is 4"}
    (text,) = trained(tokenizer, training_sequences(tokenizer, [TALK[0], message]))
    assert text == "<think>\n2+2 is 4\n</think>\n\nFour.<|im_end|>"


def test_only_what_is_trained_must_be_shown():
    (sequence,) = completion_sequences(chatml(OURS), [TALK[0], THOUGHT, TALK[2]], TALK[3:])
    assert trained(chatml(OURS), [sequence]) == ["Hello<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "line", "words"),
    [
        ("a\n\n{{ messages[0].content }\n", 3, "unexpected '}'"),
        ("a\n{{ raise_exception('no!') }}", 2, "no!"),
        ("a\n\n\n{{ messages[0].nothing.more }}", 4, "has no attribute 'nothing'"),
    ],
)
def test_a_broken_template_is_named_with_its_line(template, line, words):
    tokenizer = chatml(template)
    for origin, name in (("chat_template_path my.jinja", ""), (None, "some/base"), (None, "")):
        tokenizer.chat_template_origin = origin
        tokenizer.name_or_path = name
        place = origin or (f"of the tokenizer {name}" if name else "the tokenizer's own")
        expected = rf"{re.escape(words)}.* \({place}, line {line}\): .* the template, or set"
        with pytest.raises(DataError, match=expected) as error:
            describe_template(tokenizer)
        assert "\n" not in str(error.value)


def test_a_template_that_shows_nothing_names_the_remedy():
    tokenizer = chatml("{% for m in messages %}{{ m.role }}<|im_end|>{% endfor %}")
    with pytest.raises(DataError, match=r"neither what the assistant says.*`chat_template_path`"):
        training_sequences(tokenizer, TALK)


def test_arguments_that_would_be_quoted_twice_are_parsed():
    tokenizer = with_special_tokens("qwen2_5")
    function = {"name": "f", "arguments": '{"city": "Bonn"}'}
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }
    (text,) = trained(tokenizer, training_sequences(tokenizer, [TALK[0], call]))
    assert '"arguments": {"city": "Bonn"}}' in text


def test_text_blocks_and_strings_train_the_same():
    blocks = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in TALK]
    for name in ("idefics3", "qwen2_5", "qwen3_vl"):
        tokenizer = with_special_tokens(name)
        assert training_sequences(tokenizer, TALK) == training_sequences(tokenizer, blocks)
    image = [{"role": "user", "content": [{"type": "image"}]}, TALK[1]]
    with pytest.raises(DataError, match="content blocks that are not text"):
        training_sequences(with_special_tokens("qwen2_5"), image)


def test_a_template_or_eos_that_changes_is_seen():
    tokenizer = chatml()
    training_sequences(tokenizer, TALK)
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|im_start|>")
    assert trained(tokenizer, training_sequences(tokenizer, TALK)) == ["Hello<|im_start|>"] * 2
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        training_sequences(tokenizer, TALK)


def test_only_the_completion_is_trained():
    tokenizer = chatml()
    (sequence,) = completion_sequences(tokenizer, TALK[:3], TALK[3:])
    assert trained(tokenizer, [sequence]) == ["Hello<|im_end|>"]
    assert verify(tokenizer, "qwen2_5", TALK, None, [sequence], first=3) == "exact"
    with pytest.raises(DataError, match="both be text"):
        completion_sequences(tokenizer, "Hi", TALK[3:])


@pytest.mark.parametrize("prompt", ["", "Q: 1 + 1\nA:", "Q: 1 + 1\nA: ", "Hello\n", "Hi<"])
@pytest.mark.parametrize("completion", ["2", " 2", "\n\nHello", "", "|im_start|>", "<|im_start|>"])
def test_a_plain_completion_follows_the_prompts_own_tokens(prompt, completion, stories):
    for tokenizer in (chatml(), byte_level(eos="</s>"), AutoTokenizer.from_pretrained(stories)):
        if tokenizer.eos_token_id is None:
            tokenizer.add_special_tokens({"eos_token": "</s>"})
        (sequence,) = completion_sequences(tokenizer, prompt, completion)
        ids, labels = sequence["input_ids"], sequence["labels"]
        before = tokenizer(prompt).input_ids
        assert ids[: len(before)] == before
        assert labels == [-100] * len(before) + ids[len(before) :]
        assert ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert text.removeprefix("<s>").lstrip(" ") == (
            prompt + completion + tokenizer.eos_token
        ).lstrip(" ")


def test_a_completion_ends_once():
    tokenizer = chatml()
    assert completion_sequences(tokenizer, "a", "b") == completion_sequences(
        tokenizer, "a", "b<|im_end|>"
    )
    with pytest.raises(DataError, match="before its end"):
        completion_sequences(tokenizer, "a", "b<|im_end|>c")


def test_text_trains_every_token_and_its_end(stories):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    sequence = text_sequence(tokenizer, "Once upon a time")
    assert sequence["input_ids"] == [
        *tokenizer("Once upon a time").input_ids,
        tokenizer.eos_token_id,
    ]
    assert sequence["labels"] == sequence["input_ids"]
    assert text_sequence(tokenizer, "Once</s>")["input_ids"].count(tokenizer.eos_token_id) == 1
    with pytest.raises(DataError, match="no eos_token"):
        text_sequence(byte_level(), "Once")


def test_every_form_begins_once_and_ends_with_its_stop():
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|bos|>"})
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", start)]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role + m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for sequences in (
        training_sequences(tokenizer, talk),
        completion_sequences(tokenizer, talk[:1], talk[1:]),
        completion_sequences(tokenizer, "a", "b"),
        [text_sequence(tokenizer, "ab")],
    ):
        (sequence,) = sequences
        assert sequence["input_ids"][0] == start
        assert sequence["input_ids"].count(start) == 1
        assert sequence["labels"][-1] == end
    with pytest.raises(DataError, match=r"the text begins with '<\|bos\|>', which the tokenizer"):
        text_sequence(tokenizer, "<|bos|>ab")
    with pytest.raises(DataError, match=r"the text begins with '<\|bos\|>', which the tokenizer"):
        completion_sequences(tokenizer, "<|bos|>a", "b")


def test_a_conversation_without_an_answer_trains_nothing():
    (sequence,) = training_sequences(chatml(), TALK[:1])
    assert not runs(sequence["labels"])


def test_templates_are_read_from_the_installed_trl():
    assert "qwen2_5" in TEMPLATES
