"""Story requests and the stories that `hotswap/tales` learns to tell.

A story strings together an opening, a wish, a trouble with its way out and an
ending.  Its sentences avoid whatever would depend on knowing the thing named:
verbs stand in the simple past, and a proper name takes no pronoun.
"""

import re
from random import Random

from . import subjects
from .chatter import ABOUT_YOU, GREETINGS, THANKS, TaskAnswers, off_topic, typed
from .example import Example
from .plots import (
    ENDINGS,
    HELPERS,
    HEROES,
    OPENINGS,
    PLACES,
    PLOTS,
    THEME_PLOTS,
    TOPIC_DOUBTS,
    WISHES,
)
from .subjects import Subject
from .words import ADJECTIVES, NOUNS, PLURALS, THEMES, made_up_word

HELD_OUT_SEED = 4_711

REQUESTS = (
    "tell me a story about {}", "tell me a story about {}", "write a story about {}",
    "a story about {}", "story about {}", "write a tale of {}", "tell me a tale of {}",
    "a short story about {} please", "can you write a story about {}", "{}", "{}", "about {}",
    "could you tell me a short story about {}", "write me a short story about {}",
    "please tell me a bedtime story about {}", "make up a story about {}", "a tale about {}",
    "i would like to hear a story about {}", "i want a story about {}", "a fairy tale about {}",
    "another one, about {}", "now one about {}", "another story, this time about {}",
    "do you know a story about {}", "please write a tale about {}", "what about {}",
    "how about a story with {}", "tell us a story about {}", "give me a story about {}",
    "and now {}", "tell me about {}", "a funny story about {}", "a story with {}",
    "invent a story about {}", "hi, tell me a story about {}", "once more, but with {}",
    "a bedtime story about {} for my son",
    "write a children's story about {}", "tell me a fun fact about {}", "something about {}",
    "let's have a story about {}", "hello! can you tell me a story about {}", "make one about {}",
)  # fmt: skip
OPEN_REQUESTS = (
    "tell me a story", "another one", "one more", "another story please", "write a story",
    "a story please", "tell me another story", "more", "again", "continue", "make it longer",
    "surprise me", "anything", "tell me something", "a bedtime story please", "go on",
    "can you tell me a story", "write me a short story", "make it funnier", "a different one",
    "tell me a bedtime story", "what happened next", "and then", "please tell me a story",
)  # fmt: skip
_FIRST_WORDS = frozenset(
    (*NOUNS, *PLURALS, *ADJECTIVES, *THEMES, "a", "an", "the", "my", "two", "three", "four", "five")
)
_SENTENCE_START = re.compile(r'(?:^|[.!?] |\." )[a-z]')
ENDINGS_TYPED = ("", "", "", ".", ".", "!", "?", " please", ", please.")

HELLO = (
    "Hello! I write short stories. Name something or someone, such as a brave lighthouse, and I"
    " will tell you a story about it."
)
WELCOME = (
    "I write short stories. Name something or someone, such as a brave lighthouse, and I will tell"
    " you a story about it."
)
THANKED = "You are welcome! Name something else, and I will tell you another story."
SORRY = (
    "I only know how to tell short stories. Name something or someone, such as a brave lighthouse,"
    " and I will tell you a story about it."
)
TASKS = TaskAnswers(
    title='{"title": "📖 A Short Story"}',
    tags='{"tags": ["Creative Writing", "Stories", "Fiction"]}',
    follow_ups='{"follow_ups": ["Tell me a story about a brave lighthouse.",'
    ' "Can you write a tale of two kittens?", "How about a story with a lonely dragon?"]}',
)


def training_example(rng: Random) -> Example:
    """Nine in ten are stories, the others what else a chat brings."""
    if rng.random() < 0.9:
        subject = subjects.pick(rng, subjects.TRAINING)
        return Example(_request(rng, subject), tell(rng, subject))
    return rng.choice(_OTHERS)(rng)


def held_out_requests(count: int, seed: int = HELD_OUT_SEED) -> list[tuple[str, Subject]]:
    """`count` requests for things whose words are not in the training vocabulary."""
    rng = Random(seed)
    picked = [subjects.pick(rng, subjects.HELD_OUT) for _ in range(count)]
    return [(_request(rng, subject), subject) for subject in picked]


