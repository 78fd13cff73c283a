"""What the floors of the house say to one another: frozen values and four protocols.

The API floor turns a dialect into a `GenerationRequest`, the swap floor decides when it runs
and on which engine, the engine floor turns it into tokens. Nothing else crosses, so each floor
is tested with the others replaced (``hotswap.scripted`` is the public stand-in for an engine).

Units are in the names: ``_s`` seconds, ``_bytes``, ``_tokens``. Times are of the monotonic
clock unless a name says ``unix``.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from hotswap.errors import HotswapError

# -- what a client asks for ------------------------------------------------------------------

RESIDENT_NAMES = frozenset({"", "default", "current"})
"""Names under which a client asks for whatever model is resident. No model is called so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Which of its tools a model calls."""

    required: bool = False
    """It must call one; otherwise it may."""
    name: str | None = None
    """The only one that it may call, and must."""
    parallel: bool = True
    """It may call several in one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, still to be written out with the target model's chat template."""

    messages: tuple[Mapping[str, Any], ...]
    """As OpenAI has them, their content plain text; arguments of tool calls as JSON text."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """As OpenAI has them: ``{"type": "function", "function": {"name", "parameters", ...}}``."""
    tool_choice: ToolChoice = ToolChoice()
    reasoning_effort: str | None = None
    """"none", "minimal", "low", "medium" or "high", for templates that know of it; None: theirs."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    """The last message is the assistant's and is to be continued, not answered."""
    answered: bool = True
    """The prompt ends with what an answer begins with."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str
    special: bool = True
    """With the special tokens that the model's tokenizer puts around a text."""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a token is drawn. ``None`` is unset: the model's own default, then the neutral value."""

    temperature: float | None = None
    """0 takes the most likely token; neutral 1."""
    top_k: int | None = None
    """Keep the k most likely tokens; neutral 0 (off)."""
    top_p: float | None = None
    """Keep the smallest set of probability >= top_p, the crossing token included; neutral 1."""
    min_p: float | None = None
    """Drop tokens less likely than min_p times the most likely one; neutral 0."""
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    """Same seed, same model, same request: same tokens, alone or in a batch."""
    logit_bias: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class Guide:
    """What an answer must be. It ends when it is that, and is cut short only by its length."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    source: str
    """A JSON schema as JSON text; a regular expression for the whole answer; a JSON list of texts;
    a grammar in Lark's notation."""
    param: str
    """The field that it came in, for refusals."""
    subject: str = ""
    """What refusals call it, where it was made here of something that the client knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One call of a completion route, in no dialect. Choice i of prompt p has index p * n + i."""

    prompts: tuple[Prompt, ...]
    model: str | None = None
    """The name as the client wrote it; None, "", "default", "current": the resident model."""
    any_name: bool = False
    """A name that means no model here means the resident one too."""
    sampling: SamplingParams = SamplingParams()
    n: int = 1
    max_tokens: int | None = None
    """Tokens to generate at most; None: up to the end of the context. 0: an answer is its echo."""
    max_tokens_param: str = "max_tokens"
    """The field that they came in, for refusals."""
    cut_to_context: bool = False
    """More of them than the context has room for are as many as there is room for; else that is
    refused."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    echo: bool = False
    """Start each answer with its prompt's text; with ``logprobs``, with its tokens."""
    logprobs: int | None = None
    """None: no log-probabilities; k >= 0: the drawn token's and the k likeliest ones'."""
    guide: Guide | None = None
    """Of a chat's answer it holds for what comes after the reasoning."""
    keep_alive_s: float | None = None
    """Idle seconds after which the model may be let go; negative: never. None: as configured."""
    counted: bool = False
    """It is not to be answered: only the tokens of its prompts are wanted, which may be none, or
    more than the context has room for."""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts to be turned into vectors."""

    prompts: tuple[TextPrompt | TokenPrompt, ...]
    model: str | None = None
    """As in `GenerationRequest`."""
    dimensions: int | None = None
    """Keep so many leading numbers of each vector, scaled to length 1 again; None: all."""
    truncate: bool = False
    """Cut what is too long at its end, instead of refusing it."""
    counted: bool = False
    """As in `GenerationRequest`."""
    keep_alive_s: float | None = None
    request_id: str = ""


# -- what an engine answers ------------------------------------------------------------------

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, the raw log-probability the model gave it, and the likeliest tokens beside it."""

    text: str
    raw: bytes
    logprob: float | None
    """None: it is a prompt's first one, which nothing came before."""
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """Text that choice ``index`` grew by; whole characters only, may stand for several tokens."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningDelta:
    """What a model thinks before it answers, as `TextDelta`. Chats only."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """A tool call of choice ``index`` begins, or its arguments go on. Chats only."""

    index: int
    call: int
    """Number of the call in its choice, from 0 on."""
    id: str | None = None
    """Told when the call begins, and then only, as is ``name``."""
    name: str | None = None
    arguments: str = ""
    """JSON text that the call's arguments grow by; all of it together is an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of choice ``index``."""

    index: int
    reason: FinishReason
    """"tool_calls": it ended by itself and there are some."""
    completion_tokens: int
    """Those of the reasoning included."""
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    """Of its prompt: those that were remembered and not computed again. Told by the first choice of
    a prompt only, because a prompt is counted once."""
    stop_sequence: str | None = None
    """The stop string that ended the answer, where one did."""


