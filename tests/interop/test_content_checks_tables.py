"""Single tables in Postfix and here: patterns, flags, conditions and texts with what matched, looked up by postmap."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from plugins.content.pattern import Kind
from plugins.content.table import Place, Table, logical_lines, parse_table
from tests.support.postmap import postmap

pytestmark = pytest.mark.slow

WORDS = (
    "Subject: X-Spam: List-Id: From: <a@b.test> Re: buy now viagra lottery [list] (1) a.b a\\b x+y $5 100% don't foo"
    " foobar Foo_1 end. =?utf-8?q?x?= 2027-01-01 up:here {3} ^up | pipe ~ aab aaab abcd ab\x7f caf\xe9 \xfcber"
).split(" ")

REGEXP = r"""
/^subject: (re|fwd): +(.*)$/     WARN one $1 and $2
if /^subject:/
!/buy|viagra|now/                INFO no offer
if !/re:/
/(b(u)?y|v(i).gra) ?(now)?/      REJECT two ${1}/$2/$3/$(4).
endif
endif
/\<foo\>/                        WARN three
/foo\>.*\<end/                   WARN four
/[\.]b/                          WARN five
/x\+y|\$5|100%/                  WARN six
/[[:digit:]]{4}-[0-9]{2}/        WARN seven $$
/a{,2}b($| )/                    WARN eight
/(a|ab)(c|bcd)(d*)/              WARN nine $1,$2,$3
/^List-Id:/i                     REJECT ten: with this case only
/[^]a-z:<>@.() -]{4}/            WARN eleven
/:here/                          WARN twelve
/\{3\}|\^up|\|/                  WARN thirteen
/[^[:print:]]/                   WARN fourteen
#/./                             REJECT a comment
!/./                             REJECT nothing is that empty
/don't
  buy/                           WARN fifteen
~\~~                             WARN sixteen
/\w+_[0-9]\b/                    WARN seventeen
"""

PCRE = r"""
/^subject:\s+(re|fwd):\s+(.*)$/  WARN one $1 and $2
if /^subject:/
!/buy|viagra|now/                INFO no offer
if !/re:/
/(b(u)?y|v(i).gra)\ ?(now)?/x    REJECT two ${1}/$2/$3/$(4).
endif
endif
/\bfoo\b/                        WARN three
/^ (?# spaces and comments )
 list \W id : [ ] (\S+?) \b      # first word
 /x                              WARN four $1
/[\.]b/                          WARN five
/x\+y|\Q$5\E|100%/               WARN six
/\d{4}-\d\d/                     WARN seven $$
/a{0,2}?b(\z|\h)/                WARN eight
/(a|ab)(c|bcd)(d*)/              WARN nine $1,$2,$3
/^From:/i                        REJECT ten: with this case only
/[^]a-z:<>@.() -]{4}/            WARN eleven
/:here\Z/                       WARN twelve
/[{^|]/                          WARN thirteen
/[^[:print:]]/                   WARN fourteen
/(?i:DON)'t(?-i)\sFOO/i          WARN fifteen
/(x.*y)/U                        WARN sixteen $1
/re/A                            WARN seventeen
/(?P<word>\w+)_\d\b/             WARN eighteen $1
"""


def ours(kind: Kind, path: Path) -> Table:
    return parse_table(logical_lines(path.read_bytes()), kind, frozenset({Place.HEADER}), decoded=False)


@pytest.mark.parametrize(("kind", "text"), [(Kind.REGEXP, REGEXP), (Kind.PCRE, PCRE)])
def test_a_table_finds_what_postfix_finds_and_says_what_it_says(directory, kind, text):
    path = directory / "table"
    path.write_text(text.lstrip("\n"))
    chance = random.Random(11)
    keys = sorted({" ".join(chance.choices(WORDS, k=chance.randrange(1, 6))) for _ in range(4000)})
    expected = postmap(kind.value, path, keys)
    made = ours(kind, path)
    found = {}
    for key in keys:
        if hit := made.find(key.encode("utf-8", "surrogateescape")):
            said = hit.rule.do.say(hit.match)
            found[key] = f"{hit.rule.do.act.value.upper()} {said}"
    assert found == expected
    said = {value.split()[1] for value in found.values()}
    lines = [line for line in text.splitlines() if " WARN " in line or " INFO " in line or " REJECT ten" in line]
    assert len(said) >= len(lines) - 2, "nearly every line decides somewhere"
