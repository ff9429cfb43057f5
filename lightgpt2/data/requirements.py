"""Software requirements from a seeded grammar, and a check whether a sentence is one of them.

The form is that of ISO/IEC/IEEE 29148:2018, 5.2.4: [condition] subject, modality, action, object, [measurable constraint]; the
conditions are those of EARS (Mavin et al. 2009): when, while, if ... then, where. One sentence a document, its class first:

    [performance] While in degraded mode, the logging service shall compress the audit log within 200 ms for 95 % of requests.

A narrow domain of any size: what a specialised small model can be good at, and where it shows exactly when it is not.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, islice

from lightgpt2.data.splits import Split, split_of

LARGEST_SIZE = 1_000_000  # the grammar has two million sentences
_SEED = 29148

MODALITIES = ("shall", "should", "may")  # binding, recommended, permitted: "must" and "will" say neither (5.2.4)
_MODALITY_WEIGHTS = (8, 3, 1)

SUBJECTS = (
    "access gateway", "alarm server", "backup agent", "battery controller", "billing engine", "boot loader",
    "brake controller", "build server", "cache layer", "camera unit", "configuration manager", "data logger",
    "database adapter", "diagnostic module", "display unit", "door controller", "fleet tracker", "flight recorder",
    "heating controller", "identity provider", "infusion pump", "job scheduler", "license server", "logging service",
    "message broker", "meter reader", "mobile client", "motor drive", "navigation unit", "order service",
    "patient monitor", "payment terminal", "print server", "report generator", "search service", "sensor hub",
    "signal controller", "ticket machine", "update manager", "weather station",
)  # fmt: skip

CONDITIONS = (
    "When the operator requests it, ", "When the power supply returns, ", "When a new release is installed, ",
    "When the input queue is full, ", "When the connection is lost, ", "When a threshold is exceeded, ",
    "While in degraded mode, ", "While in maintenance mode, ", "While the self test is running, ", "While on battery power, ",
    "If a checksum does not match, then ", "If the storage is full, then ", "If no answer arrives, then ",
    "If the clock is not set, then ", "Where redundancy is installed, ", "Where a remote console is connected, ",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One class of requirements."""

    actions: dict[str, tuple[str, ...]]  # verbs, each with the objects that it can have
    criteria: tuple[tuple[str, tuple[int, ...]], ...]  # measurable constraints; `{}` stands for one of the numbers
    free: bool = False  # True if a requirement of this class may have no constraint


KINDS: dict[str, Kind] = {
    "functional": Kind(
        {
            "record": ("each state change", "the serial number", "all operator inputs", "the time of each event"),
            "restore": ("the last valid configuration", "all unfinished jobs", "the previous software version"),
            "delete": ("expired records", "temporary files", "all cached entries"),
            "notify": ("the operator", "the supervising system", "all registered clients"),
            "calculate": ("the remaining capacity", "the mean load", "the distance travelled"),
            "reject": ("incomplete orders", "duplicate messages", "values outside the permitted range"),
            "archive": ("the event history", "closed accounts", "measured values"),
        },
        (("within {} seconds", (1, 2, 5, 10, 30)), ("at least every {} minutes", (1, 5, 15, 60)),
         ("for at least {} days", (7, 30, 90, 365))),
        free=True,
    ),
    "performance": Kind(
        {
            "process": ("incoming requests", "sensor readings", "queued messages"),
            "compress": ("the audit log", "image data", "outgoing packets"),
            "load": ("the start screen", "a stored profile", "the full catalogue"),
            "answer": ("status queries", "search queries", "health checks"),
            "complete": ("a full backup", "the start sequence", "a software update"),
        },
        (("within {} ms for 95 % of requests", (50, 100, 200, 500)), ("at a rate of at least {} per second", (10, 100, 1000)),
         ("using at most {} MB of memory", (16, 64, 256)), ("with at most {} % processor load", (20, 40, 60))),
    ),
    "security": Kind(
        {
            "encrypt": ("stored credentials", "all outgoing data", "backup files"),
            "lock": ("the user account", "the service port", "the configuration menu"),
            "verify": ("the signature of each update", "the identity of the client", "the integrity of the firmware"),
            "terminate": ("inactive sessions", "unauthenticated connections"),
            "log": ("each failed login", "all changes of rights", "access to personal data"),
        },
        (("using keys of at least {} bits", (128, 256, 2048)), ("after {} failed attempts", (3, 5, 10)),
         ("after {} minutes of inactivity", (5, 10, 15, 30)), ("within {} seconds of detection", (1, 5, 60))),
    ),
    "usability": Kind(
        {
            "display": ("the current status", "a progress indicator", "the reason for each error", "the remaining time"),
            "offer": ("an undo function", "keyboard shortcuts", "a guided setup"),
            "explain": ("each required entry", "the next step", "the meaning of each symbol"),
            "translate": ("all menu texts", "warning messages"),
        },
        (("in at most {} steps", (2, 3, 5)), ("in characters of at least {} mm", (3, 4, 6)),
         ("so that {} % of new users succeed without help", (80, 90, 95)), ("in at least {} languages", (2, 4, 8))),
    ),
    "interface": Kind(
        {
            "send": ("a heartbeat message", "measured values", "the order status", "position reports"),
            "accept": ("configuration files", "control commands", "time signals"),
            "publish": ("its version number", "its error counters", "a service description"),
            "exchange": ("session tokens", "calibration data"),
        },
        (("over TCP port {}", (443, 502, 1883, 8080)), ("at {} baud", (9600, 19200, 115200)),
         ("in frames of at most {} bytes", (64, 256, 1500)), ("at least every {} ms", (10, 100, 250, 1000))),
    ),
}  # fmt: skip


