"""The queue as JSON: the keys that programs rely on."""

from __future__ import annotations

import json

from gateway.mail.address import NULL_SENDER, parse_mailbox
from gateway.mail.envelope import Body, Envelope, MailParameters, Notify, Recipient, Ret
from gateway.ops.view import explained_json, stored_json
from gateway.spool.spool import Explained, RecipientStatus, Slot, State, Stored

RECIPIENT = Recipient(parse_mailbox("ben@example.org"), frozenset({Notify.FAILURE, Notify.DELAY}), "rfc822;ben")
STORED = Stored(
    "0ABC",
    State.HOLD,
    Envelope(NULL_SENDER, (RECIPIENT,), MailParameters(body=Body.EIGHT_BIT, ret=Ret.FULL, envid="e")),
    (Slot(RECIPIENT, RecipientStatus.DEFERRED, 12.34567, 2, "451 4.3.0 later"),),
    1.5,
    99,
    owed=True,
    trusted=False,
    reason="nobody to tell",
)


def test_a_stored_message_has_its_keys_and_is_json() -> None:
    assert json.loads(json.dumps(stored_json(STORED))) == {
        **{"id": "0ABC", "state": "hold", "reason": "nobody to tell", "received": 1.5, "size": 99, "sender": ""},
        **{"body": "8BITMIME", "smtputf8": False, "ret": "FULL", "envid": "e", "next_hop": "", "priority": "normal"},
        **{"owed": True, "trusted": False, "warned": False},
        "recipients": [
            {
                **{"address": "ben@example.org", "status": "deferred", "due": 12.346, "attempts": 2},
                **{"last": "451 4.3.0 later", "notify": ["DELAY", "FAILURE"], "orcpt": "rfc822;ben"},
            }
        ],
    }


def test_what_has_left_the_spool_is_explained_without_it() -> None:
    assert explained_json(Explained({"id": "x"}, ({"outcome": "delivered"},))) == {
        "record": {"id": "x"},
        "decided": [],
        "attempts": [{"outcome": "delivered"}],
        "stored": None,
    }
