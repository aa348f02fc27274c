"""Plain problems that people bring: functions with noise, rounded and rare values, masks, codes of unit length, labels.

Each has its mutual information in closed form, or as a sum over a grid; no code is shared with the families that train
the estimator. Some of those families were added because estimates failed here; the cases marked as held out were
written afterwards, and no family after them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from mist_loss.evaluation.corpora import Item
from mist_loss.evaluation.grids import (
    bit_mi,
    clayton_given,
    clayton_mi,
    entropy,
    function_mi,
    gaussian,
    label_mi,
    noisy_mi,
    normal_quantiles,
    poisson_mi,
    ring_mi,
    rounded_mi,
    table_mi,
    unit_mi,
)

VERSION = 2  # of what the cases draw and of their truths: one more where either changes
ROWS = (100, 500, 2000)
REPEATS = 6

_Sides = tuple[np.ndarray, np.ndarray]


class Case(NamedTuple):
    """A distribution: its truth in nats, and ``draw``, which makes n rows of both sides with a generator."""

    name: str
    mi: Callable[[], float]
    draw: Callable[[np.random.Generator, int], _Sides]
    held_out: bool = False


def size() -> int:
    """Number of items of `everyday`."""
    return len(CASES) * len(ROWS) * REPEATS


def everyday(seed: int, places: Sequence[int]) -> list[Item]:
    """The items at the given places: case by case, rows by rows, repeat by repeat; each depends on its place alone."""
    made = []
    for place in places:
        case, rows, repeat = np.unravel_index(place, (len(CASES), len(ROWS), REPEATS))
        name, _, draw, held_out = CASES[case]
        generator = np.random.default_rng([seed, zlib.crc32(name.encode()), int(rows), int(repeat)])
        x, y = (_columns(side) for side in draw(generator, ROWS[rows]))
        made.append(Item(name, x, y, truth(name), held_out))
    return made


@cache
def truth(name: str) -> float:
    """Mutual information of the case of that name, in nats."""
    return next(float(case.mi()) for case in CASES if case.name == name)


def _columns(side: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(side.reshape(len(side), -1), dtype=np.float32)


_RATING = np.array([-1.2, -0.4, 0.4, 1.2])
_WHOLE, _QUARTER = np.arange(-6, 6) + 0.5, (np.arange(-20, 20) + 0.5) / 4


# --- rows ----------------------------------------------------------------------------------------------------------


def _pair(g: np.random.Generator, n: int, rho: float, d: int = 1) -> _Sides:
    x = g.normal(size=(n, d))
    return x, rho * x + math.sqrt(1 - rho**2) * g.normal(size=(n, d))


def _noisy(f: Callable[[np.ndarray], np.ndarray], deviation: float) -> Callable[[np.random.Generator, int], _Sides]:
    """Normal x, and f of it with noise."""

    def draw(g: np.random.Generator, n: int) -> _Sides:
        x = g.normal(size=n)
        return x, f(x) + deviation * g.normal(size=n)

    return draw


def _both(f: Callable[[np.ndarray], np.ndarray], sides: _Sides) -> _Sides:
    return f(sides[0]), f(sides[1])


def _unit(t: np.ndarray) -> np.ndarray:
    return t / np.linalg.norm(t, axis=1, keepdims=True)


def _bits(g: np.random.Generator, n: int, d: int, p: float) -> np.ndarray:
    return g.random((n, d)) < p


def _labels(joint: np.ndarray) -> Callable[[np.random.Generator, int], _Sides]:
    """Two labels with these chances, as whole numbers."""

    def draw(g: np.random.Generator, n: int) -> _Sides:
        cell = g.choice(joint.size, size=n, p=joint.ravel() / joint.sum())
        return cell // joint.shape[1], cell % joint.shape[1]

    return draw


def _replaced(prior: np.ndarray, share: float) -> np.ndarray:
    """A label and itself, but for a share drawn anew."""
    return prior[:, None] * ((1 - share) * np.eye(len(prior)) + share * prior)


def _cubic(x: np.ndarray) -> np.ndarray:
    return x**3 - 2 * x


def _sine(g: np.random.Generator, n: int) -> _Sides:
    x = g.uniform(-1, 1, size=n)
    return x, np.sin(2 * np.pi * x) + 0.3 * g.normal(size=n)


def _sine_mi() -> float:
    return function_mi(np.sin(2 * np.pi * (np.arange(4000) + 0.5) / 4000), 0.3, np.linspace(-4, 4, 8001))


def _waiting(g: np.random.Generator, n: int) -> _Sides:
    x = g.exponential(size=n)
    return x, x + 0.5 * g.exponential(size=n)


def _waiting_mi() -> float:
    t = (np.arange(400_000) + 0.5) / 10_000
    return entropy(2 * (np.exp(-t) - np.exp(-2 * t)), 1e-4) - 1 - math.log(0.5)


def _flipped(g: np.random.Generator, n: int) -> _Sides:
    x = _bits(g, n, 16, 0.5)
    return x, x ^ _bits(g, n, 16, 0.1)


def _masked(g: np.random.Generator, n: int) -> _Sides:
    x, y = _pair(g, n, 0.99, 4)
    return x * _bits(g, n, 4, 0.8), y * _bits(g, n, 4, 0.8)


def _sparse(g: np.random.Generator, n: int) -> np.ndarray:
    return _bits(g, n, 4, 0.05) * g.exponential(size=(n, 4))


def _one_hots(g: np.random.Generator, n: int) -> np.ndarray:
    return np.hstack([np.eye(5)[g.integers(5, size=n)] for _ in range(3)])


def _polynomials(g: np.random.Generator, n: int) -> _Sides:
    x, y = _pair(g, n, 0.9)
    return np.hstack([x, x**2, x**3]), y


def _warped(g: np.random.Generator, n: int) -> _Sides:
    x, y = _pair(g, n, 0.6, 6)
    left, right = (np.linalg.qr(g.normal(size=(6, 6)))[0] for _ in range(2))
    return np.tanh(x) @ left, y**3 @ right


def _in_a_row(g: np.random.Generator, n: int) -> _Sides:
    label = g.integers(20, size=n)
    return np.eye(20)[label], 12 * label + g.normal(size=n)


def _coded(g: np.random.Generator, n: int) -> _Sides:
    x, y = _labels(_replaced(np.full(20, 1 / 20), 0.3))(g, n)
    return np.random.default_rng(1).permutation(20)[x], np.eye(20)[y]


def _zipf() -> np.ndarray:
    share = np.arange(1, 21) ** -1.5
    return share / share.sum()


def _rated(g: np.random.Generator, n: int) -> _Sides:
    x, y = _pair(g, n, 0.9)
    return x, np.digitize(y, _RATING)


def _squares(g: np.random.Generator, n: int) -> _Sides:
    x = g.normal(size=(n, 8))
    return x, x**2 + 0.3 * g.normal(size=(n, 8))


def _counted(g: np.random.Generator, n: int) -> _Sides:
    x = g.normal(size=n)
    return x, g.poisson(np.exp(1 + 0.7 * x))


def _scattered(g: np.random.Generator, n: int) -> _Sides:
    x = g.normal(size=n)
    return x, np.exp(0.6 * x) * g.normal(size=n)


def _scattered_mi() -> float:
    x = normal_quantiles()
    return function_mi(np.zeros_like(x), np.exp(0.6 * x), np.linspace(-40, 40, 8001))


def _circle(g: np.random.Generator, n: int) -> _Sides:
    angle = g.uniform(0, 2 * np.pi, size=n)
    return angle, np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * g.normal(size=(n, 2))


def _parity(g: np.random.Generator, n: int) -> _Sides:
    x = g.choice([-1.0, 1.0], size=(n, 2))
    flip = g.random(n) < 0.1
    return x + 0.1 * g.normal(size=(n, 2)), x.prod(1) * np.where(flip, -1, 1) + 0.1 * g.normal(size=n)


def _missing(g: np.random.Generator, n: int) -> _Sides:
    """Missing values filled with the mean, and columns that say which were not."""
    x, y = _pair(g, n, 0.9, 3)
    kept = _bits(g, n, 3, 0.7)
    return np.hstack([x * kept, kept]), y


def _hinges(g: np.random.Generator, n: int) -> _Sides:
    x = g.normal(size=(n, 16))
    return x, np.maximum(x, 0) + 0.3 * g.normal(size=(n, 16))


def _exponentials(g: np.random.Generator, n: int) -> _Sides:
    x = g.normal(size=(n, 4))
    return x, np.exp(x) + 0.3 * g.normal(size=(n, 4))


def _odds(x: np.ndarray) -> np.ndarray:
    """Chance of a label whose log odds are 2 x."""
    return 1 / (1 + np.exp(-2 * x))


def _odds_mi() -> float:
    chance = _odds(normal_quantiles())
    return label_mi(np.stack([chance, 1 - chance], axis=1))


def _classified(g: np.random.Generator, n: int) -> _Sides:
    """A label whose log odds are linear in five numbers."""
    x = g.normal(size=(n, 5))
    return x, g.random(n) < _odds(x.sum(1) / math.sqrt(5))


def _region_chances(x: np.ndarray) -> np.ndarray:
    """Softmax of 3 x w for three directions w in the plane, a third of a turn apart."""
    turn = 2 * math.pi / 3 * np.arange(3)
    weight = np.exp(3 * x @ np.stack([np.cos(turn), np.sin(turn)]))
    return weight / weight.sum(1, keepdims=True)


def _regions(g: np.random.Generator, n: int) -> _Sides:
    x = g.normal(size=(n, 2))
    return x, np.eye(3)[(g.random((n, 1)) > _region_chances(x).cumsum(1)[:, :2]).sum(1)]


def _regions_mi() -> float:
    z = normal_quantiles(300)
    return label_mi(_region_chances(np.stack(np.meshgrid(z, z), axis=-1).reshape(-1, 2)))


def _clayton(g: np.random.Generator, n: int) -> _Sides:
    u = g.random(n)
    return u, clayton_given(u, g.random(n), 2.0)


def _numbers_and_bits(g: np.random.Generator, n: int) -> _Sides:
    """Three numbers and two bits, of which one each moves y."""
    numbers, bits = g.normal(size=(n, 3)), _bits(g, n, 2, 0.5)
    return np.hstack([numbers, bits]), numbers[:, 0] + 3 * bits[:, 0] + 0.7 * g.normal(size=n)


def _numbers_and_bits_mi() -> float:
    z = normal_quantiles(1000)
    return function_mi(np.concatenate([z, z + 3]), 0.7, np.linspace(-8, 11, 8001))


def _sum_of_fifty(g: np.random.Generator, n: int) -> _Sides:
    x = g.normal(size=(n, 50))
    return x, x.sum(1) / math.sqrt(50) + 0.5 * g.normal(size=n)


def _networks(g: np.random.Generator, n: int) -> _Sides:
    """Four numbers a side behind the random weights of sixty-four rectifiers."""
    x, y = (side @ g.normal(size=(4, 64)) + g.normal(size=64) for side in _pair(g, n, 0.8, 4))
    return np.maximum(x, 0), np.maximum(y, 0)


def _length(g: np.random.Generator, n: int) -> _Sides:
    x = g.normal(size=(n, 5))
    return x, np.linalg.norm(x, axis=1) + 0.3 * g.normal(size=n)


def _length_mi() -> float:
    r = np.linspace(0, 7, 4001)
    chances = r**4 * np.exp(-0.5 * r**2)
    return function_mi(r, 0.3, np.linspace(-3, 10, 8001), chances / chances.sum())


def _ordered(g: np.random.Generator, n: int) -> _Sides:
    """The smaller and the larger of two numbers, three times; a pair has the density 2 below its diagonal."""
    pairs = np.sort(g.random((n, 3, 2)), axis=2)
    return pairs[..., 0], pairs[..., 1]


CASES: tuple[Case, ...] = (
    Case("square", noisy_mi(np.square, 0.05), _noisy(np.square, 0.05)),
    Case("cubic", noisy_mi(_cubic, 0.3), _noisy(_cubic, 0.3)),
    Case("sine", _sine_mi, _sine),
    Case(
        "saturated",
        noisy_mi(lambda x: np.tanh(2 * x), 0.01),
        _noisy(lambda x: np.tanh(2 * x), 0.01),
    ),
    Case("waiting times", _waiting_mi, _waiting),
    Case("rounded", lambda: rounded_mi(0.9, _WHOLE, True), lambda g, n: _both(np.round, _pair(g, n, 0.9))),
    Case(
        "finely rounded",
        lambda: rounded_mi(0.99, _QUARTER, True),
        lambda g, n: _both(lambda t: np.round(4 * t), _pair(g, n, 0.99)),
    ),
    Case(
        "five ratings",
        lambda: rounded_mi(0.9, _RATING, True),
        lambda g, n: _both(lambda t: np.digitize(t, _RATING), _pair(g, n, 0.9)),
    ),
    Case(
        "one side rated",
        lambda: rounded_mi(0.9, _RATING, False),
        _rated,
    ),
    Case("rare bits, independent", lambda: 0.0, lambda g, n: (_bits(g, n, 8, 0.01), _bits(g, n, 8, 0.01))),
    Case("fair bits, independent", lambda: 0.0, lambda g, n: (_bits(g, n, 16, 0.5), _bits(g, n, 16, 0.5))),
    Case("sixteen bits, flipped", lambda: 16 * bit_mi(0.1), _flipped),
    Case("mostly zero, independent", lambda: 0.0, lambda g, n: (_sparse(g, n), _sparse(g, n))),
    Case("masked", lambda: 4 * 0.64 * gaussian(0.99), _masked),
    Case(
        "unit length, independent",
        lambda: 0.0,
        lambda g, n: (_unit(g.normal(size=(n, 8))), _unit(g.normal(size=(n, 8)))),
    ),
    Case("unit length", lambda: unit_mi(0.5, 8), lambda g, n: _both(_unit, _pair(g, n, 0.5, 8))),
    Case("unit length, close", lambda: unit_mi(0.9, 8), lambda g, n: _both(_unit, _pair(g, n, 0.9, 8))),
    Case(
        "ten classes, independent",
        lambda: 0.0,
        lambda g, n: (np.eye(10)[g.integers(10, size=n)], g.normal(size=(n, 8))),
    ),
    Case("three labels a side, independent", lambda: 0.0, lambda g, n: (_one_hots(g, n), _one_hots(g, n))),
    Case(
        "uncommon classes",
        lambda: table_mi(_replaced(_zipf(), 0.3)),
        lambda g, n: _both(lambda t: np.eye(20)[t], _labels(_replaced(_zipf(), 0.3))(g, n)),
    ),
    Case("codes of classes", lambda: table_mi(_replaced(np.full(20, 1 / 20), 0.3)), _coded),
    Case("classes in a row", lambda: math.log(20), _in_a_row),
    Case("polynomial features", lambda: gaussian(0.9), _polynomials),
    Case("warped, then rotated", lambda: 6 * gaussian(0.6), _warped),
    Case(
        "eight squares",
        lambda: 8 * noisy_mi(np.square, 0.3)(),
        _squares,
    ),
    Case("sixteen hinges", lambda: 16 * noisy_mi(lambda x: np.maximum(x, 0), 0.3)(), _hinges),
    Case("four exponentials", lambda: 4 * noisy_mi(np.exp, 0.3)(), _exponentials),
    Case("codes of networks", lambda: 4 * gaussian(0.8), _networks),
    Case("length of five", _length_mi, _length),
    Case("angle and circle", lambda: ring_mi(0.1), _circle),
    Case("counts", lambda: poisson_mi(lambda x: np.exp(1 + 0.7 * x), 200), _counted, held_out=True),
    Case("scatter", _scattered_mi, _scattered, held_out=True),
    Case("parity", lambda: bit_mi(0.1), _parity, held_out=True),
    Case("missing values", lambda: 3 * 0.7 * gaussian(0.9), _missing, held_out=True),
    Case("odds of a label", _odds_mi, _classified, held_out=True),
    Case("three regions", _regions_mi, _regions, held_out=True),
    Case("extremes together", lambda: clayton_mi(2.0), _clayton, held_out=True),
    Case("numbers and bits", _numbers_and_bits_mi, _numbers_and_bits, held_out=True),
    Case("sum of fifty", lambda: 0.5 * math.log(5), _sum_of_fifty, held_out=True),
    Case("smaller and larger", lambda: 3 * (1 - math.log(2)), _ordered, held_out=True),
)
