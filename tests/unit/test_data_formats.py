import pytest
from datasets import Dataset, Features, Json, List

from toolkit.data.files import read_objects
from toolkit.data.formats import to_standard
from toolkit.errors import DataError

USER = {"role": "user", "content": "2+2"}
TURN = {"role": "assistant", "content": "4"}
CHAT = [USER, TURN]


def standard(*rows, **options):
    return to_standard(read_objects(rows, "rows"), origin="rows", **options)


BROKEN = {
    "empty list": ({"messages": []}, "column 'messages': the list of messages is empty"),
    "not a list": ({"messages": {"role": "user"}}, "expected a list of messages, found an object"),
    "text": ({"messages": "hello"}, "expected a list of messages, found text"),
    "null": ({"messages": None}, "column 'messages': null or absent"),
    "not an object": ({"messages": [USER, "4"]}, "column 'messages[1]': expected an object"),
    "no role": ({"messages": [{"content": "a"}]}, "no role (keys: content)"),
    "unknown role": (
        {"messages": [USER, {"role": "asistant", "content": "4"}]},
        "column 'messages[1].role': unknown role 'asistant'; did you mean 'assistant'?",
    ),
    "another's role": ({"messages": [{"role": "human", "content": "4"}]}, "did you mean 'user'?"),
    "no assistant": ({"messages": [USER]}, "column 'messages': no assistant turn, so nothing to train"),
    "no assistant in the completion": (
        {"prompt": [USER], "completion": [{"role": "system", "content": "a"}]},
        "column 'completion': no assistant turn",
    ),
    "assistant first": (
        {"messages": [TURN, USER, TURN]},
        "column 'messages[0]': the assistant's turn comes first, and at inference a prompt precedes it",
    ),
    "assistant first in a prompt": (
        {"prompt": [TURN, USER], "completion": [TURN]}, "column 'prompt[0]': the assistant's turn comes first",
    ),
    "two users": (
        {"messages": [USER, USER, TURN]},
        "column 'messages[1]': two user turns in a row; make them one, or put the assistant's between",
    ),
    "two users over the edge": (
        {"prompt": [USER], "completion": [USER, TURN]}, "column 'completion[0]': two user turns in a row",
    ),
    "null content": (
        {"messages": [USER, {"role": "assistant", "content": None}]},
        "column 'messages[1].content': null or absent, and there is no tool call",
    ),
    "number": ({"messages": [USER, {"role": "assistant", "content": 4}]}, "expected text, found a number"),
    "only empty turns": ({"messages": [USER, {"role": "assistant", "content": " "}]}, "every assistant turn is empty"),
    "tool without call": (
        {"messages": [USER, {"role": "tool", "content": "5"}, TURN]},
        "column 'messages[1]': a tool's result without an assistant turn",
    ),
    "half a pair": ({"messages": [USER, {"role": "assistant", "content": "\ud83d"}]}, "surrogate pair"),
    "prompt only": ({"prompt": "a"}, "prompt without completion"),
    "empty completion": ({"prompt": "a", "completion": " "}, "column 'completion': the text is empty"),
    "one is a list": ({"prompt": "a", "completion": [TURN]}, "both are text, or both lists"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, TURN]},
        "column 'messages[0].content[0]': expected {\"type\": \"text\", \"text\": …}, found 'image'",
    ),
    "block without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}, TURN]},
        "column 'messages[0].content[0].text': expected text, found null",
    ),
    "role is a list": ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown role ['user']"),
    "from is a list": ({"conversations": [{"from": ["human"], "value": "a"}]}, "unknown role ['human']"),
    "json text": ({"messages": "[{'role': 'user'}]"}, "the text is no JSON list: Expecting property name"),
    "half a pair in json text": (
        {"messages": '[{"role": "assistant", "content": "a", "x": "\\ud83d"}]'}, "surrogate pair",
    ),
    "tool is text": ({"messages": CHAT, "tools": ["search"]}, "column 'tools[0]': expected an object, found text"),
    "calls are text": (
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": ["a"]}]},
        "column 'messages[1].tool_calls': expected a list of objects",
    ),
    "old call": (
        {"messages": [USER, {"role": "assistant", "content": "", "function_call": {"name": "f"}}]},
        "column 'messages[1].function_call': the old form of a tool call, which chat templates drop; write it as tool_calls",
    ),
    "sharegpt call": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{"}]},
        "column 'conversations[1].value': the tool call is not JSON",
    ),
    "history": ({"instruction": "a", "output": "b", "history": [["x"]]}, "column 'history': expected pairs"),
    "history that is no list": ({"instruction": "a", "output": "b", "history": True}, "column 'history': expected pairs"),
    "empty text": ({"text": ""}, "column 'text': the text is empty"),
    "text is a number": ({"text": 5}, "column 'text': expected text, found a number"),
    "preferences": ({"chosen": "a", "rejected": "b"}, "stage reward or dpo"),
    "bare messages": ({"role": "user", "content": "a"}, "each row is one message; put the messages"),
    "unknown columns": ({"foo": 1}, "found the columns foo"),
    "tokens": ({"input_ids": [1]}, "the rows are tokens already"),
    "tools": ({"messages": CHAT, "tools": {"a": 1}}, "column 'tools': expected a list of tools"),
    "sharegpt role": ({"conversations": [{"from": "gtp", "value": "a"}]}, "unknown role 'gtp'; did you mean 'assistant'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_row_names_row_column_and_rule(name: str):
    broken, expected = BROKEN[name]
    good = {"messages": {"messages": CHAT}, "text": {"text": "a"}}.get(next(iter(broken)))
    rows = [good, broken] if good else [broken]
    with pytest.raises(DataError) as error:
        standard(*rows)
    assert expected in str(error.value)
    if "column '" in str(error.value):
        assert f"rows, row {len(rows)}, " in str(error.value)


def test_every_row_decides_not_the_first():
    rows = [{"messages": CHAT}, {"messages": CHAT}, {"text": "a"}]
    with pytest.raises(
        DataError, match=r"row 3, .*null, but there is text; the data set is read as messages"
    ):
        standard(*rows)
    with pytest.raises(DataError, match=r"row 1, column 'prompt': null, but there is text"):
        standard({"text": "a"}, {"prompt": "a", "completion": "b"})


def test_standard_forms_pass_unchanged():
    rows, form, notes = standard({"messages": CHAT, "id": 7}, {"messages": [USER, TURN, TURN]})
    assert (rows[0]["messages"], form, notes) == (CHAT, "messages", ["rows: not used: id"])
    assert rows.column_names == ["messages", "dataset", "source", "row"]
    rows, form, notes = standard({"prompt": "", "completion": "b"})
    assert (rows[0]["completion"], form, notes) == ("b", "prompt_completion", [])
    rows, form, _ = standard({"prompt": [USER], "completion": [TURN]})
    assert (rows[0]["prompt"], rows[0]["completion"], form) == ([USER], [TURN], "prompt_completion")
    rows, form, _ = standard({"text": " a "})
    assert (rows[0]["text"], form) == (" a ", "text")


def test_text_field_is_read_where_trl_reads_it():
    rows, form, _ = standard(
        {"body": "a", "text": "b", "question": "c", "answer": "d"}, text_field="body"
    )
    assert (rows[0]["text"], form) == ("a", "text")
    assert standard({"messages": CHAT, "text": "a"}, text_field="text")[1] == "messages"
    with pytest.raises(DataError, match=r"there is no column 'body'.*; found text"):
        standard({"text": "a"}, text_field="body")


def test_text_and_messages_in_one_column_are_refused():
    chat = {"prompt": [USER], "completion": [TURN]}
    with pytest.raises(
        DataError, match=r"row 2, column 'prompt': text, but other rows have a list"
    ):
        standard(chat, {"prompt": "a", "completion": "b"})


def test_a_completion_may_begin_with_the_result_of_a_call_in_the_prompt():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    completion = [{"role": "tool", "content": "4"}, TURN]
    rows, _, _ = standard({"prompt": [USER, call], "completion": completion})
    assert rows[0]["completion"] == completion


def test_tools_beside_texts_are_said_to_be_unused():
    rows, _, notes = standard({"prompt": "a", "completion": "b", "tools": [{"name": "f"}]})
    assert "tools" not in rows.column_names
    assert notes == ["rows: not used: tools"]


def test_keys_of_one_message_do_not_appear_in_another():
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": None}}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call], "name": None}
    rows, _, _ = standard({"messages": CHAT}, {"messages": [USER, calling]})
    assert rows[0]["messages"] == CHAT
    assert rows[1]["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [call]}


def test_json_inside_lists_is_read():
    features = Features({"messages": List(Json())})
    chat = [USER, {**TURN, "reasoning_content": None}]
    rows, _, _ = to_standard(Dataset.from_dict({"messages": [chat]}, features=features), origin="x")
    assert rows[0]["messages"] == CHAT


def test_names_in_messages_stay_on_one_line():
    with pytest.raises(DataError) as error:
        standard({"a\nstage: evaluate\x1b[2J": 1})
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


def test_sharegpt():
    call = '{"name": "add", "arguments": {"a": 2}}'
    rows, form, notes = standard(
        {
            "system": "be brief",
            "conversations": [
                {"from": "human", "value": "2+2"},
                {"from": "function_call", "value": call},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "four"},
            ],
        }
    )
    messages = rows[0]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[2]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 2}}
    assert (form, notes) == ("messages", ["rows: conversations read as messages"])


