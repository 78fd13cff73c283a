from __future__ import annotations

from hotswap.engine.drawing import DrawParams, SamplingRow, seed_of_choice


def test_the_first_choice_has_the_seed_itself_and_the_others_have_their_own() -> None:
    seeds = [seed_of_choice(42, choice) for choice in range(16)]
    assert seeds[0] == 42
    assert len(set(seeds)) == 16
    assert seeds == [seed_of_choice(42, choice) for choice in range(16)]


def test_without_a_seed_each_choice_is_fresh() -> None:
    assert seed_of_choice(None, 0) != seed_of_choice(None, 0)
    assert seed_of_choice(-7, 0) == 2**64 - 7


def test_seeds_of_any_size_fit_64_bits_and_their_signed_form() -> None:
    for seed in (0, -1, 2**63, 2**64 - 1, 2**80 + 5):
        row = SamplingRow(DrawParams(), seed=seed_of_choice(seed, 0))
        assert 0 <= row.seed < 2**64
        assert -(2**63) <= row.signed_seed < 2**63


def test_tokens_are_remembered_only_where_a_penalty_needs_them() -> None:
    plain, penalised = (
        SamplingRow(DrawParams(), seed=0),
        SamplingRow(DrawParams(presence_penalty=1.0), seed=0),
    )
    for row in (plain, penalised):
        row.see_prompt([1, 2])
        row.see(3)
        row.see(3)
    assert (plain.history.ids, plain.history.touched) == ([], [])
    assert penalised.history.ids == [1, 2, 3]
    assert penalised.history.counts == [0, 0, 2]
    assert penalised.history.touched == [2, 2]
