"""Chat completions over HTTP in OpenAI's format, from one base and its adapters.

`guard` looks at who asks, `asked` at what is asked, `scheduler` has it written, `answers` puts it
into words, `app` holds these together. Read from https://platform.openai.com/docs/api-reference/chat.
"""
