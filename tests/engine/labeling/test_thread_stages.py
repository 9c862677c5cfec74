from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from maskmill.engine.inputs.ordered_map import ordered_map
from maskmill.engine.labeling.thread_stages import Pipeline


def run(items: Any, *stages: tuple[Any, dict[str, Any]]) -> Pipeline:
    pipeline = Pipeline(items)
    for index, (function, options) in enumerate(stages):
        pipeline.add_stage((f"stage{index}", function), **{"threads": 1, **options})
    pipeline.start()
    return pipeline


def collect(into: list[Any]) -> Any:
    def take(items: list[Any]) -> list[Any]:
        into.extend(items)
        return []

    return take


def test_every_item_passes_every_stage_once() -> None:
    seen: list[int] = []
    pipeline = run(range(200), (lambda items: [2 * item for item in items], {"threads": 3}), (collect(seen), {}))
    pipeline.join()
    assert sorted(seen) == list(range(0, 400, 2))
    assert [stage.items for stage in pipeline.times] == [200, 200]


def test_a_stage_may_drop_or_add_items() -> None:
    seen: list[int] = []
    run(range(6), (lambda items: [item for item in items for _ in range(item)], {}), (collect(seen), {})).join()
    assert sorted(seen) == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5]


def test_batches_are_what_is_there_and_never_more_than_asked_for() -> None:
    sizes: list[int] = []

    def batched(items: list[int]) -> list[int]:
        sizes.append(len(items))
        time.sleep(0.005)
        return items

    seen: list[int] = []
    run(range(50), (batched, {"batch": 4}), (collect(seen), {})).join()
    assert sorted(seen) == list(range(50))
    assert max(sizes) <= 4
    assert len(sizes) < 50


def test_finish_runs_once_after_the_last_item() -> None:
    events: list[Any] = []
    run(range(10), (collect(events), {"threads": 4, "finish": lambda: events.append("end")})).join()
    assert events[-1] == "end"
    assert events.count("end") == 1


@pytest.mark.parametrize("where", [0, 1, 2])
def test_an_error_stops_everything_and_is_raised(where: int) -> None:
    def fail(items: list[int]) -> list[int]:
        if items[0] == 5:
            raise ValueError("five")
        return items

    functions = [(fail if index == where else (lambda items: items), {"threads": 2}) for index in range(3)]
    pipeline = run(iter(range(10**9)), *functions)
    with pytest.raises(ValueError, match="five"):
        pipeline.join()


def test_an_error_while_listing_the_items_is_raised() -> None:
    def items() -> Any:
        yield 1
        raise OSError("the folder is gone")

    with pytest.raises(OSError, match="the folder is gone"):
        run(items(), (collect([]), {})).join()


def test_stopping_finishes_what_is_under_way() -> None:
    seen: list[int] = []
    begun, stopped = threading.Event(), threading.Event()

    def slow(items: list[int]) -> list[int]:
        begun.set()
        stopped.wait(600)
        return items

    pipeline = run(iter(range(10**9)), (slow, {"threads": 2}), (collect(seen), {}))
    begun.wait()
    pipeline.stop()
    stopped.set()
    pipeline.join()
    assert 0 < len(seen) < 20
    assert sorted(seen) == list(range(len(seen)))


def test_a_slow_stage_holds_up_the_ones_before_it() -> None:
    handed_out = 0

    def items() -> Any:
        nonlocal handed_out
        while handed_out < 999:
            handed_out += 1
            yield handed_out

    release = threading.Event()

    def blocked(items: list[int]) -> list[int]:
        release.wait()
        return items

    pipeline = run(items(), (lambda items: items, {}), (blocked, {}))
    time.sleep(0.3)
    assert handed_out < 12
    release.set()
    pipeline.join()
    assert handed_out == 999


def test_idle_runs_while_there_is_nothing_to_do() -> None:
    idled = threading.Event()

    def slowly() -> Any:
        yield 1
        assert idled.wait(600)
        yield 2

    run(slowly(), (collect([]), {"idle": idled.set})).join()
    assert idled.is_set()


def test_ordered_map_keeps_the_order_and_raises_in_place() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        if item == 7:
            raise ValueError("seven")
        return item * item

    results: list[int] = []
    with pytest.raises(ValueError, match="seven"):
        results.extend(ordered_map(work, range(100), 4))
    assert results == [item * item for item in range(7)]


def test_the_steps_of_a_stage_run_on_one_thread_and_are_timed_apart() -> None:
    seen: list[tuple[int, str]] = []
    pipeline = Pipeline(range(40))

    def named(items: list[int]) -> list[tuple[int, str]]:
        return [(item, threading.current_thread().name) for item in items if item % 2]

    def check(items: list[tuple[int, str]]) -> list[tuple[int, str]]:
        assert all(name == threading.current_thread().name for _, name in items)
        return items

    pipeline.add_stage(("odd", named), ("check", check), threads=3)
    pipeline.add_stage(("take", collect(seen)), threads=1)
    pipeline.start()
    pipeline.join()
    assert sorted(item for item, _ in seen) == list(range(1, 40, 2))
    assert [(stage.name, stage.items) for stage in pipeline.times] == [("odd", 40), ("check", 20), ("take", 20)]
