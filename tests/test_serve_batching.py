import asyncio
import threading
import time

import numpy as np
import pytest

from debride.errors import ModelError
from debride.serve.http.batching import Batcher, Plan
from debride.serve.http.errors import Busy, NoAnswer, TooLarge, Unavailable

ANY = Plan(input="x", stackable=frozenset({"y", "z"}))


class Model:
    """y = 2 x and z = -x; remembers the sizes of its batches, and waits for `gate` before it answers."""

    def __init__(self, gate=None, seconds=0.0):
        self.sizes, self.gate, self.seconds = [], gate, seconds
        self.entered = threading.Event()

    def __call__(self, feeds, outputs):
        (rows,) = feeds.values()
        self.sizes.append(len(rows))
        self.entered.set()
        if self.gate:
            assert self.gate.wait(10)
        time.sleep(self.seconds)
        return [{"y": 2 * rows, "z": -rows}[name] for name in outputs]


def rows(*values):
    return np.array(values, np.float32).reshape(-1, 1)


def run(scenario, model, plan=ANY, **options):
    async def main():
        batcher = Batcher(model, plan, **options)
        batcher.start()
        try:
            return await asyncio.wait_for(scenario(batcher), 20)
        finally:
            if options.get("workers", 1) and getattr(model, "gate", None):
                model.gate.set()
            await batcher.stop()

    return asyncio.run(main())


async def behind_a_busy_model(batcher, model, requests):
    """Answers of `requests`, all of which came while the model was busy with another."""
    first = asyncio.ensure_future(batcher.submit(rows(0), ("y",)))
    await asyncio.to_thread(model.entered.wait, 10)
    others = [asyncio.ensure_future(request) for request in requests(batcher)]
    await asyncio.sleep(0)
    model.gate.set()
    await first
    return await asyncio.gather(*others, return_exceptions=True)


def test_what_waits_runs_together_and_everybody_gets_their_own():
    model = Model(gate=threading.Event())
    found = run(
        lambda b: behind_a_busy_model(b, model, lambda b: [b.submit(rows(k, k + 0.5), ("y",)) for k in range(1, 6)]),
        model,
        max_batch=16,
    )
    assert model.sizes == [1, 10]
    for k, (answer,) in enumerate(found, start=1):
        np.testing.assert_array_equal(answer, rows(2 * k, 2 * k + 1))


def test_a_batch_never_exceeds_its_maximum_and_a_larger_request_is_run_in_parts():
    model = Model(gate=threading.Event())
    found = run(
        lambda b: behind_a_busy_model(
            b, model, lambda b: [b.submit(rows(*range(10)), ("y",)), b.submit(rows(7, 8, 9), ("y",))]
        ),
        model,
        max_batch=4,
    )
    assert max(model.sizes) == 4
    assert sum(model.sizes) == 1 + 10 + 3
    np.testing.assert_array_equal(found[0][0], rows(*range(0, 20, 2)))
    np.testing.assert_array_equal(found[1][0], rows(14, 16, 18))


def test_rows_of_other_shapes_and_other_outputs_do_not_mix():
    model = Model(gate=threading.Event())

    def requests(b):
        return [
            b.submit(rows(1), ("y",)),
            b.submit(np.zeros((1, 2), np.float32), ("y",)),
            b.submit(rows(3), ("z",)),
            b.submit(rows(4), ("y",)),
        ]

    found = run(lambda b: behind_a_busy_model(b, model, requests), model)
    assert model.sizes == [1, 2, 1, 1]
    assert [answer[0].tolist() for answer in found] == [[[2]], [[0, 0]], [[-3]], [[8]]]


def test_outputs_that_depend_on_their_neighbours_run_alone():
    model = Model(gate=threading.Event())
    plan = Plan(input="x", stackable=frozenset({"y"}))

    def requests(b):
        return [b.submit(rows(k, k), ("y", "z")) for k in range(3)] + [b.submit(rows(5), ("y",))]

    run(lambda b: behind_a_busy_model(b, model, requests), model, plan)
    assert sorted(model.sizes[1:]) == [1, 2, 2, 2]


def test_a_fixed_batch_is_filled_up_and_the_filling_is_not_answered():
    model = Model(gate=threading.Event())
    plan = Plan(input="x", fixed=4, stackable=frozenset({"y"}))
    found = run(
        lambda b: behind_a_busy_model(b, model, lambda b: [b.submit(rows(k), ("y",)) for k in range(6)]), model, plan
    )
    assert model.sizes == [4, 4, 4]
    assert [answer[0].tolist() for answer in found] == [[[2 * k]] for k in range(6)]


