"""What the floors of the house say to one another: frozen values and four protocols.

The API floor turns a dialect into a `GenerationRequest`, the swap floor decides when it runs
and on which engine, the engine floor turns it into tokens. Nothing else crosses, so each floor
is tested with the others replaced (``hotswap.scripted`` is the public stand-in for an engine).

Units are in the names: ``_s`` seconds, ``_bytes``, ``_tokens``. Times are of the monotonic
clock unless a name says ``unix``.

Nothing is here itself: each value is imported from the file of its subject.
"""
