"""Stop strangers who show the name of somebody of ours: "Anna Muster" <chief.office@mail.example>.

Readers show the name and hide the address, and DMARC says only that the address is genuine. So names that are worth
borrowing are listed here, and belong to the addresses of our domains, and to those that are named with them. Names are
compared as they look: letters of other scripts, accents, invisible characters, the order of their words, and words
around them make no difference.

*RFCs*: 5322 (section 3.4, display names).
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field

from gateway.sdk import (
    PROCEED,
    Arc,
    Dkim,
    Dmarc,
    DomainNames,
    Mailbox,
    Message,
    Policy,
    PolicyOptions,
    Proof,
    Response,
    Session,
    Spf,
    Verdict,
    find_domain,
    prove_author,
    read_authors,
    respond,
)
from gateway.sdk.actions import check_tag, mailbox, set_header, tag_subject
from gateway.sdk.lookalikes import name_words
from gateway.sdk.mailboxes import read_mailboxes

_HEADER: Final = "X-Impersonation"
_SHOWN: Final = 100


def _people(value: Any) -> Any:
    """A list of names stands for names without addresses elsewhere."""
    return dict.fromkeys(value, ()) if isinstance(value, list | tuple) else value


def _checked(names: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    alike: dict[tuple[str, ...], str] = {}
    for name, addresses in names.items():
        words = name_words(name)
        if len(words) < 2:
            raise ValueError(f"{name[:100]!r}: give at least two words; one alone is anybody's")
        if (other := alike.setdefault(tuple(sorted(words)), name)) != name:
            raise ValueError(f"{name[:100]!r} looks like {other[:100]!r}: name it once, with the addresses of both")
        for address in addresses:
            mailbox(address)
    return names


class DisplayNameOptions(PolicyOptions):
    """Options of `display-name`."""

    names: Annotated[dict[str, tuple[str, ...]], BeforeValidator(_people), AfterValidator(_checked)] = Field(
        min_length=1,
        max_length=2_000,
        description="Names that are worth borrowing: a list, or a mapping to their addresses elsewhere.",
    )
    own_domains: DomainNames = Field(
        min_length=1, max_length=1_000, description="Our domains, with all below, whose addresses may bear the names."
    )
    whole: bool = Field(False, description="The name must be all that is shown, not only be among it.")
    addresses: bool = Field(True, description="A name that shows an address of `own_domains` is a borrowed one, too.")
    action: Response = Field(
        Response.TAG, description="What is done: `record`, `tag`, `quarantine` or `reject` (`550 5.7.1`)."
    )
    subject: Annotated[str, AfterValidator(lambda tag: tag and check_tag(tag))] = Field(
        "", description="Tag before the subject of what is tagged or set aside; empty for none."
    )


class DisplayName(Policy):
    """Stops strangers who show the name of somebody of ours; judged at message. Trusted clients pass."""

    name = "display-name"
    version = "2"
    Options = DisplayNameOptions
    options: DisplayNameOptions

    def __init__(self, options: DisplayNameOptions) -> None:
        super().__init__(options)
        # By its longest word, so that what is shown is compared with few; and written without spaces, either way round.
        self._people: dict[str, list[tuple[str, Counter[str]]]] = {}
        self._glued: dict[str, str] = {}
        for name in options.names:
            words = name_words(name)
            self._people.setdefault(max(words, key=len), []).append((name, Counter(words)))
            self._glued |= {"".join(words): name, "".join(reversed(words)): name}

    def on_message(
        self,
        session: Session,
        message: Message,
        dmarc: Dmarc | None,
        dkim: Dkim | None,
        spf: Spf | None,
        arc: Arc | None,
    ) -> Verdict:
        if session.trusted:
            return PROCEED
        authors = read_authors(message)
        # One long name can stand before many addresses.
        claims = {name: self._claim(name) for name in {author.name for author in authors}}
        for author in authors:
            claim = claims[author.name]
            if claim and not self._may(author, claim, dmarc, dkim, spf, arc):
                edits = set_header(_HEADER, "the sender's name is that of somebody else")
                if self.options.subject:
                    edits += tag_subject(message, self.options.subject)
                return respond(
                    self.options.action,
                    f"{author} shows {claim[:_SHOWN]!r}",
                    *edits,
                    text="the sender's name is not accepted with this address",
                )
        return PROCEED

    def _claim(self, shown: str) -> str:
        """Whose name it is that is shown, or which address of ours; empty for neither."""
        words = name_words(shown)
        if name := self._glued.get("".join(words)):
            return name
        present = Counter(words)
        whole = self.options.whole
        # Of several names that are within one another, the longest is meant.
        candidates = [one for word in sorted(present) for one in self._people.get(word, ())]
        claims = [
            (wanted.total(), name)
            for name, wanted in candidates
            # Not all of a long text's words for each of many names: only those of the name.
            if all(present[word] >= times for word, times in wanted.items())
            and (not whole or wanted.keys() == present.keys())
        ]
        claims += [(1, self._glued[word]) for word in sorted(present) if not whole and word in self._glued]
        if claims:
            return max(claims)[1]
        if self.options.addresses and "@" in shown:
            for inside in read_mailboxes([shown]):
                if find_domain(inside.domain, self.options.own_domains):
                    return inside.key
        return ""

    def _may(
        self, author: Mailbox, claim: str, dmarc: Dmarc | None, dkim: Dkim | None, spf: Spf | None, arc: Arc | None
    ) -> bool:
        """Whether the address may bear the name, unless it is proved that it is forged itself."""
        ours = find_domain(author.domain, self.options.own_domains)
        elsewhere = {mailbox(address).key for address in self.options.names.get(claim, ())}
        if not ours and author.key not in elsewhere:
            return False
        proof = prove_author(author.domain, self.options.own_domains, dmarc=dmarc, dkim=dkim, spf=spf, arc=arc)
        # That we could not check is no proof of forgery.
        return proof is not Proof.UNPROVED
