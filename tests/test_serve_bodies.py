import asyncio
import gzip
import zlib

import pytest

from debride.serve.http.bodies import Body, Budget
from debride.serve.http.errors import BadRequest, TooLarge, Unavailable, Unsupported


def read(parts, *, limit=1000, budget=None, length=None, encoding=None, release=True):
    budget = budget or Budget(10_000)
    messages = [{"type": "http.request", "body": p, "more_body": True} for p in parts]
    messages[-1]["more_body"] = False

    async def receive():
        return messages.pop(0)

    async def main():
        body = Body(receive, limit=limit, budget=budget)
        try:
            return await body.read(length, encoding)
        finally:
            if release:
                body.release()

    return asyncio.run(main()), messages


def test_parts_are_joined():
    assert read([b"ab", b"", b"c"])[0] == b"abc"


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "deflate"])
def test_content_encodings_are_undone(coding):
    data = bytes(range(200))
    packed = zlib.compress(data) if coding == "deflate" else gzip.compress(data)
    assert read([packed[:50], packed[50:]], encoding=coding)[0] == data


def test_a_length_over_the_limit_is_refused_before_a_byte_is_read():
    with pytest.raises(TooLarge, match=r"1001.*1000"):
        asyncio.run(Body(None, limit=1000, budget=Budget(1)).read("1001", None))


def test_a_body_without_length_is_refused_where_it_passes_the_limit():
    with pytest.raises(TooLarge, match="limit of 1000"):
        read([b"x" * 600, b"x" * 600, b"x" * 600])


def test_a_bomb_is_not_unpacked_past_the_limit():
    with pytest.raises(TooLarge, match="once decompressed"):
        read([gzip.compress(b"\0" * 100_000_000)], limit=200_000, budget=Budget(1 << 30), encoding="gzip")


@pytest.mark.parametrize("data", [b"junk", gzip.compress(b"abc")[:-3], gzip.compress(b"abc") + b"more", b""])
def test_broken_packed_bodies_are_the_clients_mistake(data):
    with pytest.raises(BadRequest, match="gzip"):
        read([data], encoding="gzip")


def test_other_encodings_are_not_understood():
    with pytest.raises(Unsupported, match="br"):
        read([b""], encoding="br")


def test_many_large_bodies_at_once_exhaust_the_budget_and_give_it_back():
    mebibyte = 1 << 20
    budget = Budget(8 * mebibyte)
    large = {"limit": 8 * mebibyte, "budget": budget}
    read([bytes(4 * mebibyte)], release=False, **large)
    for _ in range(2):
        with pytest.raises(Unavailable) as refused:
            read([bytes(2 * mebibyte), bytes(2 * mebibyte)], **large)
        assert refused.value.headers["Retry-After"] == "1"
        read([bytes(2 * mebibyte)], **large)


def test_large_bodies_that_are_slow_to_come_leave_room_for_small_ones():
    mebibyte = 1 << 20
    budget = Budget(8 * mebibyte)
    read([bytes(6 * mebibyte)], limit=8 * mebibyte, budget=budget, release=False)
    read([b"x" * 1000], budget=budget, limit=mebibyte)
    with pytest.raises(Unavailable):
        read([bytes(mebibyte + 1)], budget=budget, limit=8 * mebibyte)
