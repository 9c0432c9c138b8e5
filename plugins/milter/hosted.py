"""One instance of a pymilter class, and how its callbacks are called: what libmilter and pymilter's C part do.

All of this runs in a thread of the crew, one at a time for an instance. The order of callbacks and what their codes
mean are libmilter's, and Postfix's where it is the MTA that decides: a code at ``connect`` or ``hello`` settles the
session, at ``envrcpt`` REJECT and TEMPFAIL settle one recipient, all others settle the message. SKIP ends a row of
callbacks of one kind.

*Fails by*: whatever the milter raises, and `MilterError` for a code that is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from gateway.sdk import get_logger
from plugins.milter.context import Context, Notices
from plugins.milter.macros import Facts
from plugins.milter.packets import Answer, MilterError, Modification, Said, Steps

OFFERED_ACTIONS: Final = 0x1FF
"""All of `Actions`, and of `Steps`: plain numbers, since each session computes with them."""
OFFERED_STEPS: Final = 0x1FFFFF
_SKIP_STEP: Final = Steps.SKIP.value

_CONTINUE, _REJECT, _DISCARD, _ACCEPT, _TEMPFAIL, _NOREPLY, _SKIP, _ALL_OPTIONS = 0, 1, 2, 3, 4, 7, 8, 10
"""Codes of libmilter (``SMFIS_...``)."""
_GOING_ON: Final = frozenset({_CONTINUE, _NOREPLY, _SKIP})
_SAID: Final = {
    _ACCEPT: Said.ACCEPT,
    _REJECT: Said.REJECT,
    _TEMPFAIL: Said.TEMPFAIL,
    _DISCARD: Said.DISCARD,
}
_CLASS: Final = {_REJECT: "5", _TEMPFAIL: "4"}

_log = get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class Callback:
    """A method of a milter; the steps by which a class declines it, or its answer."""

    method: str
    declined: int = 0
    silent: int = 0

    def wanted(self, steps: int) -> bool:
        return not steps & self.declined


CONNECT: Final = Callback("connect", Steps.NO_CONNECT.value, Steps.SILENT_CONNECT.value)
HELLO: Final = Callback("hello", Steps.NO_HELO.value, Steps.SILENT_HELO.value)
ENVFROM: Final = Callback("envfrom_bytes", Steps.NO_MAIL.value, Steps.SILENT_MAIL.value)
ENVRCPT: Final = Callback("envrcpt_bytes", Steps.NO_RCPT.value, Steps.SILENT_RCPT.value)
DATA: Final = Callback("data", Steps.NO_DATA.value, Steps.SILENT_DATA.value)
HEADER: Final = Callback("header_bytes", Steps.NO_HEADERS.value, Steps.SILENT_HEADER.value)
EOH: Final = Callback("eoh", Steps.NO_EOH.value, Steps.SILENT_EOH.value)
BODY: Final = Callback("body", Steps.NO_BODY.value, Steps.SILENT_BODY.value)
EOM: Final = Callback("eom")
ABORT: Final = Callback("abort")
CLOSE: Final = Callback("close")

_OF_SESSION: Final = frozenset({CONNECT, HELLO})


class Call(NamedTuple):
    """One call that is due. `asked` says that its answer is for somebody who waits."""

    callback: Callback
    facts: Facts
    arguments: tuple[Any, ...] = ()
    asked: bool = True


class Done(NamedTuple):
    """What came of calls: an answer that settles something and the callback that gave it, and changes at the end."""

    answer: Answer | None = None
    by: Callback | None = None
    changes: Sequence[Modification] = ()


class Instance(Protocol):
    """A `Milter.Base`, as far as it is named here."""

    def _setctx(self, ctx: Context | None) -> None: ...

    def negotiate(self, opts: list[int]) -> int: ...


class Hosted:
    """The instance for one session, made in the thread that calls it first."""

    def __init__(self, make: Callable[[], Any], context: Context) -> None:
        self.abandoned = False
        """Nobody waits any more: it calls no further callback."""
        self.steps: int | None = None
        """What the instance declines (`Steps`), once it was asked. A plain number: it is looked at for each call."""
        self.in_message = False
        """Whether it has begun with a message and not come to its end: then ``abort`` is due before the next."""
        self._make = make
        self._context = context
        self._instance: Any = None
        self._skipped: Callback | None = None

    def skips(self, callback: Callback) -> bool:
        """Whether it wants no more calls of this kind in a row."""
        return self._skipped is callback

    def perform(self, calls: Sequence[Call], notices: Notices) -> Done:
        """Make the calls in order, up to one whose answer settles something."""
        context = self._context
        context.notices = notices
        if self._instance is None and not self.abandoned:
            self._begin(calls[0].facts)
        try:
            for call in calls:
                if self.abandoned:
                    break
                done = self._call(call)
                if done is not None:
                    return done
            return Done()
        except BaseException:
            self._give_up()
            raise
        finally:
            context.notices = context.facts = None

    def _begin(self, facts: Facts) -> None:
        context = self._context
        context.facts = facts
        context.actions = OFFERED_ACTIONS
        instance = self._make()
        instance._setctx(context)
        options = [OFFERED_ACTIONS, OFFERED_STEPS, 0, 0]
        code = instance.negotiate(options)
        if code == _ALL_OPTIONS:
            self.steps = _SKIP_STEP
        elif code == _CONTINUE:
            context.actions = int(options[0]) & OFFERED_ACTIONS
            self.steps = int(options[1]) & OFFERED_STEPS
        else:
            raise MilterError(f"it answered {code!r} when it was to negotiate")
        self._instance = instance

    def _call(self, call: Call) -> Done | None:
        callback, steps = call.callback, self.steps
        assert steps is not None
        if steps & callback.declined or callback is self._skipped or (callback is ABORT and not self.in_message):
            return None
        self._skipped = None
        self._context.facts = call.facts
        if callback is EOM:
            return self._end(call)
        code = getattr(self._instance, callback.method)(*call.arguments)
        if callback is ABORT or callback is CLOSE:
            self.in_message = False
            return None
        if callback not in _OF_SESSION:
            self.in_message = True
        # Nearly all that milters ever say.
        if code is _CONTINUE or steps & callback.silent:
            return None
        return self._meant(call, code)

    def _end(self, call: Call) -> Done:
        self._context.begin_end()
        self.in_message = True
        try:
            code = self._instance.eom()
        finally:
            changes = self._context.finish_end()
        self.in_message = False
        done = self._meant(call, code)
        return Done(changes=changes) if done is None else done._replace(changes=changes)

    def _meant(self, call: Call, code: object) -> Done | None:
        """What a code means, None for going on."""
        if not isinstance(code, int) or (code not in _SAID and code not in _GOING_ON):
            raise MilterError(f"{call.callback.method} answered {code!r:.100}")
        if code in _GOING_ON:
            if code == _SKIP:
                self._skipped = call.callback
            return None
        recipient = call.callback is ENVRCPT and code in _CLASS
        if recipient and not call.asked:
            return None
        if not recipient and not (call.callback is ENVRCPT and code == _DISCARD):
            # libmilter counts a message that was discarded at a recipient as open, and so do milters.
            self.in_message = False
        reply = self._context.take_reply(_CLASS[code]) if code in _CLASS else None
        if reply is None:
            return Done(Answer(_SAID[code]), call.callback)
        return Done(Answer(Said.REPLY, reply.code, reply.detail, reply.text), call.callback)

    def _give_up(self) -> None:
        """It has raised: let it give back what it holds, and have no more to do with it."""
        instance, self._instance = self._instance, None
        if instance is None:
            return
        try:
            instance.close()
        except Exception as error:  # noqa: BLE001 - it has failed already, and that is what counts
            _log.warning("milter.close_failed", reason=f"{type(error).__name__}: {error}")
        instance._setctx(None)
        self.drop()

    def finish(self, calls: Sequence[Call], notices: Notices) -> None:
        """The session is over: make what calls are due, then ``close``."""
        self.perform([*calls, Call(CLOSE, calls[-1].facts)], notices)
        if self._instance is not None:
            self._instance._setctx(None)
        self.drop()

    def drop(self) -> None:
        """Let go of the instance, which has nothing to do any more."""
        self._instance = None
        self._context.setpriv(None)
