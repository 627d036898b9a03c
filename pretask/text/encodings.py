"""Reading text files of unknown encoding.

UTF-8 is tried first, because text in other encodings is hardly ever valid UTF-8; byte-order marks and declarations in HTML pages
are used. Other encodings are detected by charset-normalizer, and refused if two candidates are about equally likely.
"""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from pretask.types import UserError

COMMON = (
    "cp1252", "cp1251", "cp932", "gb18030", "cp949", "big5", "cp1250", "iso8859_2", "mac_roman", "koi8_r", "cp1253",
    "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874", "euc_jp", "cp866", "mac_cyrillic", "cp850",
)  # fmt: skip
"""candidate encodings, by Python's names; of those that give the same text, the first is reported"""
FEWEST = 200
"""number of non-ASCII bytes below which different candidates are not distinguished"""
ALIKE = 0.02
"""fraction of non-ASCII characters in which two likely candidates may differ, as German in cp1250 and cp1252 does"""
LEAD = 0.02
"""smallest lead of the best score (at most 1) over the others: chosen so that hardly any text is decoded wrongly, and some
are refused, mostly Latin letters that differ between cp1250 and cp1252"""
SAMPLE = 2**18
"""bytes of a file used for detection; the whole file must be valid, too"""
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""byte-order marks; UTF-32 comes first, because its mark starts with that of UTF-16"""
DECLARED = re.compile(
    rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml[^>]+encoding\s*=\s*["']([\w.:-]+)""", re.I
)
DECLARED_WITHIN = 4096
"""bytes at the beginning of a page that are searched for a declaration"""
BROWSERS = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030",
    "shift_jis": "cp932", "euc_kr": "cp949", "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8",
}  # fmt: skip
"""declared names and the encodings that browsers use for them (encoding.spec.whatwg.org)"""
ESCAPED = re.compile("[\udc80-\udcff]")
"""Python's surrogate escapes of undecodable bytes"""
MISPLACED = re.compile(
    r"(?<=[^\W\d_])(?:[^\w\s\x00-\x7f’·\xad]|(?<=[a-zß-ÿ])(?=[^\x00-\x7f])[A-ZÀ-ÞŽŠŒŸ])(?=[^\W\d_])"
)
"""symbols and capitals inside of words, as in Gr³▀e: signs of a wrong encoding"""
CONTROLS = re.compile(r"[\x80-\x9f]")
"""control characters, which do not occur in text"""


def read(path: Path, encoding: str | None = None, page: bool = False) -> tuple[str, str]:
    """A file's text, and the name of its encoding if it was detected, else "".

    `encoding` takes precedence; a `page` can declare its own. Undecodable bytes are kept as escapes, which `undecodable`
    finds. Raises UserError if the encoding is unknown or ambiguous, OSError if there is no file.
    """
    raw = path.read_bytes()
    stated = require_known(encoding) if encoding else from_bom(raw) or (declared(raw) if page else "")
    if not stated and raw.count(0) * 4 > len(raw):
        raise UserError(f"{path} is not text, or UTF-16 without a byte-order mark: try --encoding utf-16-le")
    name = stated or ("utf-8" if is_utf8(raw) else detect(path, raw))
    try:
        text = raw.decode(name, "surrogateescape")
    except UnicodeDecodeError as error:  # some encodings, such as UTF-16, cannot escape a byte
        line = len(re.findall("\r\n|\r|\n", raw[: error.start].decode(name, "replace"))) + 1
        raise UserError(
            f"{path}, line {line}, is not valid {name}; fix it, or give its encoding: --encoding NAME"
        ) from None
    return text.removeprefix("\ufeff"), "" if stated or name == "utf-8" else name


def undecodable(text: str) -> str:
    """The reason why a text has undecodable bytes; "" if it has none."""
    found = ESCAPED.search(text)
    return f"not of the file's encoding: byte 0x{ord(found[0]) - 0xDC00:02x}" if found else ""


