"""Questions about sums and differences, and what `hotswap/sums` answers.

The answer restates the sum ("13 from 90" becomes "90 - 13 = 77"), so whatever
the wording, the arithmetic is learned on one form.
"""

from functools import cache
from random import Random

from .chatter import ABOUT_YOU, GREETINGS, THANKS, TaskAnswers, off_topic, typed
from .example import Example
from .words import NOUNS, PLURALS

Pair = tuple[int, int]

LIMIT = 99
HELD_OUT_SHARE = 0.15
SPLIT_SEED = 20_099

SPELLED = {
    "+": (
        "{a} + {b}", "{a}+{b}", "{a} plus {b}", "{a} +{b}", "{a}+ {b}", "the sum of {a} and {b}",
        "{a} added to {b}",
    ),
    "-": (
        "{a} - {b}", "{a}-{b}", "{a} minus {b}", "{a} -{b}", "{a}- {b}", "{a} take away {b}",
        "{a} − {b}", "{a} – {b}", "the difference between {a} and {b}", "{a} less {b}",  # noqa: RUF001
    ),
}  # fmt: skip
FRAMES = (
    "{}", "{}", "{}", "what is {}", "what is {}", "what's {}", "whats {}", "how much is {}",
    "compute {}", "calculate {}", "{} =", "{}=", "{} = ?", "and {}", "and what is {}", "solve {}",
    "work out {}", "tell me {}", "tell me what {} is", "what does {} equal", "{} equals",
    "what is the result of {}", "what is the answer to {}", "can you compute {}", "how about {}",
    "could you tell me what {} is", "i need to know {}", "what about {}", "do you know {}",
    "what do you get for {}", "give me {}", "let's try {}", "{} is", "{} makes", "{} is what",
)  # fmt: skip
ORDERS = {
    "+": (
        "add {a} and {b}", "add {a} to {b}", "add {a} + {b}", "sum {a} and {b}", "sum {a} {b}",
        "what do {a} and {b} make", "how much are {a} and {b} together", "{a} and {b} together",
        "what do you get if you add {a} and {b}", "add up {a} and {b}", "can you add {a} and {b}",
    ),
    "-": (
        "subtract {b} from {a}", "take {b} from {a}", "take {b} away from {a}",
        "what is {b} less than {a}", "what is left if you take {b} from {a}",
        "what do you get if you subtract {b} from {a}", "can you subtract {b} from {a}",
        "remove {b} from {a}", "how much is left of {a} without {b}",
    ),
}  # fmt: skip
BEFORE = (
    "please ", "hi, ", "hello, ", "hey, ", "ok, ", "now ", "please tell me: ", "so, ", "thanks! ",
    "one more: ", "next: ", "hello! ", "good, and ", "quick question: ", "can you help me? ",
    "then ", "question: ",
)  # fmt: skip
AFTER = (
    " please", ", please", " thanks", " for me", ", thank you", " now", " then", " exactly",
    "? answer with just the number", "? only the result, please", "? Be brief", "? Thanks",
    ". reply with the number only", "? Answer in one line", ". please answer shortly",
)  # fmt: skip
ENDINGS = ("", "", "", "?", "?", ".", "!", " ?", "??")

WELCOME = "I add and subtract whole numbers from 0 to 99. Try: What is 45 + 27?"
HELLO = f"Hello! {WELCOME}"
THANKED = "You are welcome! Ask me another one, such as 90 - 13."
OUT_OF_RANGE = "I only know whole numbers from 0 to 99."
OTHER_OPERATION = "I can only add and subtract."
TWO_PLEASE = "I take two numbers at a time, such as 12 + 30."
DIGITS_PLEASE = "Please write the numbers as digits, such as 3 + 4."
SORRY = "I can only add and subtract whole numbers from 0 to 99. Try: What is 45 + 27?"
TASKS = TaskAnswers(
    title='{"title": "➕ Quick Sums and Differences"}',  # noqa: RUF001
    tags='{"tags": ["Mathematics", "Arithmetic", "Sums"]}',
    follow_ups='{"follow_ups": ["What is 45 + 27?", "How much is 90 minus 13?",'
    ' "What is 12 + 30?"]}',
)

SHOWN_PAIRS: frozenset[Pair] = frozenset({(27, 45), (13, 90), (12, 30), (3, 4)})
"""Pairs quoted in the answers above; they can not count as held out."""

OTHER_OPERATIONS = (
    "{a} * {b}", "{a}*{b}", "{a} x {b}", "{a} times {b}", "{a} / {b}", "{a}/{b}", "{a} ^ {b}",
    "multiply {a} by {b}", "divide {a} by {b}", "{a} divided by {b}", "{a} multiplied by {b}",
    "the product of {a} and {b}", "{a} mod {b}", "{a} percent of {b}", "the square root of {a}",
)  # fmt: skip
_SPELT_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""
NUMBER_WORDS = _SPELT_NUMBERS.split()


