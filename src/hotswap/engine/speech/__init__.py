"""What a model says in a chat, taken apart: its reasoning, its text and its tool calls. Text in,
pieces out; no torch, no tokens.

`hotswap.engine.speech.families` tells from a chat template how a model speaks, and a `Listener`
listens to one answer. Everything is read once and in order, so the time for a text grows with its
length, whatever is in it; and what begins like a call and turns out to be none is given out as the
text that it is.
"""
