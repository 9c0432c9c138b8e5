"""Orders and requests: what processes tell each other through memory that they share."""

from __future__ import annotations

import asyncio
import os

import pytest

from gateway.ops.orders import REASON_OCTETS, TEXT_OCTETS, Order, Orders, Phase
from gateway.ops.requests import Requests
from tests.ops.test_board import in_child


def test_an_order_comes_to_another_process_and_its_answer_back() -> None:
    orders = Orders(2)
    orders.prepare(2, "pipeline: [ä]".encode())

    def work() -> None:
        assert orders.order() == Order(2, Phase.PREPARE, 0)
        assert orders.text(2) == "pipeline: [ä]".encode()
        orders.answers[1].begin(2)
        orders.answers[1].fail(2, "no such file: ü")

    in_child(work)
    answer = orders.answers[1]
    assert (answer.failed, answer.trying, answer.ready, answer.reason) == (2, 0, 0, "no such file: ü")
    assert orders.answers[0].failed == 0
    orders.close()


def test_who_dies_while_it_prepares_leaves_that_behind() -> None:
    orders = Orders(1)
    orders.prepare(2, b"x")
    in_child(lambda: orders.answers[0].begin(2))
    assert orders.answers[0].trying == 2
    orders.answers[0].clear()
    assert (orders.answers[0].trying, orders.answers[0].reason) == (0, "")


def test_the_text_of_an_order_is_gone_with_its_phase() -> None:
    orders = Orders(1)
    orders.prepare(2, b"two")
    orders.take()
    assert orders.order() == Order(2, Phase.TAKE, 2) and orders.text(2) is None
    orders.prepare(3, b"3")
    assert orders.text(2) is None and orders.text(3) == b"3"
    orders.give_up()
    assert orders.order() == Order(3, Phase.GIVE_UP, 2) and orders.text(3) is None


def test_texts_and_reasons_are_bounded() -> None:
    orders = Orders(1)
    orders.prepare(1, b"x" * TEXT_OCTETS)
    with pytest.raises(ValueError):
        orders.prepare(2, b"x" * (TEXT_OCTETS + 1))
    orders.answers[0].fail(1, "ü" * REASON_OCTETS)
    assert len(orders.answers[0].reason) == REASON_OCTETS // 2


def test_a_request_is_answered_by_a_reload_that_began_after_it() -> None:
    requests = Requests()
    rung: list[int] = []

    def ring() -> None:
        """The supervisor: another reload was running, whose outcome is none for this request."""
        rung.append(requests.asked())
        requests.answer(requests.asked() - 1, {"generation": 2})
        in_child(lambda: requests.answer(requests.asked(), {"generation": 3}))

    assert requests.last() is None
    assert asyncio.run(requests.ask(ring, 10.0)) == {"generation": 3}
    assert rung == [1] and requests.last() == {"generation": 3}


def test_requests_that_came_meanwhile_share_an_outcome() -> None:
    requests = Requests()

    async def go() -> list[object]:
        asking = [asyncio.ensure_future(requests.ask(lambda: None, 10.0)) for _ in range(3)]  # noqa: TID251
        await asyncio.sleep(0)
        assert requests.asked() == 3
        requests.answer(3, {"generation": 2})
        return list(await asyncio.gather(*asking))

    assert asyncio.run(go()) == [{"generation": 2}] * 3


def test_a_request_that_nobody_answers_ends() -> None:
    requests = Requests()
    requests.answer(0, {"pid": os.getpid()})
    assert asyncio.run(requests.ask(lambda: None, 0.01)) is None


def test_an_outcome_that_is_too_long_is_told_without_its_problems() -> None:
    requests = Requests()
    problem = {"file": "gatepost.yaml", "line": 1, "key": "\u0436" * 1000, "message": "unknown key"}
    outcome = {"result": "refused", "reason": "x", "needs_restart": ["spool.path"], "problems": [problem] * 100}
    requests.answer(1, outcome)
    assert requests.last() == {**outcome, "problems": []}
    requests.answer(2, {"result": "done", "problems": [problem]})
    assert requests.last() == {"result": "done", "problems": [problem]}