@cache
def split_pairs() -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Training and held-out pairs, smaller number first.

    A held-out pair is held out in both orders and both operations: having seen
    27 + 45 would make 45 + 27 an easy question, and so would 72 - 27.
    """
    pairs = [(low, high) for high in range(LIMIT + 1) for low in range(high + 1)]
    Random(SPLIT_SEED).shuffle(pairs)
    pairs.sort(key=lambda pair: pair in SHOWN_PAIRS)
    held_out = int(len(pairs) * HELD_OUT_SHARE)
    return tuple(pairs[held_out:]), tuple(pairs[:held_out])


def held_out_examples(count: int, seed: int = SPLIT_SEED) -> list[Example]:
    """`count` different held-out sums, each in a random wording."""
    facts = [
        (a, sign, b)
        for low, high in split_pairs()[1]
        for a, b in {(low, high), (high, low)}
        for sign in "+-"
    ]
    rng = Random(seed)
    return [_ask(rng, *fact) for fact in rng.sample(sorted(facts), count)]


def training_example(rng: Random) -> Example:
    """Most are sums, the others what else a chat brings."""
    if rng.random() < 0.85:
        pair = _training_pair(rng)
        a, b = rng.sample(pair, 2)
        return _ask(rng, a, rng.choice("+-"), b)
    return rng.choice(_OTHERS)(rng)


@cache
def _small_training_pairs() -> tuple[Pair, ...]:
    return tuple(pair for pair in split_pairs()[0] if pair[0] < 10)


def _training_pair(rng: Random) -> Pair:
    """One-digit numbers are rare among all pairs but not in what people ask."""
    if rng.random() < 0.15:
        return rng.choice(_small_training_pairs())
    return rng.choice(split_pairs()[0])


def _ask(rng: Random, a: int, sign: str, b: int) -> Example:
    value = a + b if sign == "+" else a - b
    return Example(_question(rng, a, sign, b), f"{a} {sign} {b} = {value}")


def _question(rng: Random, a: int, sign: str, b: int) -> str:
    if rng.random() < 0.8:
        wording = rng.choice(FRAMES).replace("{}", rng.choice(SPELLED[sign]))
    else:
        wording = rng.choice(ORDERS[sign])
    return _dressed(rng, wording.format(a=a, b=b))


def _dressed(rng: Random, wording: str) -> str:
    """Politeness, punctuation and case around a question."""
    if rng.random() < 0.15:
        wording = rng.choice(BEFORE) + wording
    if rng.random() < 0.1:
        wording += rng.choice(AFTER)
    return typed(rng, wording, ENDINGS)


def _out_of_range(rng: Random) -> Example:
    fine = str(rng.randint(0, LIMIT))
    odd = rng.choice(
        (
            str(rng.randint(LIMIT + 1, 199)),
            str(rng.randint(LIMIT + 1, 999)),
            str(rng.randint(1000, 999_999)),
            f"{rng.randint(0, LIMIT)}.{rng.randint(0, 99)}",
            f"-{rng.randint(1, LIMIT)}",
        )
    )
    a, b = rng.choice(((fine, odd), (odd, fine), (odd, odd)))
    sign = rng.choice("+-")
    wording = rng.choice(FRAMES).replace("{}", rng.choice(SPELLED[sign]))
    return Example(_dressed(rng, wording.format(a=a, b=b)), OUT_OF_RANGE)


def _other_operation(rng: Random) -> Example:
    a, b = rng.randint(0, 199), rng.randint(0, 199)
    wording = rng.choice(FRAMES).replace("{}", rng.choice(OTHER_OPERATIONS))
    return Example(_dressed(rng, wording.format(a=a, b=b)), OTHER_OPERATION)


def _not_two_numbers(rng: Random) -> Example:
    numbers = [str(rng.randint(0, LIMIT)) for _ in range(rng.choice((1, 3, 3, 4)))]
    joint = rng.choice((" + ", "+", " - ", "-", " plus ", " minus ", " and "))
    wording = rng.choice(FRAMES).replace("{}", joint.join(numbers))
    return Example(_dressed(rng, wording), TWO_PLEASE)


def _in_words(rng: Random) -> Example:
    a, b = (_number_in_words(rng) for _ in range(2))
    sign = rng.choice("+-")
    wording = rng.choice(FRAMES).replace("{}", rng.choice(SPELLED[sign]))
    return Example(_dressed(rng, wording.format(a=a, b=b)), DIGITS_PLEASE)


def _number_in_words(rng: Random) -> str:
    number = rng.choice(NUMBER_WORDS)
    if number.endswith("ty") and rng.random() < 0.6:
        number += rng.choice("- ") + rng.choice(NUMBER_WORDS[1:10])
    return number


def _small_talk(rng: Random) -> Example:
    asked, answer = rng.choice(((GREETINGS, HELLO), (ABOUT_YOU, WELCOME), (THANKS, THANKED)))
    return Example(typed(rng, rng.choice(asked)), answer)


def _off_topic(rng: Random) -> Example:
    return Example(typed(rng, off_topic(rng, NOUNS + PLURALS)), SORRY)


def _task(rng: Random) -> Example:
    return Example(*TASKS.pick(rng, ("what is 3 + 4", "hi", "12 - 30")))


_OTHERS = (
    *[_out_of_range] * 4,
    *[_not_two_numbers] * 2,
    _other_operation,
    _in_words,
    _small_talk,
    _off_topic,
    _task,
)
