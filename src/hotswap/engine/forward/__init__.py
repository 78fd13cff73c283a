"""From token ids to logits: one interface, several tiers, the fastest one that is exact.

Tier A (`flat`) runs the whole step as one flat batch through transformers' attention interface;
tier B (`cached`) runs one forward per sequence with transformers' own cache. `choose` finds out
which of them computes what the plain model computes.
"""
