"""A leaf model that reads: answers questions about a text by computing over it, with no model behind it.

`read_text` is a policy for the plain sub-calls of a demo. It understands a handful of plain questions, and
does for each what the words say, so that a demo over any text gets true answers:

    How many lines mention "ERROR"?          How many words / lines / sentences are there?
    How many times does "cat" occur?         List the lines that contain "ERROR".
    What is the total / average / largest / smallest number?
    List all dates / numbers / emails.       What is the owner of the red house?
    Summarize this in 2 sentences.           What is 17 * 23?

The question is the part of the message before or after the text; see `split_question`. Where nothing in the
text fits, the answer is `NOT_FOUND`, never a guess.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

from orchestrator.testing.scripted.arithmetic import evaluate
from orchestrator.testing.scripted.chat import ChatRequest, Reply

NOT_FOUND = "not found"

_Answer: TypeAlias = Callable[[re.Match[str], str], str]

_LABEL = re.compile(r"^(?:context|text|document|passage|chunk|input)\s*:\s*", re.IGNORECASE | re.MULTILINE)
_QUESTION_LABEL = re.compile(r"^(?:question|query|task)\s*:\s*", re.IGNORECASE | re.MULTILINE)
_IMPERATIVE = re.compile(
    r"(?:how|what|which|who|where|when|list|find|extract|count|summari[sz]e|sum|total|give|name|return)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_STOP_WORDS = frozenset(
    _WORD.findall(
        "a about all an and answer are as at be by context did do does find following for from give had has have"
        " how i in is it its list many me much name of on or question tell text that the their there these this"
        " those to was were what when where which who whose why will with you your"
    )
)
_KINDS = {
    "date": re.compile(r"\b\d{4}-\d{2}-\d{2}\b"),
    "email": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    "number": _NUMBER,
    "url": re.compile(r"https?://[^\s<>\"')]+"),
}


def read_text(request: ChatRequest) -> Reply:
    """The policy: answers the last user message from the text in it."""
    question, text = split_question(request.last_user)
    return Reply(answer_from(question, text))


def split_question(message: str) -> tuple[str, str]:
    """The question of a message, and the text to answer it from.

    In this order: a line that starts with "Question:" (to its end) and all else as the text; what stands before
    a "Context:"/"Text:" label; the first paragraph if it reads like a question, else the last if it does; the
    first line.
    """
    if labeled := _QUESTION_LABEL.search(message):
        line_end = message.find("\n", labeled.end())
        end = len(message) if line_end < 0 else line_end
        rest = message[: labeled.start()] + message[end:]
        return message[labeled.end() : end].strip(), _LABEL.sub("", rest, count=1).strip()
    label = _LABEL.search(message)
    if label and message[: label.start()].strip():
        return message[: label.start()].strip(), message[label.end() :].strip()
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", message.strip())]
    if len(paragraphs) > 1 and not _asks(paragraphs[0]) and _asks(paragraphs[-1]):
        return paragraphs[-1], "\n\n".join(paragraphs[:-1])
    if len(paragraphs) > 1:
        return paragraphs[0], "\n\n".join(paragraphs[1:])
    first, _, rest = message.strip().partition("\n")
    return first.strip(), rest.strip()


def answer_from(question: str, text: str) -> str:
    """The answer that the text gives to the question."""
    for pattern, answer in _QUESTIONS:
        if found := pattern.search(question):
            return answer(found, text)
    value = evaluate(question)
    return value if value is not None else _best_match(question, text)


def _asks(paragraph: str) -> bool:
    return paragraph.endswith("?") or _IMPERATIVE.match(paragraph) is not None


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]


_UNITS: dict[str, Callable[[str], Sequence[str]]] = {
    "line": _lines,
    "sentence": _sentences,
    "word": str.split,
    "character": list,
}


def _containing(found: re.Match[str], text: str) -> list[str]:
    wanted = found["wanted"].casefold()
    return [part for part in _UNITS[found["unit"].lower()](text) if wanted in part.casefold()]


def _count_containing(found: re.Match[str], text: str) -> str:
    return str(len(_containing(found, text)))


def _list_containing(found: re.Match[str], text: str) -> str:
    return "\n".join(_containing(found, text)) or NOT_FOUND


def _count_occurrences(found: re.Match[str], text: str) -> str:
    return str(len(re.findall(rf"(?<!\w){re.escape(found['wanted'])}(?!\w)", text, re.IGNORECASE)))


def _count_units(found: re.Match[str], text: str) -> str:
    return str(len(_UNITS[found["unit"].lower()](text)))


def _list_kind(found: re.Match[str], text: str) -> str:
    distinct = dict.fromkeys(_KINDS[found["kind"].lower()].findall(text))
    return "\n".join(distinct) or NOT_FOUND


def _over_numbers(found: re.Match[str], text: str) -> str:
    numbers = [float(number) for number in _NUMBER.findall(text)]
    if not numbers:
        return NOT_FOUND
    match found["how"].lower():
        case "total" | "sum":
            value = sum(numbers)
        case "average" | "mean":
            value = sum(numbers) / len(numbers)
        case "largest" | "highest" | "maximum" | "biggest":
            value = max(numbers)
        case _:
            value = min(numbers)
    return f"{value:.10g}"


def _summarize(found: re.Match[str], text: str) -> str:
    """The sentences with the most frequent words, in the order of the text."""
    sentences = _sentences(text)
    if not sentences:
        return NOT_FOUND
    frequency = Counter(_keywords(text))

    def weight(sentence: str) -> float:
        words = _keywords(sentence)
        return sum(frequency[word] for word in words) / (len(words) or 1)

    ranked = sorted(range(len(sentences)), key=lambda index: (-weight(sentences[index]), index))
    chosen = sorted(ranked[: int(found["count"] or 1)])
    return " ".join(sentences[index] for index in chosen)


def _best_match(question: str, text: str) -> str:
    """The value of the "key: value" line, or else the sentence, that shares most words with the question."""
    wanted = set(_keywords(question))
    sentences = _sentences(text)
    scores = [len(wanted.intersection(_keywords(sentence))) for sentence in sentences]
    best = max(scores, default=0)
    # One shared word of many is chance, not an answer.
    if best == 0 or best * 2 < len(wanted):
        return NOT_FOUND
    sentence = sentences[scores.index(best)]
    key, separator, value = sentence.partition(": ")
    is_value = separator and value and wanted.intersection(_keywords(key)) and len(_keywords(key)) <= 8
    return value.strip() if is_value else sentence


def _keywords(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.casefold()) if word not in _STOP_WORDS]


_WANTED = r"""["'`](?P<wanted>[^"'`]+)["'`]"""
_UNIT = r"(?P<unit>line|sentence|word)s?"
_LISTING = r"list|find|extract|give|show|return"
_HAVING = r"(?:that |which )?(?:contain|mention|include|have|has|say|with)\w*"

_QUESTIONS: tuple[tuple[re.Pattern[str], _Answer], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), answer)
    for pattern, answer in (
        (rf"\b(?:how many|count|number of)\b(?: the)? {_UNIT} {_HAVING} {_WANTED}", _count_containing),
        (rf"\b(?:how (?:many times|often)|count|occurrences of)\b[^\"'`]*{_WANTED}", _count_occurrences),
        (rf"\b(?:{_LISTING}|which)\b[^\"'`]*?\b{_UNIT} {_HAVING} {_WANTED}", _list_containing),
        (r"\b(?:how many|count|number of)(?: the)? (?P<unit>line|sentence|word|character)s?\b", _count_units),
        (rf"\b(?:{_LISTING})\b.*?\b(?P<kind>date|email|number|url)s\b", _list_kind),
        (
            r"\b(?P<how>total|sum|average|mean|largest|highest|maximum|biggest|smallest|lowest|minimum)\b"
            r"(?: of)?(?: all)?(?: the)? (?:number|value|amount)s?\b",
            _over_numbers,
        ),
        (r"\bsummar(?:y|i[sz]e)\b(?:.*?\b(?P<count>[1-9]\d{0,2}) sentences?)?", _summarize),
    )
)
