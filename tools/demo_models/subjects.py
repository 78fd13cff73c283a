"""What a story can be about: how a user names it and how a story speaks of it."""

from dataclasses import dataclass
from random import Random

from . import words


@dataclass(frozen=True)
class Subject:
    """Something a user names.

    `asked` is the user's phrase, `first` the story's first mention of it and
    `again` the later ones; `keys` are the words by which one finds it there.
    """

    asked: str
    first: str
    again: str
    it: str
    them: str
    its: str
    keys: tuple[str, ...]
    is_theme: bool = False


@dataclass(frozen=True)
class Lexicon:
    """The words to name things with; `made_up` is the share of words that do not exist."""

    nouns: tuple[str, ...]
    names: tuple[str, ...]
    adjectives: tuple[str, ...]
    made_up: float

    def noun(self, rng: Random) -> str:
        """A noun in the singular."""
        return self._word(rng, self.nouns)

    def adjective(self, rng: Random) -> str:
        """An adjective."""
        return self._word(rng, self.adjectives)

    def name(self, rng: Random) -> str:
        """A proper name, capitalised."""
        return self._word(rng, self.names).capitalize()

    def _word(self, rng: Random, known: tuple[str, ...]) -> str:
        return words.made_up_word(rng) if rng.random() < self.made_up else rng.choice(known)


TRAINING = Lexicon(words.NOUNS, words.NAMES, words.ADJECTIVES, made_up=0.6)
HELD_OUT = Lexicon(
    words.HELD_OUT_NOUNS, words.HELD_OUT_NAMES, words.HELD_OUT_ADJECTIVES, made_up=0.1
)

_NUMBERS = ("two", "three", "four", "five", "six", "seven", "ten", "many", "some", "twelve",
            "2", "3", "10")  # fmt: skip
_TAILS = (
    "with a {adjective} {noun}", "who could not {verb}", "who wanted to {verb}", "on the {noun}",
    "in the {noun}", "who was afraid of {plural}", "from the {noun}", "who lost a {noun}",
    "that could {verb}", "in a {noun}", "who loved {plural}", "without a {noun}", "under a {noun}",
    "that found a {noun}", "made of {plural}", "who met a {noun}", "behind the {noun}",
)  # fmt: skip
_VERBS = (
    "fly", "sleep", "swim", "sing", "dance", "read", "count", "laugh", "jump", "bark", "whistle",
    "run", "draw", "cook", "speak", "shine", "hide", "fight", "write", "climb", "roar", "sneeze",
)  # fmt: skip


def pick(rng: Random, lexicon: Lexicon) -> Subject:
    """A subject of any kind, single things most often."""
    (kind,) = rng.choices(_KINDS, weights=_WEIGHTS)
    return kind(rng, lexicon)


def _phrase(rng: Random, lexicon: Lexicon, *, many: bool = False) -> str:
    noun = lexicon.noun(rng)
    if many:
        noun = words.plural(noun)
    count = rng.choice((0, 0, 0, 1, 1, 1, 1, 2))
    return " ".join([*(lexicon.adjective(rng) for _ in range(count)), noun])


def _thing(asked: str, first: str, again: str, key: str) -> Subject:
    return Subject(asked, first, again, "it", "it", "its", (key,))


def _one(rng: Random, lexicon: Lexicon) -> Subject:
    phrase = _phrase(rng, lexicon)
    first = words.with_article(phrase)
    return _thing(rng.choice((first, first, first, phrase)), first, f"the {phrase}", phrase)


def _one_with_tail(rng: Random, lexicon: Lexicon) -> Subject:
    phrase = _phrase(rng, lexicon)
    tail = rng.choice(_TAILS).format(
        adjective=lexicon.adjective(rng),
        noun=lexicon.noun(rng),
        plural=words.plural(lexicon.noun(rng)),
        verb=rng.choice(_VERBS),
    )
    first = f"{words.with_article(phrase)} {tail}"
    return _thing(first, first, f"the {phrase}", phrase)


def _known_one(rng: Random, lexicon: Lexicon) -> Subject:
    phrase = _phrase(rng, lexicon)
    return _thing(f"the {phrase}", f"the {phrase}", f"the {phrase}", phrase)


def _mine(rng: Random, lexicon: Lexicon) -> Subject:
    phrase = _phrase(rng, lexicon)
    return _thing(f"my {phrase}", f"your {phrase}", f"your {phrase}", phrase)


def _many(rng: Random, lexicon: Lexicon) -> Subject:
    phrase = _phrase(rng, lexicon, many=True)
    number = rng.choice((*_NUMBERS, "the"))
    again = f"the {phrase}" if number in ("many", "some", "the") else f"the {number} {phrase}"
    return Subject(f"{number} {phrase}", f"{number} {phrase}", again, "they", "them", "their",
                   (phrase,))  # fmt: skip


def _named(rng: Random, lexicon: Lexicon) -> Subject:
    name = lexicon.name(rng)
    if rng.random() < 0.15:
        name += f" {lexicon.name(rng)}"
    return Subject(name, name, name, name, name, f"{name}'s", (name,))


def _both(rng: Random, lexicon: Lexicon) -> Subject:
    kinds = (_one, _known_one, _named)
    one, other = (rng.choice(kinds)(rng, lexicon) for _ in range(2))
    return Subject(
        f"{one.first} and {other.first}",
        f"{one.first} and {other.first}",
        f"{one.again} and {other.again}",
        "they",
        "them",
        "their",
        one.keys + other.keys,
    )


def _theme(rng: Random, lexicon: Lexicon) -> Subject:
    """Something without an article: a plural or a matter, to be a topic, not a hero."""
    theme = (
        rng.choice(words.THEMES)
        if lexicon is TRAINING and rng.random() < 0.3
        else _phrase(rng, lexicon, many=True)
    )
    return Subject(theme, theme, theme, "", "", "", (theme,), is_theme=True)


_KINDS = (_one, _one_with_tail, _known_one, _mine, _many, _named, _both, _theme)
_WEIGHTS = (38, 10, 5, 3, 10, 12, 10, 12)


def familiar(rng: Random) -> Subject:
    """Something from the training vocabulary, for requests that name nothing."""
    return _one(rng, Lexicon(words.NOUNS, words.NAMES, words.ADJECTIVES, made_up=0.0))