def require_known(encoding: str) -> str:
    """The encoding itself. Raises UserError if Python does not know it."""
    try:
        "a".encode(encoding)
    except (LookupError, ValueError):
        expected = "a name such as utf-8, utf-16, cp1252 or shift_jis"
        raise UserError(f"--encoding {encoding} is not known; expected {expected}") from None
    return encoding


def from_bom(raw: bytes) -> str:
    """The encoding given by a byte-order mark; "" without one."""
    return next((name for mark, name in MARKS if raw.startswith(mark)), "")


def declared(raw: bytes) -> str:
    """The encoding declared by a page, as interpreted by browsers; "" if there is none or it is unknown."""
    found = DECLARED.search(raw[:DECLARED_WITHIN])
    try:
        name = codecs.lookup((found[1] or found[2]).decode()).name if found else ""
        return BROWSERS.get(name, require_known(name)) if name else ""
    except (LookupError, UserError):
        return ""


def is_utf8(raw: bytes) -> bool:
    """Whether more than half of the non-ASCII lines are valid UTF-8."""
    try:
        raw.decode()
        return True
    except UnicodeDecodeError:
        lines = [line for line in raw.splitlines() if not line.isascii()]
        return sum(map(valid, lines)) * 2 > len(lines)


def valid(raw: bytes, encoding: str = "utf-8") -> bool:
    try:
        raw.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def detect(path: Path, raw: bytes) -> str:
    """The most likely encoding. Raises UserError if it is ambiguous."""
    candidates = likely(raw)
    if not candidates:
        raise UserError(f"{path} is not UTF-8; give its encoding: --encoding NAME")
    best = candidates[0]
    close = [candidate for candidate in candidates if best.score - candidate.score < LEAD]
    conflicting = [candidate for candidate in close if difference(best.text, candidate.text) > ALIKE]
    few = sum(byte > 127 for byte in raw)
    if conflicting or (few < FEWEST and len(candidates) > 1):
        why = f"its {few} non-ASCII bytes are too few" if few < FEWEST else "both are about equally likely"
        others = [candidate.names[0] for candidate in (*conflicting, *candidates[1:])]
        names = [best.names[0], *others, *best.names[1:]][:2]
        raise UserError(
            f"{path} is not UTF-8, but {' or '.join(names)} ({why}); give one: --encoding {names[0]}"
        )
    return min((candidate.names[0] for candidate in close), key=COMMON.index)


@dataclass(frozen=True)
class Candidate:
    """A possible text of a file."""

    score: float  # plausibility as text, at most 1
    names: list[str]  # encodings that give this text
    text: str


def likely(raw: bytes) -> list[Candidate]:
    """Plausible texts of the non-ASCII lines, the most likely first."""
    from charset_normalizer import from_bytes

    lines = [line for line in raw.splitlines() if not line.isascii()]
    lines = lines[:: 1 + sum(map(len, lines)) // SAMPLE]
    sample = b"\n".join(lines)
    matches = from_bytes(sample, cp_isolation=list(COMMON), preemptive_behaviour=False)
    found = {name: match for match in matches for name in match.could_be_from_charset}
    candidates: dict[str, Candidate] = {}
    for name in COMMON:
        if name not in found or not valid(raw, name) or CONTROLS.search(text := sample.decode(name)):
            continue
        misplaced = len(MISPLACED.findall(text)) / sum(not c.isascii() for c in text)
        score = found[name].coherence - found[name].chaos - misplaced
        candidates.setdefault(text, Candidate(score, [], text)).names.append(name)
    return sorted(candidates.values(), key=lambda candidate: -candidate.score)


def difference(text: str, other: str) -> float:
    """Fraction of the non-ASCII characters that differ between two candidates."""
    if len(text) != len(other):
        return 1.0
    pairs = [(a, b) for a, b in zip(text, other, strict=True) if not (a.isascii() and b.isascii())]
    return sum(a != b for a, b in pairs) / max(1, len(pairs))
