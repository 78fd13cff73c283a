"""The generated texts that the demo models learn from."""

from random import Random

from tools.demo_models import sums, tales, words


def test_held_out_pairs_are_never_trained_on() -> None:
    training, held_out = sums.split_pairs()
    assert not set(training) & set(held_out)
    assert len(training) + len(held_out) == 5_050  # unordered pairs of 100 numbers


def test_pairs_quoted_in_answers_are_not_held_out() -> None:
    assert not sums.SHOWN_PAIRS & set(sums.split_pairs()[1])


def test_held_out_sums_are_different_and_right() -> None:
    answers = [example.answer for example in sums.held_out_examples(1_000)]
    assert len(set(answers)) == 1_000
    for answer in answers:
        a, sign, b, _, value = answer.split()
        assert int(value) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_held_out_words_are_not_in_the_training_vocabulary() -> None:
    assert not set(words.HELD_OUT_NOUNS) & {*words.NOUNS, *words.THEMES}
    assert not set(words.HELD_OUT_NAMES) & set(words.NAMES)
    assert not set(words.HELD_OUT_ADJECTIVES) & set(words.ADJECTIVES)


def test_stories_name_what_they_are_about() -> None:
    rng = Random(0)
    for _, subject in tales.held_out_requests(200):
        story = tales.tell(rng, subject)
        assert tales.names_subject(story, subject)
        assert 40 <= len(story.split()) <= 160


def test_sentences_begin_with_a_capital() -> None:
    rng = Random(1)
    for _, subject in tales.held_out_requests(100):
        for sentence in tales.tell(rng, subject).replace("\n\n", " ").split(". "):
            assert sentence[0].isupper() or sentence[0] == '"', sentence


def test_articles() -> None:
    assert words.with_article("owl") == "an owl"
    assert words.with_article("dragon") == "a dragon"
    assert words.with_article("unicorn") == "a unicorn"


def test_plurals() -> None:
    nouns = ("kitten", "fairy", "monkey", "witch", "mouse")
    plurals = ["kittens", "fairies", "monkeys", "witches", "mice"]
    assert [words.plural(noun) for noun in nouns] == plurals
