"""Real and fake class of a data set, from its class names instead of its class numbers (decision D21).

One rule for data sets, streams, folders, importers and the `id2label` of other detectors. A name is read word by word,
in any case: `Fake`, `DEEP-FAKE`, `Celeb-real`, `ai_generated`. A name without such a word, with words of both classes,
or with a negation ("not fake") is refused: the user states it instead. Numbers count only where there are no names.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NoReturn

from gmdf_hf.common.errors import DomainError
from gmdf_hf.common.schema import FAKE, REAL

logger = logging.getLogger(__name__)

CLASS_NAMES = ("real", "fake")
# Alternatives of a pattern, as the field's data sets and detectors write them.
REAL_WORDS = (
    "real|realism|genuine|authentic|original|pristine|bonafide|bona|human|live|nature|natural|legit|legitimate"
    "|untouched|unaltered|unedited|unmodified|unmanipulated|untampered"
)
FAKE_WORDS = (
    "fake|deepfake|forged|forgery|forgeries|manipulated|manipulation|synthetic|synthesi[sz]ed|synthesis|artificial|ai"
    "|aigc|generated|tampered|tampering|altered|edited|modified|doctored|spoof|spoofed|swap|swapped|faceswap"
    "|neuraltextures|faceshifter|morph|morphed|photoshop|photoshopped|counterfeit|falsified|gan|esrgan|stylegan|progan"
    "|cyclegan|stargan|biggan|diffusion|midjourney|cgi"
)
NEGATIONS = frozenset(["not", "no", "non", "never", "un", "isn", "isnt", "without", "anti", "neither", "nor"])

_THINGS = "(?:face|image|img|picture|pic|photo|video|frame|person|generated)?s?"  # `fakes`, `realfaces`, `aigenerated`
_PATTERNS = {
    REAL: re.compile(f"(?:{REAL_WORDS}){_THINGS}"),
    FAKE: re.compile(f"(?:{FAKE_WORDS}){_THINGS}"),
}


def class_of(name: str, stated: Mapping[str, str] | None = None) -> int | None:
    """Read a class name.

    Args:
        name: As the data set writes it.
        stated: `real` or `fake` for names that the user states; any case.

    Returns:
        0 for real, 1 for fake; None if the name says neither, both, or has a negation.
    """
    for other, label in (stated or {}).items():
        if other.casefold() == name.casefold():
            return CLASS_NAMES.index(label)
    found, negated = _read(name)
    return found.pop() if len(found) == 1 and not negated else None


def is_ambiguous(name: str) -> bool:
    """Whether a name has words for a class and still does not say which."""
    return bool(_read(name)[0]) and class_of(name) is None


def _read(name: str) -> tuple[set[int], bool]:
    """Classes whose words stand in a name, and whether a negation does."""
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", name).casefold())
    found = {label for label, pattern in _PATTERNS.items() for word in words if pattern.fullmatch(word)}
    return found, not NEGATIONS.isdisjoint(words)


def describe(labels: Mapping[str, int]) -> str:
    """One line that says what was read as what: `label: Fake -> 1 (fake), Real -> 0 (real)`."""
    return "label: " + ", ".join(f"{name} -> {label} ({CLASS_NAMES[label]})" for name, label in labels.items())


class LabelReader:
    """Reads the labels of one data set, the same way from memory and from a stream.

    A value is looked up among the stated labels, then read as a name; a number, or a text of digits, counts only
    without a name: 0 is real and 1 is fake, or the reverse if the column's own name says so (`is_real`). What was read
    as what is logged once, as a warning where it is not `real` and `fake` already.

    Args:
        domain: Name of the domain, for messages.
        names: Class names of a `ClassLabel` column; None for a column of texts, numbers or truth values.
        column: Name of the column in the data set.
        stated: `real` or `fake` for values that the user states.

    Raises:
        DomainError: If a class name does not tell its class, or all tell the same.
    """

    def __init__(
        self,
        domain: str,
        names: Iterable[str] | None = None,
        column: str = "label",
        stated: Mapping[str, str] | None = None,
    ):
        self.domain, self.column = domain, column
        self.stated = dict(stated or {})
        self.names = None if names is None else list(names)
        self.read_as: dict[str, int] = {}
        if self.names is not None:
            self._remember({name: self._label(name) for name in self.names})
            if len(self.names) > 1 and len(set(self.read_as.values())) == 1:
                self._refuse(f"the classes {self.names}, all of one class")

    def __call__(self, value: object) -> int:
        """Return 0 for real, 1 for fake.

        Raises:
            DomainError: If the value does not tell its class.
        """
        return self.read_all([value])[0]

    def read_all(self, values: Iterable[object]) -> list[int]:
        """Return the label of each value, as `__call__` does."""
        texts = [self._text(value) for value in values]
        if new := {text: self._label(text) for text in sorted(set(texts) - self.read_as.keys())}:
            self._remember(new)
        return [self.read_as[text] for text in texts]

    def _text(self, value: object) -> str:
        if isinstance(value, str):
            return value
        if value is None or value != value:  # null or nan
            self._refuse("a row without a label")
        number = int(value)  # type: ignore[call-overload]  # truth values and numpy's numbers, too
        if number != value:
            self._refuse(repr(value))
        if self.names is None:
            return str(number)
        if not 0 <= number < len(self.names):  # -1 is what `datasets` writes where a label is withheld
            self._refuse(f"the class number {number} of {len(self.names)} classes")
        return self.names[number]

    def _label(self, text: str) -> int:
        label = class_of(text, self.stated)
        if label is None and text in ("0", "1"):  # a recipe may also write true and false
            label = class_of(("false", "true")[int(text)], self.stated)
        if label is None and text.strip() in ("0", "1"):
            said, negated = _read(self.column)
            if said and negated:
                self._refuse(f"numbers in the column {self.column!r}, whose name has a negation")
            return 1 - int(text) if said == {REAL} else int(text)
        if label is None:
            shown = text if re.fullmatch(r"-?[0-9]+", text) else repr(text)
            self._refuse(shown if self.names is None else f"{shown} among the classes {self.names}")
        return label

    def _remember(self, new: dict[str, int]) -> None:
        self.read_as |= new
        usual = all(name in (CLASS_NAMES[label], str(label)) for name, label in new.items())
        logger.log(logging.INFO if usual else logging.WARNING, "Domain %r: %s", self.domain, describe(new))

    def _refuse(self, found: str) -> NoReturn:
        raise DomainError(
            f"Domain {self.domain!r}: labels must be real and fake, or 0 and 1, found {found}. State what they are, "
            'for example in a recipe: labels: {"name": fake, "other name": real}.'
        )
