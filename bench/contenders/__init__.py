"""What can generate tokens from a checkpoint without HTTP, a module each, behind the same tasks.

Each module offers `contend`, a context manager that yields some of these tasks:

``generate(prompts, new_tokens)``
    ``seconds`` from the first prompt handed over to the last token.
``prefill(prompt)``
    ``seconds`` of one bare forward of a prompt, up to the likeliest next token.
``interrupt(prompt, new_tokens, intruder)``
    Gaps between the tokens of a running answer: ``quiet_s`` before and ``gaps_s`` while another
    prompt is computed, and ``step_tokens_beside``: tokens of a step that others decode in, at most.
``read()``
    ``seconds`` to read as many bytes as a step reads weights.

Prompts are lists of token ids. All decode greedily, and past every token that ends an answer.
"""
