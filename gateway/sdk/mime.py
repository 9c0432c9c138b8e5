"""What a message is made of: its tree of MIME parts, and what is wrong with it.

Readers of mail disagree about what is malformed, and what one filter overlooks another reader opens. So each thing that
they disagree about is a `Defect` of its own: none of them proves anything, and all of them can be asked for.

*RFCs*: 2045, 2046, 2047, 2231 (MIME), 5322 section 3.6 (which fields may stand how often), 6532 (UTF-8 in fields).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from gateway.sdk.findings import Finding

_SHOWN_PARTS: Final = 100
_SHOWN_NAMES: Final = 5
_SHOWN_NAME: Final = 500
_CUT: Final = "…"


class Defect(StrEnum):
    """What is wrong with a message or a part, or what readers are known to read differently."""

    # The tree.
    NO_BOUNDARY = "no-boundary"
    """A multipart without a boundary: it is read as one part."""
    BAD_BOUNDARY = "bad-boundary"
    """Characters that RFC 2046 section 5.1.1 does not allow, or more than 70 of them."""
    AMBIGUOUS_BOUNDARY = "ambiguous-boundary"
    """It is equal to one of a multipart around it, or begins with that, or the other way round."""
    MISSING_START_BOUNDARY = "missing-start-boundary"
    """A multipart in which no part begins."""
    MISSING_END_BOUNDARY = "missing-end-boundary"
    EPILOGUE = "epilogue"
    """Text after the end of a multipart, which some readers show."""
    TOO_DEEP = "too-deep"
    TOO_MANY_PARTS = "too-many-parts"
    """What comes after the last part that is read is not looked at."""
    ENCODED_COMPOSITE = "encoded-composite"
    """A multipart or a message with a transfer encoding, which RFC 2045 section 6.4 forbids."""
    PARTIAL_MESSAGE = "partial-message"
    """A fragment (message/partial): nobody sees the whole before it is put together."""
    EXTERNAL_BODY = "external-body"
    """The content is elsewhere (message/external-body)."""

    # Header fields.
    HEADER_TOO_LARGE = "header-too-large"
    """The fields after that are not read."""
    MALFORMED_HEADER = "malformed-header"
    """A line that is no header field ended the header section."""
    SPACE_BEFORE_COLON = "space-before-colon"
    EIGHT_BIT_HEADER = "eight-bit-header"
    """Octets over 127 that are no UTF-8, or any of them where the client did not announce UTF-8."""
    NUL_IN_HEADER = "nul-in-header"
    CONTROL_IN_HEADER = "control-in-header"
    """A control character, a bare CR among them."""
    DUPLICATE_CONTENT_TYPE = "duplicate-content-type"
    DUPLICATE_ENCODING = "duplicate-encoding"
    DUPLICATE_DISPOSITION = "duplicate-disposition"
    DUPLICATE_MIME_VERSION = "duplicate-mime-version"
    DUPLICATE_FROM = "duplicate-from"
    DUPLICATE_DATE = "duplicate-date"
    DUPLICATE_MESSAGE_ID = "duplicate-message-id"
    DUPLICATE_SUBJECT = "duplicate-subject"
    DUPLICATE_ADDRESS_FIELD = "duplicate-address-field"
    """Sender, Reply-To, To, Cc or Bcc more than once."""
    MISSING_FROM = "missing-from"
    MISSING_DATE = "missing-date"
    MISSING_MESSAGE_ID = "missing-message-id"
    MISSING_MIME_VERSION = "missing-mime-version"
    """There are Content fields."""
    BAD_CONTENT_TYPE = "bad-content-type"
    BAD_PARAMETER = "bad-parameter"
    """A parameter that cannot be read, or stands there twice."""
    ENCODED_WORD_PARAMETER = "encoded-word-parameter"
    """An encoded word where RFC 2047 section 5 allows none: a quoted parameter such as a file name."""
    CONFLICTING_NAMES = "conflicting-names"
    """A part has several file names, and which one is shown depends on the reader."""
    UNKNOWN_CHARSET = "unknown-charset"
    UNKNOWN_ENCODING = "unknown-encoding"

    # Bodies.
    BASE64_GARBAGE = "base64-garbage"
    """Characters that do not belong to Base64, which are skipped (RFC 2045 section 6.8)."""
    BASE64_LENGTH = "base64-length"
    BASE64_AFTER_PADDING = "base64-after-padding"
    QP_GARBAGE = "qp-garbage"
    UU_GARBAGE = "uu-garbage"
    NUL_IN_BODY = "nul-in-body"
    """In a part that says that it is not binary."""
    EIGHT_BIT_BODY = "eight-bit-body"
    """Octets over 127 in a part that says that it has none."""
    BINARY_TEXT = "binary-text"
    """A text whose decoded octets hold NUL: it is none."""
    UNDECODABLE_TEXT = "undecodable-text"
    """A text that is not in the charset that it names."""
    TOO_MUCH_TEXT = "too-much-text"
    """Only the beginning of the texts is looked at."""


@dataclass(frozen=True, slots=True)
class MimePart:
    """One part, as the message declares it.

    `section` is the place in the tree: ``1`` is the message itself, ``1.2`` the second part of that, and a message
    within the message has its only part at ``.1``. `type` is lower-case and never empty: what is missing or cannot be
    read has the default of RFC 2045 section 5.2. `charset` is as declared, in lower case. `names` are all file names
    that a reader may show, as they stand, first the one that most do. `encoding` is the transfer
    encoding in lower case, empty where none is declared.

    `header`, `body` and `end` are offsets into the message's content: the part's header section, its body, and the
    octet after that. `size` is the body's size after decoding, of a part that holds others as it stands.
    """

    section: str
    type: str
    charset: str = ""
    disposition: str = ""
    names: tuple[str, ...] = ()
    encoding: str = ""
    header: int = 0
    body: int = 0
    end: int = 0
    size: int = 0
    composite: bool = False
    defects: tuple[Defect, ...] = ()

    @property
    def major(self) -> str:
        """``text`` of ``text/plain``."""
        return self.type.partition("/")[0]

    @property
    def filename(self) -> str:
        """The name that most readers show, empty where there is none."""
        return self.names[0] if self.names else ""

    @property
    def depth(self) -> int:
        """0 for the message itself."""
        return self.section.count(".")

    def to_json(self) -> dict[str, Any]:
        """What a record says of a part: what is empty is left out, and where it stands is not of interest."""
        out: dict[str, Any] = {"section": self.section, "type": self.type, "size": self.size}
        for name in ("charset", "disposition", "encoding"):
            if value := getattr(self, name):
                out[name] = value
        if self.names:
            out["names"] = [name[:_SHOWN_NAME] for name in self.names[:_SHOWN_NAMES]]
        if self.composite:
            out["composite"] = True
        if self.defects:
            out["defects"] = [defect.value for defect in self.defects]
        return out


@dataclass(frozen=True, slots=True)
class MimeText:
    """The text of one text part, decoded as far as it is kept. `truncated` says that there is more."""

    section: str
    type: str
    text: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Mime(Finding):
    """The message's parts, in the order in which they begin; the first is the message itself.

    `defects` are those of all parts, each once. `size` is the message's size in octets and `size_class` the name of the
    smallest class that it fits into, empty when it fits into none. `complete` says that all parts were read.

    `texts` hold what the text parts say. They are for rules and other look-ups, and never stand in a record.
    """

    parts: tuple[MimePart, ...]
    size: int = 0
    size_class: str = ""
    defects: tuple[Defect, ...] = ()
    complete: bool = True
    texts: tuple[MimeText, ...] = ()

    @property
    def leaves(self) -> tuple[MimePart, ...]:
        """The parts that hold no other parts."""
        return tuple(part for part in self.parts if not part.composite)

    def to_json(self) -> dict[str, Any]:
        """The tree without its content; of more than a hundred parts the first hundred, and a mark."""
        more = [_CUT] if len(self.parts) > _SHOWN_PARTS else []
        return {
            "size": self.size,
            "size_class": self.size_class,
            "complete": self.complete,
            "defects": [defect.value for defect in self.defects],
            "parts": [*(part.to_json() for part in self.parts[:_SHOWN_PARTS]), *more],
        }