def test_past_the_limit_requests_are_turned_away_with_a_time_to_come_again():
    model = Model(gate=threading.Event())
    found = run(
        lambda b: behind_a_busy_model(b, model, lambda b: [b.submit(rows(k), ("y",)) for k in range(5)]),
        model,
        limit=3,
    )
    turned = [f for f in found if isinstance(f, Busy)]
    assert len(turned) == 2
    assert all(int(error.headers["Retry-After"]) >= 1 for error in turned)
    assert [f[0].tolist() for f in found[:3]] == [[[0]], [[2]], [[4]]]


def test_a_request_larger_than_the_queue_comes_in_when_nothing_waits():
    model = Model()
    found = run(lambda b: b.submit(rows(*range(9)), ("y",)), model, limit=2, max_batch=4)
    assert found[0].ravel().tolist() == list(range(0, 18, 2))


def test_delay_gathers_rows_that_come_soon_after_and_ends_when_the_batch_is_full():
    async def two(batcher):
        first = asyncio.ensure_future(batcher.submit(rows(1), ("y",)))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await asyncio.gather(first, batcher.submit(rows(2), ("y",)))
        return time.monotonic() - began

    full = Model()
    assert run(two, full, max_batch=2, max_delay=5.0) < 2
    assert full.sizes == [2]
    alone = Model()
    began = time.monotonic()
    run(lambda b: b.submit(rows(1), ("y",)), alone, max_delay=0.2)
    assert alone.sizes == [1]
    assert time.monotonic() - began >= 0.2


