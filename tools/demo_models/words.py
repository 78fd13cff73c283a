"""The vocabulary of the generated texts, and words that do not exist.

Made-up words stand in for everything a user may name that is not listed here:
only by meeting new words all the time does a model learn to copy one.
"""

from random import Random

_ANIMALS = """
dragon kitten puppy fox owl bear rabbit mouse horse donkey elephant lion tiger wolf hedgehog
squirrel frog toad duck goose swan penguin whale dolphin shark crab snail turtle spider ant bee
butterfly moth beetle parrot crow sparrow eagle cat dog cow pig sheep goat lamb deer camel giraffe
zebra monkey kangaroo koala panda badger otter beaver hamster dinosaur unicorn
"""
_PEOPLE = """
knight princess prince king queen wizard witch pirate sailor baker farmer teacher doctor pilot
gardener painter singer dancer clown giant dwarf elf fairy ghost monster robot astronaut fisherman
shepherd postman inventor detective explorer child girl boy grandmother grandfather musician
mermaid troll soldier cook tailor
"""
_THINGS = """
lighthouse boat ship train car bus bicycle airplane rocket balloon kite lamp lantern candle clock
teapot cup spoon book pencil letter key door window chair table pillow blanket hat shoe sock coat
umbrella mirror drum violin piano trumpet bell ball doll toy house castle tower bridge garden tree
flower rose mushroom pumpkin apple pear potato carrot cake cookie pancake sandwich stone mountain
river lake island cloud star moon planet comet snowman snowflake raindrop shadow computer camera
telescope map coin treasure ring crown sword tent broom bucket rope ladder wheel tractor windmill
scarecrow suitcase radio
"""
_GIVEN_NAMES = """
Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olivia Paul Rosa Sam Sofia
Theo Uma Victor Wendy Xaver Yara Zoe Max Lena Oscar Ella Luke Alice Peter Julia Martin Lucy George
Hannah Simon Eva Daniel Laura Adam Sarah Thomas Nina Robert Elsa Hugo Iris Jonas Karl Lily Mila
Otto Pia Rex Stella Tim Vera Bella Charlie Rocky Luna
"""
_ADJECTIVES = """
brave little big tiny lonely happy sad shy clever funny old young quiet loud lazy sleepy hungry
curious kind grumpy golden silver red blue green yellow purple white black magic broken lost wild
gentle proud silly strange friendly forgetful round fat thin tall short wooden flying talking
singing dancing invisible secret wise cheerful nervous patient fluffy rusty shiny noisy careful
"""
_THEMES = """
courage friendship love music autumn winter spring summer rain snow space magic time football chess
school homework breakfast chocolate bread cheese honesty patience kindness hope freedom luck sleep
thunder lightning fog sunshine moonlight water fire ice gold science art poetry cooking gardening
swimming painting christmas birthdays dreams stars maths history geography coffee tea homesickness
"""

NOUNS: tuple[str, ...] = tuple((_ANIMALS + _PEOPLE + _THINGS).split())
NAMES: tuple[str, ...] = tuple(_GIVEN_NAMES.split())
ADJECTIVES: tuple[str, ...] = tuple(_ADJECTIVES.split())
THEMES: tuple[str, ...] = tuple(_THEMES.split())

_HELD_OUT_NOUNS = """
accordion alligator armchair avocado barber biscuit blacksmith bonfire bookshop buffalo button
cactus canary canoe carpenter caterpillar cello chimney chipmunk cricket crocodile cucumber
dandelion dentist emperor falcon feather ferry firefly flamingo flute glacier gorilla grasshopper
harbor hippopotamus iceberg jellyfish juggler kettle lemon librarian lizard lobster magician
mammoth meteor needle nightingale octopus onion orchard ostrich peacock pelican photographer
plumber porcupine pyramid raccoon rhinoceros sailboat salamander saxophone seagull seahorse
skeleton sparkle squid submarine teaspoon tortoise tram tulip typewriter vampire volcano waiter
walnut waterfall whistle woodpecker xylophone yogurt zeppelin
"""
_HELD_OUT_NAMES = """
Agatha Boris Cecilia Dmitri Esther Fatima Gustav Harriet Ingrid Jasper Kenji Ludwig Margaret Nadia
Ophelia Priya Quentin Rudolf Samira Tobias Ursula Vincent Winston Yolanda Zachary
"""
_HELD_OUT_ADJECTIVES = """
ancient bored bouncy crooked dusty elegant fearless giggling hopeful icy jolly lucky melancholy
orange polite restless stubborn thirsty unlucky velvet
"""
HELD_OUT_NOUNS: tuple[str, ...] = tuple(_HELD_OUT_NOUNS.split())
HELD_OUT_NAMES: tuple[str, ...] = tuple(_HELD_OUT_NAMES.split())
HELD_OUT_ADJECTIVES: tuple[str, ...] = tuple(_HELD_OUT_ADJECTIVES.split())

_IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "wolf": "wolves",
    "elf": "elves",
    "dwarf": "dwarves",
    "child": "children",
    "sheep": "sheep",
    "deer": "deer",
    "fisherman": "fishermen",
    "postman": "postmen",
    "snowman": "snowmen",
    "potato": "potatoes",
    "witch": "witches",
    "princess": "princesses",
    "fox": "foxes",
    "bus": "buses",
}


def plural(noun: str) -> str:
    """The plural of an English noun."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def with_article(phrase: str) -> str:
    """`phrase` behind the indefinite article that its first letter asks for."""
    odd = phrase.startswith("uni")
    return ("an " if phrase[0] in "aeiou" and not odd else "a ") + phrase


PLURALS: tuple[str, ...] = tuple(plural(noun) for noun in NOUNS)

_CONSONANTS = """
b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sk sl sm sn sp st
str sw th thr tr tw wh x y
"""
_VOWELS = "a e i o u a e i o u y ai au ea ee ei ia ie io oa oi oo ou ue"
_ENDS = "b ck d f g l ll m n n ng nk nt p r r rd rk rm rt sh st t th w x"
_ONSETS = ["", *_CONSONANTS.split()]
_NUCLEI = _VOWELS.split()
_CODAS = [*[""] * 12, *_ENDS.split()]


def made_up_word(rng: Random) -> str:
    """A pronounceable word that is neither English nor ends like a plural."""
    kind = rng.random()
    if kind < 0.55:
        word = "".join(_syllable(rng) for _ in range(rng.choice((1, 2, 2, 3, 3, 4))))
    elif kind < 0.9:
        word = _spliced(rng)
    else:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8)))
    return word.rstrip("s") or made_up_word(rng)


def _syllable(rng: Random) -> str:
    return rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS)


def _spliced(rng: Random) -> str:
    """The head of one word on the tail of another, so real word pieces turn up too."""
    head, tail = rng.choice(NOUNS + ADJECTIVES), rng.choice(NOUNS + ADJECTIVES)
    return head[: rng.randint(2, len(head))] + tail[rng.randint(0, len(tail) - 2) :]
