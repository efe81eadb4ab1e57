"""The commands that use what was trained: a talk in the terminal, and a server."""

from toolkit.commands.words import RUN, count, parser, seconds
from toolkit.importing import import_at_once


def chat(words: list[str]) -> int:
    """`toolkit chat RUN [--stage NAME] [--system TEXT] [--feedback FILE] [--key value …]`."""
    usage = "toolkit chat RUN [--stage NAME] [--system TEXT] [--feedback FILE] [--key value …]"
    arguments = parser("chat", usage, "Talk with a finished run; keys as of stage rank.")
    arguments.add_argument("run", metavar="RUN", help=RUN)
    for flag, metavar, about in (
        ("stage", "NAME", "who answers; the last stage that writes answers"),
        ("system", "TEXT", "what the model is told before everything"),
        ("feedback", "FILE", "where /good and /bad go; feedback.jsonl in the run's folder"),
    ):
        arguments.add_argument(f"--{flag}", metavar=metavar, help=about)
    parsed, rest = arguments.parse_known_args(words)
    import_at_once("toolkit.stages.chat")
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
    arguments.add_argument("run", metavar="RUN", help=RUN)
    arguments.add_argument("--stage", metavar="NAME", help="serve this stage alone")
    arguments.add_argument("--host", default="127.0.0.1", help="another than this machine: a token")
    arguments.add_argument("--port", type=count, default=8000, help="8000; 0 for any that is free")
    arguments.add_argument(
        "--token_file", metavar="FILE", help="what clients have to show; or TOOLKIT_SERVE_TOKEN"
    )
    arguments.add_argument("--backend", default="transformers", help="transformers or vllm")
    for flag, about in (
        ("max_tokens", "tokens of an answer at most; 1024"),
        ("max_concurrency", "answers written at a time; 16"),
        ("max_queue", "answers that may wait; 64"),
        ("max_body_bytes", "bytes of a request at most; 1 MiB"),
    ):
        arguments.add_argument(f"--{flag}", type=count, metavar="N", help=about)
    arguments.add_argument(
        "--request_timeout", type=seconds, metavar="SECONDS", help="for a whole request; 300"
    )
    parsed, rest = arguments.parse_known_args(words)
    import_at_once("toolkit.stages.serve")
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
