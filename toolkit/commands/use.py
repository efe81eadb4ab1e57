"""The commands that use what was trained: a talk in the terminal, and a server."""

from toolkit.commands.words import count, parser, seconds


def chat(words: list[str]) -> int:
    """`toolkit chat RUN [--stage NAME] [--system TEXT] [--feedback FILE] [--key value …]`."""
    usage = "toolkit chat RUN [--stage NAME] [--system TEXT] [--feedback FILE] [--key value …]"
    arguments = parser("chat", usage, "Talk with a finished run; keys as of stage rank.")
    arguments.add_argument("run", metavar="RUN")
    for flag in ("stage", "system", "feedback"):
        arguments.add_argument(f"--{flag}")
    parsed, rest = arguments.parse_known_args(words)
    from toolkit.stages import chat as chatting

    return chatting.chat(
        parsed.run, rest, stage=parsed.stage, system=parsed.system, feedback=parsed.feedback
    )


def serve(words: list[str]) -> int:
    """`toolkit serve RUN [--host H] [--port P] [--token_file F] [--backend vllm]`."""
    usage = (
        "toolkit serve RUN [--stage NAME] [--host 127.0.0.1] [--port 8000] [--token_file FILE]\n"
        "                     [--backend transformers|vllm] [--max_tokens N] [--max_concurrency N]\n"
        "                     [--max_queue N] [--max_body_bytes N] [--request_timeout SECONDS]\n"
        "                     [--key value …]"
    )
    arguments = parser("serve", usage, "Serve a finished run over HTTP, as OpenAI's API.")
    arguments.add_argument("run", metavar="RUN")
    for flag in ("stage", "token_file"):
        arguments.add_argument(f"--{flag}")
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--port", type=count, default=8000)
    arguments.add_argument("--backend", default="transformers")
    for flag in ("max_tokens", "max_concurrency", "max_queue", "max_body_bytes"):
        arguments.add_argument(f"--{flag}", type=count, metavar="N")
    arguments.add_argument("--request_timeout", type=seconds, metavar="SECONDS")
    parsed, rest = arguments.parse_known_args(words)
    from toolkit.stages import serve as serving

    given = {
        key: value
        for key in serving.Limits.__dataclass_fields__
        if (value := getattr(parsed, key)) is not None
    }
    return serving.serve(
        parsed.run, rest, stage=parsed.stage, host=parsed.host, port=parsed.port,
        token_file=parsed.token_file, backend=parsed.backend, limits=serving.Limits(**given),
    )  # fmt: skip
