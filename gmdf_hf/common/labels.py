"""Real and fake class of a data set, from its class names instead of its class numbers (decision D21).

One rule for data sets, streams, folders, importers and the `id2label` of other detectors. A name is split into words
and compared without case: `Fake`, `DEEP-FAKE`, `Celeb-real`, `ai_generated`. A name without a class word, with words of
both classes, or with a negation ("not fake") is rejected; the user must then state its class. Numbers are used only if
there are no names.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NoReturn

from gmdf_hf.common.errors import DomainError
from gmdf_hf.common.schema import FAKE, REAL

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

CLASS_NAMES = ("real", "fake")
# Regular expressions for the class words used by data sets and detectors.
REAL_WORDS = (
    "real|realism|genuine|authentic|original|pristine|bonafide|bona|human|live|nature|natural|legit|legitimate"
    "|untouched|unaltered|unedited|unmodified|unmanipulated|untampered"
)
FAKE_WORDS = (
    "fake|deepfake|forged|forgery|forgeries|manipulated|manipulation|synthetic|synthesi[sz]ed|synthesis|artificial|ai"
    "|aigc|genai|generated|tampered|tampering|altered|edited|modified|doctored|retouched|inpainted|inpainting|spoof"
    "|spoofed|spoofing|attack|impostor|faked|deepfaked|swap|swapped|faceswap|simswap|inswap|facetoface|deepfakedetection"
    "|neuraltextures|faceshifter|reenacted|reenactment|lipsync|morph|morphed|photoshop|photoshopped|counterfeit|falsified"
    "|bogus|phony|gan|esrgan|stylegan|progan|cyclegan|stargan|biggan|vqgan|diffusion|midjourney|cgi"
)
NEGATIONS = frozenset(["not", "no", "non", "never", "un", "isn", "isnt", "without", "anti", "neither", "nor"])

_THINGS = "(?:face|image|img|picture|pic|photo|video|frame|person|generated)?s?"  # `fakes`, `realfaces`, `aigenerated`
_PATTERNS = {
    REAL: re.compile(f"(?:is)?(?:{REAL_WORDS}){_THINGS}"),
    FAKE: re.compile(f"(?:is)?(?:{FAKE_WORDS}){_THINGS}"),
}


def class_of(name: str, stated: Mapping[str, str] | None = None) -> int | None:
    """Read a class name.

    Args:
        name: Class name in the data set.
        stated: `real` or `fake` by name, as stated by the user; case-insensitive.

    Returns:
        0 for real, 1 for fake; None if the name has words of neither or both classes, or a negation.
    """
    for other, label in (stated or {}).items():
        if other.casefold() == name.casefold():
            return CLASS_NAMES.index(label)
    found, negated = _read(name)
    return found.pop() if len(found) == 1 and not negated else None


def is_ambiguous(name: str) -> bool:
    """Whether a name has class words but no unique class."""
    return bool(_read(name)[0]) and class_of(name) is None


def _read(name: str) -> tuple[set[int], bool]:
    """Classes whose words occur in a name, and whether a negation occurs."""
    text = unicodedata.normalize("NFKC", name).casefold().replace("face2face", "facetoface")
    words = re.findall(r"[^\W\d_]+", text)
    found = {label for label, pattern in _PATTERNS.items() for word in words if pattern.fullmatch(word)}
    return found, not NEGATIONS.isdisjoint(words)


def describe(labels: Mapping[str, int]) -> str:
    """Describe the label mapping in one line: `label: Fake -> 1 (fake), Real -> 0 (real)`."""
    return "label: " + ", ".join(f"{name} -> {label} ({CLASS_NAMES[label]})" for name, label in labels.items())


class LabelReader:
    """Reads the labels of one data set, in memory or streamed.

    A value is looked up among the stated labels, then read as a name. A number, or a string of digits, is used only
    without a name: 0 is real and 1 is fake, or the reverse if the column name says so (`is_real`). The mapping is
    logged once, as a warning if the names are not `real` and `fake`.

    Args:
        domain: Name of the domain, for messages.
        names: Class names of a `ClassLabel` column; None for a column of strings, numbers or booleans.
        column: Name of the column in the data set.
        stated: `real` or `fake` by value, as stated by the user.

    Raises:
        DomainError: If the class of a name is unknown, or all names have the same class.
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
            DomainError: If the class of the value is unknown.
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
        number = int(value)  # type: ignore[call-overload]  # also booleans and numpy numbers
        if number != value:
            self._refuse(repr(value))
        if self.names is None:
            return str(number)
        if not 0 <= number < len(self.names):  # `datasets` writes -1 for withheld labels
            self._refuse(f"the class number {number} of {len(self.names)} classes")
        return self.names[number]

    def _label(self, text: str) -> int:
        label = class_of(text, self.stated)
        if label is None and text in ("0", "1"):  # a recipe may also contain true and false
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
            f"Domain {self.domain!r}: labels must be real and fake, or 0 and 1, found {found}. State what they are: "
            '--labels "name=fake" "other name=real", or in a recipe: labels: {"name": fake, "other name": real}.'
        )


def class_names(config: PreTrainedConfig) -> dict[int, str]:
    """Class names of a classifier by number."""
    return {int(number): str(name) for number, name in (config.id2label or {}).items()}


def fake_class(id2label: Mapping[int, str], fake_label: str | None = None) -> int:
    """Which of a classifier's two classes is the fake one.

    Args:
        id2label: Names of the classes, from the model's configuration.
        fake_label: Name of the fake class, where the names do not say it themselves.

    Raises:
        ValueError: If there are not two classes, or their names do not tell real from fake.
    """
    names = {int(number): str(name) for number, name in id2label.items()}
    if len(names) != 2:
        raise ValueError(
            f"A detector needs two classes, real and fake, found {len(names)}: {list(names.values())[:5]}."
        )
    if fake_label is not None:
        found = [number for number, name in names.items() if name == fake_label]
        if len(found) != 1:
            raise ValueError(f"The fake class must be one of the model's {list(names.values())}, found {fake_label!r}.")
        return found[0]
    read = {number: class_of(name) for number, name in names.items()}
    classes = {number: label for number, label in read.items() if label is not None}
    if sorted(classes.values()) != sorted((REAL, FAKE)):
        raise ValueError(
            f"The class names {list(names.values())} do not tell real from fake; name the fake one with `fake_label`."
        )
    logger.info(describe({name: classes[number] for number, name in names.items()}))
    return next(number for number, label in classes.items() if label == FAKE)