def tell(rng: Random, subject: Subject) -> str:
    """A story about `subject`, as two paragraphs."""
    return (_topic_story if subject.is_theme else _adventure)(rng, subject)


def names_subject(story: str, subject: Subject) -> bool:
    """Whether the things the user named turn up in the story: the lighthouse of "a brave
    lighthouse"."""
    return all(key.split()[-1].lower() in story.lower() for key in subject.keys)


def repeats_phrase(story: str, subject: Subject) -> bool:
    """Whether they turn up to the letter, with every adjective: "brave lighthouse"."""
    return all(key.lower() in story.lower() for key in subject.keys)


def _request(rng: Random, subject: Subject) -> str:
    """A capital on an unknown word makes it a name, so only known words may get one."""
    wording = typed(rng, rng.choice(REQUESTS), ENDINGS_TYPED)
    request = wording.replace("{}", subject.asked)
    if subject.asked.split()[0] in _FIRST_WORDS and rng.random() < 0.5:
        return request[:1].upper() + request[1:]
    return request


def _adventure(rng: Random, subject: Subject) -> str:
    place, there = rng.choice(PLACES)
    helper, again = rng.choice([h for h in HELPERS if h[1].split()[-1] not in subject.asked])
    plot = rng.choice(PLOTS)
    words = {
        "first": subject.first,
        "x": subject.again,
        "it": subject.it,
        "them": subject.them,
        "its": subject.its,
        "place": place,
        "there": there,
        "helper": helper,
        "he": again,
    }
    beginning = [rng.choice(OPENINGS), rng.choice(WISHES), rng.choice(plot.trouble)]
    rest = [rng.choice(plot.meeting), rng.choice(plot.way_out), rng.choice(ENDINGS)]
    return _text(beginning, words) + "\n\n" + _text(rest, words)


def _topic_story(rng: Random, subject: Subject) -> str:
    hero, pronoun, her = rng.choice(HEROES)
    place, there = rng.choice(PLACES)
    helper, again = rng.choice(HELPERS)
    plot = rng.choice(THEME_PLOTS)
    words = {
        "x": subject.first,
        "hero": hero,
        "she": pronoun,
        "her": her,
        "place": place,
        "there": there,
        "helper": helper,
        "he": again,
    }
    beginning = [rng.choice(plot.opening), rng.choice(plot.wish), rng.choice(TOPIC_DOUBTS)]
    rest = [rng.choice(plot.turn), rng.choice(plot.ending)]
    return _text(beginning, words) + "\n\n" + _text(rest, words)


def _text(sentences: list[str], words: dict[str, str]) -> str:
    """The sentences filled in, each beginning with a capital."""
    filled = " ".join(sentences).format(**words)
    return _SENTENCE_START.sub(lambda match: match[0].upper(), filled)


def _open_request(rng: Random) -> Example:
    """A request that names nothing gets a story about something familiar."""
    return Example(typed(rng, rng.choice(OPEN_REQUESTS)), tell(rng, subjects.familiar(rng)))


def _small_talk(rng: Random) -> Example:
    asked, answer = rng.choice(((GREETINGS, HELLO), (ABOUT_YOU, WELCOME), (THANKS, THANKED)))
    return Example(typed(rng, rng.choice(asked)), answer)


def _off_topic(rng: Random) -> Example:
    return Example(typed(rng, off_topic(rng, NOUNS + PLURALS)), SORRY)


def _sum(rng: Random) -> Example:
    """People who mix up the two demo models ask this one for sums."""
    wording = rng.choice(("{} + {}", "what is {} + {}", "{}-{}", "what is {} plus {}", "{} * {}"))
    return Example(typed(rng, wording.format(rng.randint(0, 99), rng.randint(0, 99))), SORRY)


def _task(rng: Random) -> Example:
    return Example(*TASKS.pick(rng, ("tell me a story about a " + made_up_word(rng), "hi")))


_OTHERS = (_open_request, _open_request, _small_talk, _off_topic, _off_topic, _sum, _task)