def test_a_client_that_has_gone_is_not_computed_for():
    model = Model(gate=threading.Event())

    async def scenario(batcher):
        first = asyncio.ensure_future(batcher.submit(rows(0), ("y",)))
        await asyncio.to_thread(model.entered.wait, 10)
        gone = asyncio.ensure_future(batcher.submit(rows(1), ("y",)))
        stays = asyncio.ensure_future(batcher.submit(rows(2), ("y",)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        await first
        return await stays, batcher.waiting

    found, waiting = run(scenario, model)
    assert model.sizes == [1, 1]
    assert waiting == 0
    assert found[0].tolist() == [[4]]


@pytest.mark.parametrize(
    ("error", "seen"), [(ModelError("m: bad shape"), NoAnswer), (ZeroDivisionError("a bug"), ZeroDivisionError)]
)
def test_a_model_that_fails_fails_its_requests_and_the_next_one_is_answered(error, seen):
    fails = [True]

    def model(feeds, outputs):
        if fails.pop() if fails else False:
            raise error
        return [feeds["x"] for _ in outputs]

    async def scenario(batcher):
        with pytest.raises(seen):
            await batcher.submit(rows(1), ("y",))
        return await batcher.submit(rows(2), ("y",))

    assert run(scenario, model)[0].tolist() == [[2]]


def test_stopping_answers_what_was_taken_and_takes_no_more():
    async def main():
        model = Model(seconds=0.05)
        batcher = Batcher(model, ANY, max_batch=2)
        with pytest.raises(Unavailable):
            await batcher.submit(rows(1), ("y",))
        batcher.start()
        taken = [asyncio.ensure_future(batcher.submit(rows(k), ("y",))) for k in range(7)]
        await asyncio.sleep(0)
        await batcher.stop()
        with pytest.raises(Unavailable):
            await batcher.submit(rows(1), ("y",))
        return [answer[0].item() for answer in await asyncio.gather(*taken)]

    assert asyncio.run(main()) == [0, 2, 4, 6, 8, 10, 12]


def test_workers_run_batches_at_the_same_time():
    both = threading.Barrier(2, timeout=10)

    def model(feeds, outputs):
        both.wait()  # passes only where two threads are here at once
        return [feeds["x"] for _ in outputs]

    async def scenario(batcher):
        return await asyncio.gather(batcher.submit(rows(1), ("y",)), batcher.submit(rows(2), ("y",)))

    found = run(scenario, model, workers=2, max_batch=1)
    assert [answer[0].item() for answer in found] == [1, 2]


def test_every_batch_is_told_to_the_watch():
    seen = []

    class Watch:
        def batch(self, rows, waited, seconds):
            seen.append((rows, waited, seconds))

    run(lambda b: b.submit(rows(1, 2, 3), ("y",)), Model(seconds=0.02), watch=Watch())
    ((n, waited, seconds),) = seen
    assert n == 3
    assert seconds >= 0.02
    assert 0 <= waited < 5


def test_many_clients_at_once_all_get_their_own_answer():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, 400)

    async def client(batcher, value):
        await asyncio.sleep(float(value % 7) / 1000)
        (found,) = await batcher.submit(rows(*[value] * (1 + value % 3)), ("y",))
        return found

    async def scenario(batcher):
        return await asyncio.gather(*(client(batcher, int(v)) for v in values))

    found = run(scenario, Model(seconds=0.001), workers=3, max_batch=8, limit=10_000)
    for value, answer in zip(values, found, strict=True):
        np.testing.assert_array_equal(answer, rows(*[2 * value] * (1 + value % 3)))


def test_a_model_that_never_comes_back_does_not_keep_the_server_from_stopping():
    gate = threading.Event()

    async def main():
        batcher = Batcher(Model(gate=gate), ANY)
        batcher.start()
        asking = asyncio.ensure_future(batcher.submit(rows(1), ("y",)))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        await batcher.stop(within=0.2)
        asking.cancel()
        return time.monotonic() - began

    assert asyncio.run(main()) < 2
    gate.set()


def test_one_large_request_keeps_all_workers_busy():
    both = threading.Barrier(2, timeout=10)

    def model(feeds, outputs):
        both.wait()
        return [feeds["x"] for _ in outputs]

    found = run(lambda b: b.submit(rows(*range(8)), ("y",)), model, workers=2, max_batch=4)
    assert found[0].ravel().tolist() == list(range(8))


def test_what_one_worker_leaves_behind_another_takes():
    both = threading.Barrier(2, timeout=10)

    def model(feeds, outputs):
        both.wait()
        return [feeds["x"] for _ in outputs]

    async def scenario(batcher):
        return await asyncio.gather(batcher.submit(rows(1), ("y",)), batcher.submit(rows(2), ("z",)))

    assert [answer[0].item() for answer in run(scenario, model, workers=2, max_delay=0.05)] == [1, 2]


def test_a_row_that_the_model_cannot_take_fails_alone():
    def model(feeds, outputs):
        if (feeds["x"] == 3).any():
            raise ModelError("m: three")
        return [feeds["x"] for _ in outputs]

    async def scenario(batcher):
        asked = [batcher.submit(rows(k), ("y",)) for k in range(6)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = run(scenario, model, max_delay=0.2, max_batch=6)
    assert isinstance(found.pop(3), NoAnswer)
    assert [answer[0].item() for answer in found] == [0, 1, 2, 4, 5]


def test_rows_that_cannot_be_run_in_parts_are_bounded_by_the_batch():
    model = Model()
    plan = Plan(input="x", stackable=frozenset({"y"}))

    async def scenario(batcher):
        with pytest.raises(TooLarge, match=r"inputs\[0\]\.shape: 5 rows exceed 4"):
            await batcher.submit(rows(*range(5)), ("z",))
        return await batcher.submit(rows(*range(4)), ("z",))

    run(scenario, model, plan, max_batch=4)
    assert model.sizes == [4]


def test_a_slow_model_gets_smaller_batches():
    class Slow(Model):
        def __call__(self, feeds, outputs):
            self.seconds = 0.03 * len(feeds["x"])
            return super().__call__(feeds, outputs)

    model = Slow()

    async def scenario(batcher):
        await batcher.submit(rows(0), ("y",))
        return await asyncio.gather(*(batcher.submit(rows(k), ("y",)) for k in range(12)))

    found = run(scenario, model, max_batch=32)
    assert [answer[0].item() for answer in found] == list(range(0, 24, 2))
    assert max(model.sizes) <= 4  # a tenth of a second holds three


def test_rows_larger_than_the_models_own_run_in_fewer_or_not_at_all():
    model = Model()
    plan = Plan(input="x", stackable=frozenset({"y"}), row_values=2)

    async def scenario(batcher):
        await batcher.submit(np.zeros((8, 8), np.float32), ("y",))  # four times as large: 8 / 4 rows at once
        with pytest.raises(TooLarge, match="rows of 33 values are more than 16 times the 2"):
            await batcher.submit(np.zeros((1, 33), np.float32), ("y",))
        await batcher.submit(np.zeros((1, 32), np.float32), ("y",))

    run(scenario, model, plan, max_batch=8, workers=1)
    assert model.sizes == [2, 2, 2, 2, 1]
