import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mist_loss import MISTCriterion
from mist_loss.queue import QueuedCriterion


class Record(nn.Module):
    """Remembers the rows it was called with."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.x, self.y = x.detach(), y.detach()
        return (x.square().sum() + y.square().sum()) / len(x)


def rows(start: int, n: int) -> tuple[Tensor, Tensor]:
    """n rows numbered from start, y ten times x."""
    x = torch.arange(float(start), start + n)[:, None]
    return x.clone().requires_grad_(), torch.cat([10 * x, -x], dim=1)


def seen_by(queue: Any) -> Record:
    return queue.criterion


def numbers(sample: Tensor) -> list[int]:
    return sample[:, 0].int().tolist()


@pytest.mark.parametrize("size", [1, 4, 5, 7, 12])
@pytest.mark.parametrize("batches", [[3] * 9, [1, 5, 2, 7, 4], [13, 2, 30, 6]])
def test_holds_exactly_the_last_rows_however_it_wraps(size, batches):
    queue = QueuedCriterion(Record(), size, 1, 2)
    seen: list[int] = []
    for n in batches:
        queue(*rows(len(seen), n))
        now = list(range(len(seen), len(seen) + n))
        read, facing = numbers(seen_by(queue).x), numbers(seen_by(queue).y)
        assert read[:n] == now
        assert sorted(read[n:]) == seen[-size:]
        assert facing == [10 * number for number in read]  # pairs stay pairs
        seen += now
        assert sorted(numbers(queue.x[: queue.filled])) == seen[-size:]
    assert int(queue.written) == len(seen)


def test_the_row_counter_wraps_exactly_far_beyond_what_floats_can_count():
    queue = QueuedCriterion(Record(), 7, 1, 2)
    queue.written.fill_(2**53 + 1)
    start = (2**53 + 1) % 7
    queue(*rows(0, 3))
    assert numbers(queue.x[[start, (start + 1) % 7, (start + 2) % 7]]) == [0, 1, 2]


def test_only_the_rows_of_this_step_have_a_gradient():
    queue = QueuedCriterion(Record(), 8, 1, 2)
    first, facing = rows(1, 4)
    queue(first, facing).backward()
    torch.testing.assert_close(first.grad, first.detach() / 2)
    now, facing = rows(5, 4)
    queue(now, facing).backward()
    torch.testing.assert_close(now.grad, now.detach() / 4)  # the mean is over eight rows now
    torch.testing.assert_close(first.grad, first.detach() / 2)
    assert not queue.x.requires_grad


def test_backward_after_later_steps(model):
    queue = QueuedCriterion(MISTCriterion(model), 16, 1, 2)
    x, y = torch.randn(3, 16, 1), torch.randn(3, 16, 2)
    x.requires_grad_()
    losses = [queue(x[i], y[i]) for i in range(3)]
    torch.stack(losses).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_estimate_is_that_of_all_rows(model):
    criterion = MISTCriterion(model)
    queue = QueuedCriterion(criterion, 48, 2, 3)
    x, y = torch.randn(64, 2), torch.randn(64, 3)
    for i in range(0, 48, 16):
        queue(x[i : i + 16], y[i : i + 16])
    loss = queue(x[48:], y[48:])
    torch.testing.assert_close(loss, MISTCriterion(model)(x, y))
    assert criterion.last is not None
    assert criterion.last.rows == 64


def test_eval_mode_leaves_the_queue_alone(model):
    queue = QueuedCriterion(MISTCriterion(model), 32, 1, 1)
    x, y = torch.randn(2, 16, 1)
    queue(x, y)
    before = copy.deepcopy(queue.state_dict())
    assert torch.equal(queue.eval()(x, y), queue.criterion(x, y))
    assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())


def test_state_survives_saving_and_copying():
    queue = QueuedCriterion(Record(), 8, 1, 2)
    queue(*rows(0, 5))
    stream = io.BytesIO()
    torch.save(queue, stream)
    stream.seek(0)
    restored = QueuedCriterion(Record(), 8, 1, 2)
    restored(*rows(50, 30))  # full, so that loading has to look again
    restored.load_state_dict(queue.state_dict())
    averaged = torch.optim.swa_utils.AveragedModel(QueuedCriterion(Record(), 8, 1, 2))
    averaged.update_parameters(queue)
    for other in (copy.deepcopy(queue), torch.load(stream, weights_only=False), restored, averaged.module):
        assert isinstance(other, QueuedCriterion)
        assert other.filled == 5
        other(*rows(5, 5))
        assert sorted(numbers(seen_by(other).x)) == list(range(10))
    assert queue.filled == 5


def test_reset_forgets():
    queue = QueuedCriterion(Record(), 4, 1, 2)
    queue(*rows(0, 9))
    queue.reset()
    queue(*rows(20, 2))
    assert numbers(seen_by(queue).x) == [20, 21]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_loss_sees_the_wider_dtype_of_step_and_queue(dtype):
    queue = QueuedCriterion(Record(), 4, 1, 2)
    for start in (0, 4):
        x, y = rows(start, 4)
        queue(x.to(dtype), y.to(dtype))
    assert seen_by(queue).x.dtype == torch.promote_types(dtype, torch.float32)
    assert sorted(numbers(seen_by(queue).x)) == list(range(8))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_batch_is_not_kept(bad):
    queue = QueuedCriterion(Record(), 8, 1, 2)
    queue(*rows(0, 3))
    x, y = rows(3, 3)
    y[1, 1] = bad
    queue(x, y)
    queue(*rows(6, 3))
    assert sorted(numbers(seen_by(queue).x)) == [0, 1, 2, 6, 7, 8]


def test_small_batches_wait_for_enough_rows(model):
    for gather in (False, True):  # of one process, too
        queue = QueuedCriterion(MISTCriterion(model, gather=gather), 16, 1, 1)
        for filled in (3, 6, 9):
            x, y = torch.randn(2, 3, 1).requires_grad_()
            loss = queue(x, y)
            loss.backward()
            assert loss == 0
            assert queue.filled == filled
        x = torch.randn(3, 1, requires_grad=True)
        queue(x, x + torch.randn(3, 1)).backward()
        assert x.grad is not None
        assert x.grad.any()
        queue.eval()
        with pytest.raises(ValueError, match="at least 4 rows, got 3"):
            queue(x, x)


def test_of_several_processes_that_gather_none_waits_alone(model, monkeypatch):
    monkeypatch.setattr("mist_loss.criterion.ranks", lambda: 4)
    assert MISTCriterion(model, gather=True).warm_rows == 1
    assert MISTCriterion(model).warm_rows == 10


def test_a_bad_batch_while_waiting_reaches_the_others_that_gather(model, monkeypatch):
    class Wrapper(torch.nn.Sequential):
        warm_rows = 10

    asked = []

    def everywhere(flag):
        asked.append(bool(flag))
        return flag

    monkeypatch.setattr("mist_loss.queue.everywhere", everywhere)
    queue = QueuedCriterion(Wrapper(MISTCriterion(model, gather=True)), 8, 1, 1)
    with pytest.raises(ValueError, match="finite values"):
        queue(torch.full((2, 1), torch.nan), torch.zeros(2, 1))
    assert asked == [False]


def test_a_queue_that_was_made_in_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        queue = QueuedCriterion(Record(), 4, 1, 2)
    queue(*rows(0, 3))
    assert queue.filled == 3


def test_waiting_neither_hides_bad_rows_nor_lasts_forever(model):
    queue = QueuedCriterion(MISTCriterion(model), 8, 1, 1)
    with pytest.raises(ValueError, match="finite values"):
        queue(torch.full((2, 1), torch.nan), torch.zeros(2, 1))
    assert queue.filled == 0
    for _ in range(8):
        assert queue(*torch.randn(2, 1, 1)) == 0
    assert queue(*torch.randn(2, 1, 1)) != 0  # nine rows are all that it can hold
    short = QueuedCriterion(MISTCriterion(model), 2, 1, 1)  # with a row a step there are never four
    for _ in range(2):
        short(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        short(torch.zeros(1, 1), torch.zeros(1, 1))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(5, 2), torch.zeros(5, 2), r"x of shape \(n, 1\), got \(5, 2\)"),
        (torch.zeros(5, 1), torch.zeros(2, 5, 2), r"y of shape \(n, 2\), got \(2, 5, 2\)"),
        (None, torch.zeros(5, 2), r"x of shape \(n, 1\), got NoneType"),
        (torch.zeros(5, 1), torch.zeros(4, 2), "as many rows in x as in y"),
        (torch.zeros(5, 1), torch.zeros(5, 2).to("meta"), "y on the device of the queue, cpu, got meta"),
    ],
)
def test_bad_input(x, y, message):
    queue = QueuedCriterion(Record(), 4, 1, 2)
    with pytest.raises(ValueError, match=message):
        queue(x, y)
    assert queue.filled == 0


@pytest.mark.parametrize("sizes", [(0, 1, 1), (4, 0, 1), (4, 1, -1)])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match="whole number of at least 1, got"):
        QueuedCriterion(Record(), *sizes)


def test_repr():
    assert "size=4, dx=1, dy=2" in repr(QueuedCriterion(Record(), 4, 1, 2))


def test_rows_that_the_queue_cannot_hold_are_not_kept(model):
    queue = QueuedCriterion(MISTCriterion(model), 64, 2, 2)
    queue(1e60 * torch.randn(16, 2).double(), torch.randn(16, 2))
    assert queue.filled == 0
    queue(1e5 * torch.randn(16, 2), torch.randn(16, 2))
    loss = queue(torch.randn(16, 2).half(), torch.randn(16, 2).half())  # whose numbers end at 65,504
    assert loss.isfinite()
    assert queue.filled == 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_queue_keeps_its_precision(dtype):
    inner = nn.Linear(1, 1)
    queue = QueuedCriterion(inner, 8, 1, 1).to(dtype)
    assert queue.x.dtype == queue.y.dtype == torch.float32
    assert inner.weight.dtype == dtype
    assert queue.double().x.dtype == torch.float64