def test_alpaca():
    rows, form, notes = standard(
        {"instruction": "add", "input": "2 2", "output": "4", "text": "whole"},
        {"instruction": "say", "input": "", "output": "b", "text": "whole"},
    )
    assert form == "messages"
    assert [m["content"] for m in rows[0]["messages"]] == ["add\n\n2 2", "4"]
    assert [m["content"] for m in rows[1]["messages"]] == ["say", "b"]
    assert "instruction and input → user, output → assistant" in notes[0]
    assert notes[1] == "rows: not used: text"


def test_alpaca_with_system_and_history():
    rows, _, _ = standard(
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
    )
    spoken = [(m["role"], m["content"]) for m in rows[0]["messages"]]
    assert spoken == [
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"),
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [("question", "answer"), ("problem", "solution")])
def test_question_and_answer(columns: tuple[str, str]):
    rows, form, notes = standard(dict(zip(columns, ("2+2", "4"), strict=True)))
    assert (rows[0]["messages"], form) == (CHAT, "messages")
    assert f"{columns[0]} → user, {columns[1]} → assistant" in notes[0]


def test_arguments_that_arrow_merged_lose_the_nulls_and_others_keep_them():
    def calling(name, arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}

    rows = [calling("add", {"a": 1}), calling("find", {"word": "x"})]
    merged = Dataset.from_list(rows)
    assert merged[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {
        "a": 1,
        "word": None,
    }
    found, _, _ = to_standard(merged, origin="rows")
    read = [m[1]["tool_calls"][0]["function"]["arguments"] for m in found["messages"]]
    assert read == [{"a": 1}, {"word": "x"}]
    kept, _, _ = standard(calling("add", {"a": None}))
    assert kept[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": None}


def test_numbers_in_arguments_keep_every_digit():
    from toolkit.data.columns import exact_columns

    exact = {"pi": 3.141592653589793, "small": 1e-12, "large": 2**70}
    call = {"type": "function", "function": {"name": "add", "arguments": exact}}
    rows, _, _ = standard(
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    )
    read = exact_columns(rows.with_format("arrow")[:])["messages"][0][1]["tool_calls"]
    assert read == [call]


def test_tools_and_messages_as_json_text():
    rows, _, _ = standard({"messages": '[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]',
                           "tools": '[{"type": "function"}]'}, {"messages": CHAT, "tools": None})  # fmt: skip
    assert rows[0]["messages"][1] == {"role": "assistant", "content": "b"}
    assert rows["tools"][:] == [[{"type": "function"}], None]


def test_a_tool_called_in_words_may_answer():
    messages = [
        USER,
        {"role": "assistant", "content": "<tool_call>"},
        {"role": "tool", "content": "4"},
        TURN,
    ]
    assert standard({"messages": messages})[0][0]["messages"] == messages