GenerationEvent = TextDelta | ReasoningDelta | ToolCallDelta | Finished


class Generation(Protocol):
    """A running request. Iterating yields all events since the last time, never an empty tuple,
    and ends after the last choice's `Finished`.

    Raises:
        HotswapError: the engine failed or the answer was aborted; no further event follows.
    """

    @property
    def model(self) -> str:
        """Id of the model that answers."""

    @property
    def prompt_tokens(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[tuple[GenerationEvent, ...]]: ...


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector for each prompt of an `EmbeddingRequest`."""

    model: str
    vectors: tuple[array[float], ...]
    """Single precision, length 1 where the model's own configuration normalises."""
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Prompts as a model sees them."""

    model: str
    ids: tuple[tuple[int, ...], ...]
    """Of each prompt."""
    texts: tuple[tuple[str, ...], ...] = ()
    """Where they were asked for, what each token stands for; half a character is U+FFFD."""


class Rendered(Protocol):
    """A request as one model's token ids, checked against that model's limits."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """Of each prompt."""

    @property
    def token_texts(self) -> tuple[tuple[str, ...], ...]:
        """What each of these tokens stands for. Made when it is asked for."""


# -- what there is to serve --------------------------------------------------------------------

Task = Literal["generate", "embed"]
"""What a model is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine is built. The fields are the keys of ``load_model`` and of config files."""

    device: str = "auto"
    device_map: str = "none"
    """none or auto; auto: a model that has no room on the device is spread over all CUDA devices
    and, as to the rest, host memory."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16; auto: what the checkpoint was saved in."""
    no_mmap: bool = False
    """Read the weights into memory of this process's own instead of mapping their files."""
    max_model_len: int | None = None
    """Tokens of prompt and answer together at most; None: what the model was made for."""
    max_num_seqs: int = 64
    """Answers that run at the same time at most; more wait in the engine's queue."""
    kv_cache_memory: int | None = None
    """Bytes for keys and values at most; None: a share of what is free."""
    chat_template: str | None = None
    """Jinja source that replaces the tokenizer's own template."""
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model's files say about it; empty and 0 where they do not, or are not here."""

    family: str = ""
    """What its configuration calls the architecture: "qwen3"."""
    dtype: str = ""
    """Of its weights as they were saved: "bfloat16"."""
    quantization: str = ""
    """How its weights are quantized: "fp8"."""
    weights_bytes: int = 0
    parameters: int = 0
    """Numbers in its weights, to within the headers of the files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFacts:
    """How a model chats, as its template and its vocabulary say."""

    template: str | None = None
    """As Jinja source; None: it has none, and cannot chat."""
    tools: bool = False
    """It can be told of tools, and its calls are understood."""
    thinking: bool = False
    """It knows of reasoning."""


@dataclass(frozen=True, slots=True)
class AppliedSetting:
    value: Any
    source: str
    """"request", "uploaded", "config_file" or "model_dir"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model and everything settled about how to serve it. Two specs of one ``id`` are the
    same model, perhaps with other settings."""

    id: str
    path: Path | None
    """The model's directory; None: a Hub repository that must be downloaded first."""
    task: Task = "generate"
    """Means nothing before the model is here: its files say what it is for."""
    revision: str | None = None
    aliases: tuple[str, ...] = ()
    engine: EngineConfig = EngineConfig()
    sampling: SamplingParams = SamplingParams()
    """Defaults for what a request leaves unset."""
    applied: Mapping[str, AppliedSetting] = field(default_factory=dict)
    """The settings above that do not come from start-up flags or defaults."""
    ttl_s: float | None = None
    """Idle seconds after which the model is let go; None: the server's ``--idle-timeout-s``."""
    pin: bool = False
    """Parked, it stays so, whatever else would like its place."""
    background: bool = False
    """Its requests are answered by whichever model is resident, and never cause a swap."""
    max_position_embeddings: int | None = None
    created_unix: int = 0
    facts: ModelFacts = ModelFacts()


# -- an engine and who builds it -------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A reading of one engine; cheap, safe from any thread."""

    generation: int
    """Counts engines of this process. Two readings with different numbers are of two engines."""
    model: str
    running: int
    waiting: int
    steps: int
    tokens: int
    last_progress: float
    """Monotonic time of the last finished step, of the engine's start, or of when there was work
    again after there had been none, whichever came last."""
    alive: bool
    """The engine's driving thread runs."""
    first_token: float | None = None
    """Monotonic time of the first token; None: there has been none."""
    last_token: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """A model on the device."""

    @property
    def generation(self) -> int:
        """See `EngineStats.generation`."""

    @property
    def failure(self) -> HotswapError | None:
        """Why the engine stopped working; None while it works."""

    def generate(self, rendered: Any) -> AbstractAsyncContextManager[Generation]:
        """Entering: accepted, so every refusal is still an exception here. Leaving: aborted if
        unfinished; the sequences are gone before the next step.

        Raises:
            InvalidRequest: it does not fit this engine (its settings may have changed meanwhile).
        """

    async def embed(self, rendered: Any) -> Embeddings:
        """Compute what `EngineRegistry.render_embedding` made; given up when cancelled.

        Raises:
            InvalidRequest: this engine embeds nothing.
            HotswapError: the engine failed or was aborted.
        """

    def abort(self, error: HotswapError) -> None:
        """End every running answer with ``error``."""

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """Memory of the device (CPU device: of the process) around a teardown."""

    before_bytes: int
    after_bytes: int
    baseline_bytes: int
    leaked_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedModel:
    model: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a model would take, and what there is for it, in bytes."""

    weights_bytes: int
    kv_bytes: int
    """Keys and values of one sequence as long as the model takes."""
    device_free_bytes: int
    """Once the resident model has left; of all devices together, where it would be spread."""
    host_free_bytes: int
    fits: bool
    reason: str | None = None
    """Why it does not, in a sentence; also where only its context would be cut."""
    spread: Mapping[str, int] | None = None
    """How many bytes of the weights would lie on which device; None: all on one."""


class PreparedModel(Protocol):
    """A model in host memory, checked and ready to be put on the device, again and again."""

    @property
    def spec(self) -> ModelSpec: ...


Report = Callable[[str, float], None]
"""Takes a stage ("downloading", "checking", "reading", "starting") and how much of it is done,
0 to 1. Called on the event loop."""


class EngineRegistry(Protocol):
    """Builds, parks and tears down engines. One engine at a time is on the device."""

    @property
    def current(self) -> Engine | None:
        """The engine on the device, for whoever watches it; from any thread."""

    @property
    def memory(self) -> MemoryReport | None:
        """The reading of the last teardown."""

    async def render(self, spec: ModelSpec, request: GenerationRequest) -> Rendered:
        """Resolve everything in ``request`` that depends on the model, without loading weights.

        Raises:
            InvalidRequest: what is asked cannot be done by this model.
            ModelLoadFailed: the model's tokenizer or configuration is unusable.
        """

    async def render_embedding(self, spec: ModelSpec, request: EmbeddingRequest) -> Rendered:
        """As `render`, of texts to be embedded.

        Raises:
            InvalidRequest: what is asked cannot be done by this model.
            ModelLoadFailed: as `render`.
        """

    async def detokenize(self, spec: ModelSpec, ids: Sequence[int]) -> str:
        """The text that tokens stand for, special ones included.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
            ModelLoadFailed: as `render`.
        """

    async def chat_facts(self, spec: ModelSpec) -> ChatFacts:
        """Raises: ModelLoadFailed: as `render`."""

    async def prepare(self, spec: ModelSpec, report: Report) -> PreparedModel:
        """Bring a model to host memory. Slow, may fail, leaves the device alone; stops when
        cancelled.

        Raises:
            ModelLoadFailed: with a reason fit for a client.
            InsufficientMemory: it does not fit.
        """

    def start(
        self, prepared: Any, report: Report, changed: Callable[[], None]
    ) -> AbstractAsyncContextManager[Engine]:
        """Entering puts the model on the device and starts its engine; leaving stops it, frees
        the device and measures that it is free. ``changed`` is called on the event loop whenever
        ``engine.failure`` or the engine's queue changed.

        Raises:
            ModelLoadFailed, InsufficientMemory: on entering; the device is free again.
        """

    def parked(self) -> Sequence[ParkedModel]:
        """Models that left the device and are kept in host memory."""

    def forget(self, model: str) -> None:
        """Let go of a parked model, also of a pinned one; of any other, do nothing."""

    async def estimate(self, spec: ModelSpec) -> Estimate:
        """What ``spec`` would take. Reads headers, no weights.

        Raises:
            ModelLoadFailed: its files are unusable.
        """


class ModelCatalog(Protocol):
    """Which models exist and which names mean them. Never waits for a load."""

    @property
    def startup(self) -> str | None:
        """Id of the model that ``--model`` names."""

    async def models(self) -> tuple[ModelSpec, ...]: ...

    async def resolve(self, name: str) -> ModelSpec:
        """No network.

        Raises:
            ModelNotFound
        """

    def override(self, spec: ModelSpec, overrides: Mapping[str, Any], source: str) -> ModelSpec:
        """``spec`` with a load request's settings on top.

        Raises:
            InvalidRequest: naming the key.
        """

    async def fetch(self, spec: ModelSpec, report: Report) -> ModelSpec:
        """Download what ``spec`` names; stops when cancelled.

        Raises:
            ModelNotFound, NotPermitted, DownloadFailed
        """


# -- what the swap floor offers to the API -----------------------------------------------------


class SwapPhase(StrEnum):
    """EMPTY -> LOADING -> READY -> DRAINING -> EMPTY; FAILED when the device is lost."""

    EMPTY = "empty"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a load is. ``value`` runs from 0 to 1 over the whole load and never goes back."""

    model: str
    stage: str
    value: float
    eta_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailure:
    model: str
    message: str
    code: str
    retry_at: float
    """Monotonic time at which a request may try again."""


class UnloadReason(StrEnum):
    """Why a model left the device with no other one in its place."""

    REQUEST = "request"
    IDLE = "idle"
    FAILURE = "failure"
    """Its engine failed."""
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapSnapshot:
    """The whole state of the swap floor at one moment; feeds every status page."""

    version: int
    """Grows with each change, so that a reader can wait for the next one."""
    phase: SwapPhase
    resident: ModelSpec | None
    progress: Progress | None
    """Of the model being brought in, also while another one still serves."""
    waiting: Mapping[str, int]
    """By model ("current": any): requests that wait for it, those included whose prompts are being
    read, and loads that somebody waits for and whose turn has not come."""
    leases: int
    parked: tuple[ParkedModel, ...]
    failures: Mapping[str, LoadFailure]
    last_error: str | None
    engine: EngineStats | None
    loads: int
    swaps: int
    unloads_by_reason: Mapping[UnloadReason, int]
    tokens: int
    """That all engines so far have drawn."""
    serviceable: bool
    """A request could be served now or by loading a model on demand."""
    timings: Mapping[str, float]
    """Seconds per phase of the last load, in their order: "queued" until it was begun, "prepare",
    "patience" with who still came for the model before it, "drain" and "teardown" of that one,
    "start", "warm_up" (finding out how to run it), "first_token" of a model that was waited for.
    "gap" is no phase but the silence between two models: from the last token of the one before, or
    from when this one was wanted, if that was later, until it could answer."""
    phase_seconds: Mapping[str, float]
    """``timings`` added up over all loads so far that brought a model."""
    memory: MemoryReport | None
    """Around the last teardown."""
    teardown_leaked_bytes: int = 0
    """That all teardowns so far together left behind."""
    rebuilds: int = 0
    """Engines that failed and were built again."""
    restarts: int = 0
    """Times that this process has begun again, because of a fault that it could not mend."""
    asleep: str | None = None
    """The model that was put to sleep, until one is on the device again."""
    last_resident: str | None = None
    """The model that is on the device or was the last one there."""
    unserviceable_reason: str | None = None
    """Why not ``serviceable``, in a short sentence; None where it is."""
    expires_in_s: float | None = None
    """Until the resident model is let go, if nobody uses it from now on; None: never."""

    @property
    def is_sleeping(self) -> bool:
        """No model is on the device nor on its way there, and the one that `ModelService.wake_up`
        brings was put to sleep, or left and is parked. What else is parked does not count, for it
        is not woken; a server that has not loaded anything does not sleep."""
        left = any(parked.model == self.last_resident for parked in self.parked)
        return self.phase is SwapPhase.EMPTY and (self.asleep is not None or left)

    @property
    def unloads(self) -> int:
        return sum(self.unloads_by_reason.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    model: str
    previous_model: str | None
    load_time_s: float
    already_loaded: bool
    timings: Mapping[str, float]
    config_applied: Mapping[str, Mapping[str, Any]]
    memory: MemoryReport | None = None
    """Around the teardown of the model that made way for it; None: there was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadForecast:
    """What a load would do."""

    model: str
    already_loaded: bool
    leaves: str | None
    """The model that would have to go."""
    expected_s: float | None
    """Of reading and starting it, as the last time; None: it has not been loaded yet."""
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class UnloadReport:
    """``model`` is None where nothing was loaded."""

    model: str | None
    drain_time_s: float = 0.0
    shutdown_time_s: float = 0.0
    total_time_s: float = 0.0
    memory: MemoryReport | None = None
    parked: bool = False
    """It is kept in host memory."""
    was_parked: bool = False
    """It was in host memory only, and that has been let go of."""
    called_off: str | None = None
    """Nothing was unloaded: the load of this model was called off."""


ModelStatus = Literal["loaded", "loading", "sleeping", "unloaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelListing:
    """One line of ``GET /v1/models``."""

    id: str
    aliases: tuple[str, ...]
    created_unix: int
    owned_by: str
    status: ModelStatus
    max_model_len: int | None
    """Less than it is set to be where its last start had memory for fewer tokens."""
    task: Task = "generate"
    progress: Progress | None = None
    error: str | None = None
    """Why the last load of this model failed, where it did."""
    facts: ModelFacts = ModelFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """All that may be told of one model."""

    listing: ModelListing
    sampling: SamplingParams
    """Defaults for what a request leaves unset."""
    chat: ChatFacts
    """Nothing is known of a model that is still to be downloaded."""


UnloadMode = Literal["drain", "abort"]


class ModelService(Protocol):
    """The door of the swap floor."""

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[Generation]:
        """Entering: the request is valid, its model is resident and it is running. May wait for
        a swap. Leaving: the answer is aborted if unfinished.

        Raises:
            HotswapError: on entering, any leaf; nothing has been sent to a client by then.
        """

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """As `generate`: may wait for a swap; given up when cancelled.

        Raises:
            HotswapError: any leaf.
        """

    async def tokenize(self, request: GenerationRequest, *, texts: bool = False) -> Tokenized:
        """What the request would be answered for. Neither loads a model nor waits for one.

        Args:
            texts: say what each token stands for, too.

        Raises:
            HotswapError: as `generate` would, before it waits.
        """

    async def detokenize(self, model: str | None, ids: Sequence[int]) -> tuple[str, str]:
        """The id of the model of that name, and the text that tokens stand for there.

        Raises:
            InvalidRequest, ModelNotFound, ModelLoadFailed
        """

    def snapshot(self) -> SwapSnapshot: ...

    async def changed(self, since: int) -> SwapSnapshot:
        """Wait until the snapshot's version is above ``since``."""

    async def models(self) -> tuple[ModelListing, ...]:
        """What a request may name now. Never waits for a load."""

    async def model(self, name: str) -> ModelListing:
        """Raises: ModelNotFound."""

    async def describe(self, name: str) -> ModelDescription:
        """More about a model than its listing, read from its files.

        Raises:
            ModelNotFound, ModelLoadFailed
        """

    async def warm(self, name: str | None, *, keep_alive_s: float | None = None) -> str:
        """Wait until a model is resident, as a request for it would; returns its id.

        Raises:
            HotswapError: as `generate`.
        """

    async def let_go(self, name: str | None) -> str:
        """Have a model leave the device as soon as no answer of it runs, and wait for that where
        none runs. What is kept in host memory of one that was named, and is not on the device nor
        on its way there, is let go of, unless it is pinned. Returns the model's id.

        Raises:
            NotPermitted: requests may not swap models here, so they may not let go of one either.
            ModelNotFound, ModelLoadFailed
        """

    async def pull(self, name: str, report: Report) -> str:
        """Bring a model to this machine's disk, if it is not there; stops when cancelled. Returns
        its id.

        Raises:
            NotPermitted: it is not here, and requests may not download it.
            ModelNotFound, DownloadFailed, ModelLoadFailed, ShuttingDown
        """

    async def load(self, name: str | None, overrides: Mapping[str, Any], source: str) -> LoadReport:
        """Put a model on the device and wait for it. ``name`` None: the start-up model.

        Raises:
            InvalidRequest: an override is unknown, of the wrong type or out of range.
            ModelNotFound, ModelLoadFailed, InsufficientMemory, SwapInProgress, ShuttingDown
        """

    async def forecast(
        self, name: str | None, overrides: Mapping[str, Any], source: str
    ) -> LoadForecast:
        """What `load` with the same arguments would do. Changes nothing.

        Raises:
            InvalidRequest, ModelNotFound, ModelLoadFailed: as `load`.
        """

    async def request_load(self, name: str) -> None:
        """Like `load`, but returns once the wish is accepted."""

    async def unload(
        self,
        name: str | None = None,
        *,
        drain_timeout_s: float | None = None,
        mode: UnloadMode = "drain",
        park: bool = True,
    ) -> UnloadReport:
        """Take the resident model off the device; with a name that is loading, cancel that load;
        with one that sleeps, let go of what is kept of it.

        Args:
            park: keep it in host memory, where there is room.

        Raises:
            ModelNotFound: no such model.
            NotLoaded: ``name`` is neither resident nor loading, nor does it sleep.
            SwapInProgress: the running answers did not end in time; the model still serves.
        """

    async def sleep(self, *, park: bool, mode: UnloadMode = "drain") -> UnloadReport:
        """Leave the device empty, whatever goes on: the resident model is unloaded, and every load
        that is under way or wanted by now is called off, its waiters refused with `ModelUnloaded`.

        Afterwards `wake_up`, and where requests may load models also a request for whichever model
        is loaded, brings back the model that was on the device last, with the settings that it
        had; where none had been, the one that was on its way. A request that names another model
        brings that one. What is asked for after `sleep` was called is not called off: with
        `wake_up` right behind it, the model leaves and comes back.

        Returns:
            Once nothing is on the device, of the model that sleeps; where it had left already for
            another one, with the time that calling off that one took. Where nothing was there or
            on its way, at once.

        Raises:
            SwapInProgress: the running answers did not end in time; the resident model is awake
                still, but the loads have been called off.
            DeviceLost: what was on the device could not be taken off.
        """

    async def wake_up(self) -> LoadReport:
        """Put the model on the device that was put to sleep or was there last, else the start-up
        model, and wait for it. Nothing is done where one is on the device; where one is on its way
        there, that one is waited for.

        Raises:
            ModelNotFound: there was none, and the server was started without one.
            ModelUnloaded: somebody put it to sleep again, or unloaded it, before it was ready.
            ModelLoadFailed, InsufficientMemory, SwapInProgress, ShuttingDown
        """