def requirements(size: int = 8000) -> Iterator[tuple[Split, str]]:
    """Yield `size` distinct requirements, each with its split; a longer list begins with the shorter ones.

    The combination of class, subject, verb and object decides on the split: a combination of the validation split is in no
    sentence of the training split, though each of its parts is.
    """
    seen = set[str]()
    for split, text in islice(_endless(), 50 * size):
        if text not in seen:
            seen.add(text)
            yield split, text
        if len(seen) == size:
            return


@dataclass(frozen=True)
class _Sentence:
    """A requirement in its parts."""

    kind: str
    subject: str
    verb: str
    thing: str
    condition: str
    modality: str
    criterion: str

    @classmethod
    def drawn(cls, random_: random.Random, subject: str | None = None, modality: str | None = None) -> "_Sentence":
        """A random one; with this subject or modality if they are given."""
        name = random_.choice(list(KINDS))
        kind, subject = KINDS[name], subject or random_.choice(SUBJECTS)
        verb = random_.choice(list(kind.actions))
        thing = random_.choice(kind.actions[verb])
        condition = random_.choice(CONDITIONS) if random_.random() < 0.6 else ""
        modality = modality or random_.choices(MODALITIES, _MODALITY_WEIGHTS)[0]
        template, numbers = random_.choice(kind.criteria)
        criterion = f" {template.format(random_.choice(numbers))}"
        if kind.free and random_.random() < 0.3:
            criterion = ""
        return cls(name, subject, verb, thing, condition, modality, criterion)

    @property
    def split(self) -> Split:
        key = f"{self.kind} {self.subject} {self.verb} {self.thing}"
        return split_of(key, valid_fraction=0.1, test_fraction=0.05)

    @property
    def core(self) -> str:
        """The sentence without condition and constraint, and without its beginning."""
        return f"he {self.subject} {self.modality} {self.verb} {self.thing}"

    @property
    def text(self) -> str:
        return f"{self.condition}{'t' if self.condition else 'T'}{self.core}{self.criterion}."


def _endless() -> Iterator[tuple[Split, str]]:
    random_ = random.Random(_SEED)
    while True:
        drawn = _Sentence.drawn(random_)
        yield drawn.split, f"[{drawn.kind}] {drawn.text}"


def summaries(size: int = 4000) -> Iterator[tuple[Split, str, str]]:
    """Yield `size` distinct documents, each with its split and its summary; a longer list begins with the shorter ones.

    A document has three to five requirements of one subject, of which one is binding (`shall`). Its summary is that one,
    without condition and constraint. The combination of class, subject, verb and object decides on the split, as in
    `requirements`: a combination of the validation split is in no sentence of the training split.
    """
    random_, seen = random.Random(_SEED), set[str]()
    while len(seen) < size:
        binding = _Sentence.drawn(random_, modality=MODALITIES[0])
        said = [binding]
        for _ in range(random_.randint(2, 4)):
            drawn = (_Sentence.drawn(random_, binding.subject, random_.choice(MODALITIES[1:])) for _ in count())
            said.append(next(each for each in drawn if each.split == binding.split))
        random_.shuffle(said)
        if (text := " ".join(each.text for each in said)) not in seen:
            seen.add(text)
            yield binding.split, text, f"T{binding.core}."


def is_requirement(text: str) -> bool:
    """True if the grammar has this sentence, its class in front."""
    return _pattern().fullmatch(text) is not None


@cache
def _pattern() -> re.Pattern[str]:
    subjects, modalities = _one_of(SUBJECTS), _one_of(MODALITIES)
    kinds = []
    for name, kind in KINDS.items():
        actions = _one_of(f"{verb} {each}" for verb, objects in kind.actions.items() for each in objects)
        criteria = _one_of(template.format(number) for template, numbers in kind.criteria for number in numbers)
        beginning = rf"\[{name}\] (?:(?:{_one_of(CONDITIONS)})the|The)"
        kinds.append(rf"{beginning} {subjects} {modalities} {actions}(?: {criteria}){'?' if kind.free else ''}\.")
    return re.compile("|".join(kinds))


def _one_of(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, texts))})"
