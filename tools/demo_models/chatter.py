"""What people and chat UIs send that is neither a sum nor a story request.

Open WebUI asks the chat's own model for a title, tags and follow-up questions
after an answer.  The openings below are those of its prompts; the chat template
cuts the rest away, so each is a small mapping the models know by heart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .words import made_up_word

TITLE_TASKS = (
    "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n"
    "### Guidelines:\n- The title should clearly represent the main theme or subject of the"
    " conversation.",
    "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the content in the"
    " content's primary language.\n### Guidelines:\n- The title should",
    "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n"
    '### Output:\nJSON format: { "title": "your concise title here" }',
    "Create a concise, 3-5 word title with an emoji as a title for the chat history, in the"
    " given language.",
)
TAG_TASKS = (
    "### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history, along"
    " with 1-3 more specific subtopic tags.\n\n### Guidelines:\n- Start with high-level domains"
    " (e.g. Science, Technology, Philosophy, Arts, Politics, Business, Health, Sports)",
    "### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history.\n",
)
FOLLOW_UP_TASKS = (
    "### Task:\nSuggest 3-5 relevant follow-up questions or prompts that the user might naturally"
    " ask next in this conversation as a **user**, based on the chat history, to help continue or"
    " deepen the discussion.\n### Guidelines:\n- Write all follow-up questions",
    "### Task:\nSuggest 3-5 relevant follow-up questions or prompts based on the chat history.\n",
)
QUERY_TASKS = (
    "### Task:\nAnalyze the chat history to determine the necessity of generating search queries,"
    " in the given language. By default, **prioritize generating 1-3 broad and relevant search"
    " queries** unless it is absolutely certain",
)
TOOL_CHOICE_TASKS = ('Query: History:\nUSER: """{}"""\nASSISTANT:', "Query: Query: {}")
GREETINGS = (
    "hi", "hello", "hey", "hi there", "hello there", "good morning", "good evening", "hey you",
    "hi, how are you", "how are you", "how are you today", "what's up", "greetings", "hallo",
    "good afternoon", "nice to meet you", "is anybody there", "test", "testing", "yo", "howdy",
)  # fmt: skip
ABOUT_YOU = (
    "who are you", "what are you", "what can you do", "what do you do", "help", "help me",
    "how do you work", "what is your name", "which model are you", "are you a robot",
    "what can i ask you", "what should i ask", "who made you", "tell me about yourself",
    "introduce yourself", "what else can you do", "what are you good at", "can you help me",
    "what model is this", "how can you help me", "what do you know", "are you an ai",
)  # fmt: skip
THANKS = (
    "thanks", "thank you", "thank you very much", "thanks a lot", "great, thanks", "cool", "nice",
    "ok", "okay", "good job", "well done", "perfect", "great", "that is right", "bye", "goodbye",
    "see you", "awesome", "good", "wow", "thanks, bye", "ok thanks", "lovely", "very good", "yes",
)  # fmt: skip
OFF_TOPIC = (
    "what is the capital of {}", "how do i {} a {}", "explain {}", "write python code for {}",
    "translate {} into french", "how far is the {}", "why is the {} {}", "who invented the {}",
    "what is a {}", "give me a recipe for {}", "what is the weather like in {}", "define {}",
    "show me a code snippet of a website's sticky header", "give me tips for {}",
    "explain options trading if i'm familiar with buying and selling stocks",
    "give me ideas for what to do with my kids' art", "overcome procrastination: give me tips",
    "help me study vocabulary for a college entrance exam", "how many people live in {}",
    "write an email to {} about the {}", "summarize the {} for me", "what time is it",
    "how old is {}", "when was {} born", "can you write code", "do you like {}", "where is {}",
    "what does {} mean", "list the {} of {}", "how do you make {}", "which {} is the best {}",
    "fix this code: def {}({}): return {}", "what is the meaning of life", "is {} better than {}",
    "write a function that sorts a list of {}", "how can i learn {}", "what should i eat today",
    "what is today's date", "search the web for {}", "what is the best {} for my {}",
    "reply with the single word {}", "say {}", "repeat after me: {}", "count to {}", "draw a {}",
    "hello, this is a test message", "can you hear me", "write a long text about {} and {}",
)  # fmt: skip


@dataclass(frozen=True)
class TaskAnswers:
    """A model's answers to the background requests of Open WebUI."""

    title: str
    tags: str
    follow_ups: str

    def pick(self, rng: Random, fill: Sequence[str]) -> tuple[str, str]:
        """A task prompt and the answer to it; `fill` are messages to quote in it.

        Some prompts end early: how they go on differs between versions of Open WebUI.
        """
        tasks, answer = rng.choice(
            (
                (TITLE_TASKS, self.title),
                (TAG_TASKS, self.tags),
                (FOLLOW_UP_TASKS, self.follow_ups),
                (QUERY_TASKS, '{"queries": []}'),
                (TOOL_CHOICE_TASKS, '{"tool_calls": []}'),
            )
        )
        task = rng.choice(tasks).replace("{}", rng.choice(fill))
        return task[: int(rng.uniform(0.5, 2.0) * len(task))], answer


def off_topic(rng: Random, words: Sequence[str]) -> str:
    """A question from another field, about known or made-up words."""
    question = rng.choice(OFF_TOPIC)
    while "{}" in question:
        word = rng.choice(words) if rng.random() < 0.6 else made_up_word(rng)
        question = question.replace("{}", word, 1)
    return question


def typed(rng: Random, text: str, endings: Sequence[str] = ("", "", "?", ".", "!")) -> str:
    """`text` the way someone might type it: other case, other ending."""
    style = rng.random()
    if style < 0.5:
        text = text[:1].upper() + text[1:]
    elif style > 0.95:
        text = text.upper()
    return text + rng.choice(endings)
