"""Software requirements from a seeded grammar, and a checker that says whether a sentence is one of them.

The form is that of ISO/IEC/IEEE 29148:2018, 5.2.4: [condition] subject, modality, action, object, [measurable constraint]; the
conditions are those of EARS (Mavin et al. 2009): when, while, if ... then, where. One sentence a document, its class first:

    [performance] While in degraded mode, the logging service shall compress the audit log within 200 ms for 95 % of requests.

A narrow domain of any size: what a specialised small model can be good at, and where it shows exactly when it is not.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Split = Literal["train", "valid", "test"]

DEFAULT_SIZE = 8000
LARGEST_SIZE = 1_000_000  # the grammar has two million sentences
_SEED = 29148
_SHARES: tuple[tuple[Split, float], ...] = (("test", 0.05), ("valid", 0.15), ("train", 1.0))  # cumulative

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
    """One class of requirements.

    Attributes:
        actions: Verbs, each with the objects that it can have.
        criteria: Measurable constraints; `{}` stands for one of the numbers after it.
        free: Whether a requirement of this class may do without one.
    """

    actions: dict[str, tuple[str, ...]]
    criteria: tuple[tuple[str, tuple[int, ...]], ...]
    free: bool = False


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


def requirements(size: int = DEFAULT_SIZE) -> Iterator[tuple[Split, str]]:
    """Distinct requirements, each with its split; the first ones of a longer list are those of a shorter.

    Which of class, subject, verb and object go together decides on the split: a combination of the validation split is in no
    sentence of the training split, though each of its parts is.

    Args:
        size: How many.
    """
    seen = set[str]()
    for split, text in islice(_endless(), 50 * size):
        if text not in seen:
            seen.add(text)
            yield split, text
        if len(seen) == size:
            return


def _endless() -> Iterator[tuple[Split, str]]:
    draw = random.Random(_SEED)
    while True:
        name = draw.choice(list(KINDS))
        kind, subject = KINDS[name], draw.choice(SUBJECTS)
        verb = draw.choice(list(kind.actions))
        combination = (name, subject, verb, draw.choice(kind.actions[verb]))
        condition = draw.choice(CONDITIONS) if draw.random() < 0.6 else ""
        modality = draw.choices(MODALITIES, _MODALITY_WEIGHTS)[0]
        template, numbers = draw.choice(kind.criteria)
        criterion = f" {template.format(draw.choice(numbers))}"
        if kind.free and draw.random() < 0.3:
            criterion = ""
        the = "the" if condition else "The"
        yield (
            _split(combination),
            f"[{name}] {condition}{the} {subject} {modality} {verb} {combination[3]}{criterion}.",
        )


def _split(combination: tuple[str, ...]) -> Split:
    place = int.from_bytes(hashlib.sha256(" ".join(combination).encode()).digest()[:8], "big") / 2**64
    return next(split for split, share in _SHARES if place < share)


def flaw(text: str) -> str | None:
    """What keeps a text from being one well-formed requirement.

    Args:
        text: The text, with its class in front.

    Returns:
        The first thing that is wrong, in words; nothing where the grammar has such a sentence.
    """
    tag = re.match(rf"\[({'|'.join(KINDS)})\] ", text)
    if not tag:
        return "it does not begin with its class"
    kind, rest = KINDS[tag[1]], text[tag.end() :]
    condition = next((words for words in CONDITIONS if rest.startswith(words)), "")
    rest = rest.removeprefix(condition)
    subject = re.match(rf"{'the' if condition else 'The'} ({'|'.join(SUBJECTS)}) ", rest)
    if not subject:
        return "no known condition and subject"
    modality, _, rest = rest[subject.end() :].partition(" ")
    if modality not in MODALITIES:
        return f"no modality: {modality!r} in its place"
    verb, _, rest = rest.partition(" ")
    if verb not in kind.actions:
        return f"no action of a {tag[1]} requirement: {verb!r} in its place"
    found = next((words for words in kind.actions[verb] if re.match(rf"{words}[ .]", rest)), None)
    if found is None:
        return f"no object that one can {verb}"
    if not rest.endswith("."):
        return "no full stop at its end"
    criterion = rest[len(found) : -1]
    if not criterion:
        return None if kind.free else f"no measurable criterion in a {tag[1]} requirement"
    known = (template.format(number) for template, numbers in kind.criteria for number in numbers)
    return None if criterion[1:] in known else f"no criterion of a {tag[1]} requirement: {criterion.strip()!r}"
