"""Threads and forks: what one thread does with the engine is none of another's business."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.recording import is_recording, no_grad, replace_ops
from scratchvit.tensor import Tensor
from tests.support.seeds import seeded


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns, or its error, from a thread of its own that has ended."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def test_a_forward_is_recorded_while_another_thread_evaluates() -> None:
    w = Tensor(np.float32(2), requires_grad=True)
    entered, leave = threading.Event(), threading.Event()

    def evaluate() -> None:
        with no_grad():
            entered.set()
            leave.wait()

    other = threading.Thread(target=evaluate)
    first = w * 3
    other.start()
    entered.wait()
    second = w * w                      # while the other thread is inside its no_grad
    leave.set()
    other.join()
    (first + second).backward()
    assert w.grad == 7


def test_overlapping_no_grads_of_two_threads_leave_recording_on() -> None:
    steps = [threading.Event() for _ in range(3)]

    def other() -> bool:
        steps[0].wait()
        with no_grad():
            steps[1].set()
            steps[2].wait()
        return is_recording()

    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(other()))
    thread.start()
    with no_grad():
        steps[0].set()
        steps[1].wait()
    steps[2].set()
    thread.join()
    assert found == [True] and is_recording()


def test_two_generators_that_take_turns_leave_recording_on() -> None:
    def evaluating() -> Iterator[None]:
        with no_grad():
            yield

    one, two = evaluating(), evaluating()
    next(one), next(two)
    next(one, None)
    assert not is_recording()           # the second is still inside
    next(two, None)
    assert is_recording()


def test_no_grad_can_be_entered_again_and_decorates() -> None:
    again = no_grad()
    with again, again:
        assert not is_recording()
    assert is_recording()
    assert not no_grad()(is_recording)()


def test_enable_grad_records_inside_no_grad() -> None:
    with no_grad():
        with sv.enable_grad():
            assert is_recording()
            with no_grad():
                assert not is_recording()
            assert is_recording() and sv.enable_grad()(is_recording)()
        assert not is_recording()
        assert sv.enable_grad()(is_recording)()
        with pytest.raises(ValueError), sv.enable_grad():
            raise ValueError
        assert not is_recording()
    assert is_recording()


def test_a_no_grad_that_ends_in_another_thread_is_an_error() -> None:
    block = no_grad()
    with pytest.raises(RuntimeError, match="ends in another thread"):
        block.__exit__(None, None, None)


def test_stand_ins_and_recorded_maps_belong_to_a_thread() -> None:
    x = Tensor(np.ones((1, 2, 2), np.float32))
    with replace_ops(lambda function, args, kwargs: (args[0] * 0, None)), ops.record_attention() as maps:
        value = in_a_thread(lambda: ops.attention(x, x, x).numpy())
    assert value.any() and maps == []


def test_every_thread_replays_its_own_draws() -> None:
    """Two threads go back through checkpointed dropout, each while the other draws: 800 times, one shared generator."""
    generator = sv.random.Generator(5)
    wrong: list[int] = []

    def train(number: int) -> None:
        for _ in range(400):
            x = Tensor(np.ones(64, np.float32), requires_grad=True)
            y = sv.checkpoint(lambda x: ops.dropout(x, 0.5, generator=generator), x)
            y.sum().backward()
            if not np.array_equal(x.grad, y.numpy()):       # 0 or 2, where the value has it
                wrong.append(number)

    threads = [threading.Thread(target=train, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and generator.draws == 800


def test_a_checkpoint_that_draws_more_the_second_time_is_an_error() -> None:
    generator, calls = sv.random.Generator(0), []

    def draws_more(x: Tensor) -> Tensor:
        calls.append(1)
        for _ in calls:
            x = ops.dropout(x, 0.5, generator=generator)
        return x

    y = sv.checkpoint(draws_more, Tensor(np.ones(4, np.float32), requires_grad=True))
    with pytest.raises(RuntimeError, match="more random numbers are drawn than in the forward pass"):
        y.backward(np.ones(4, np.float32))


def trained(seed: int, steps: int) -> list[np.ndarray]:
    """The parameters of a small model with dropout after some steps, which is evaluated now and then."""
    rng = seeded(seed)
    model = sv.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3,
        drop_rate=0.1, seed=seed,
    )
    model.set_generator(sv.random.Generator(seed))
    images, labels = rng.standard_normal((4, 3, 8, 8), dtype=np.float32), rng.integers(0, 3, 4)
    optimizer = sv.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        ops.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if step % 3 == 0:
            with sv.nn.module.evaluating(model):
                model(images)
    return [parameter.numpy().copy() for parameter in model.parameters()]


@pytest.mark.parametrize("steps", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_two_models_trained_and_evaluated_at_once_are_bit_for_bit_those_trained_alone(steps: int) -> None:
    by_themselves = [trained(seed, steps) for seed in range(2)]
    together: dict[int, list[np.ndarray]] = {}

    def train(seed: int) -> None:
        together[seed] = trained(seed, steps)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in enumerate(by_themselves):
        assert all(map(np.array_equal, together[seed], expected))
