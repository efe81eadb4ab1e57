"""What the chat template does to training: exact or split, its stop token, and its prompt."""

from toolkit.data.chat import describe_template, training_sequences
from toolkit.preflight.look import Look

SUBJECT = "template"
ASKED = {"role": "user", "content": "How many letters are in the word seven?"}
SAID = {"role": "assistant", "content": "Five."}


def check(look: Look) -> None:
    """Render two turns by the stage's template, and compare with what inference would see."""
    tokenizer, rows = look.tokenizer, look.rows
    if tokenizer is None or rows is None or not rows.conversational:
        return
    found = describe_template(tokenizer)
    look.note(SUBJECT, mode=found.mode, stop=found.stop, prefill=found.prefill, reason=found.reason)
    if found.mode == "refused":
        look.error(
            SUBJECT, f"no conversation can be trained with it: {found.reason}",
            "set chat_template_path to a template that renders an answer as the model wrote it", 4,
        )  # fmt: skip
        return
    words = {
        "exact": "inference-exact: one sequence shows every turn what inference shows it",
        "split": "split: a turn looks otherwise once others follow it, so each is a sequence",
    }
    line = words[found.mode] + (f" ({found.reason})" if found.reason else "")
    (look.ok if found.mode == "exact" else look.warn)(SUBJECT, line)
    stops(look, found.stop)
    if not found.prefill:
        agrees(look)
    else:
        look.ok(
            SUBJECT, f"the generation prompt opens the answer with {found.prefill!r}, not trained"
        )


def stops(look: Look, stop: str) -> None:
    """Whether the token that ends a turn is trained, and ends a generation."""
    assert look.tokenizer is not None
    token = look.tokenizer.get_vocab().get(stop)
    if token is None:
        look.warn(
            SUBJECT, f"a turn ends with {stop!r}, which is several tokens: generation cannot stop at "
            "it", "use a template whose turns end with one special token",
        )  # fmt: skip
    elif token == look.tokenizer.pad_token_id:
        look.error(
            SUBJECT, f"the stop token {stop} is the padding, which no loss sees", "set pad_token", 4
        )
    else:
        look.ok(SUBJECT, f"stop token {stop}: the last trained token of every turn")


def agrees(look: Look) -> None:
    """Whether what precedes an answer in training is what generation begins with."""
    assert look.tokenizer is not None
    prompt = look.tokenizer.apply_chat_template([ASKED], add_generation_prompt=True, tokenize=False)
    ids = look.tokenizer(str(prompt), add_special_tokens=False).input_ids
    (trained,) = training_sequences(look.tokenizer, [ASKED, SAID])
    before = trained["input_ids"][: next(
        at for at, label in enumerate(trained["labels"]) if label != -100
    )]  # fmt: skip
    if before == ids:
        look.ok(
            SUBJECT, f"generation prompt: its {len(ids)} tokens are those before a trained answer"
        )
    else:
        look.error(
            SUBJECT, "generation begins otherwise than a trained answer does: "
            f"{look.tokenizer.decode(ids[-8:])!r} against {look.tokenizer.decode(before[-8:])!r}",
            "mend the template's add_generation_prompt", 4,
        )  # fmt: skip
