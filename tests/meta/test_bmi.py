"""Our samplers against BMI's own task objects."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from mist_loss.meta import bmi, families, maps, mixtures, structures
from mist_loss.meta.families import Problem

pytest.importorskip("bmi")
stats = pytest.importorskip("scipy.stats")

ROWS = 40_000
FALSE_ALARM = 1e-3  # chance that a comparison of equal distributions fails, over all its projections together

PARAMETERS: dict[str, dict[str, Any]] = {
    "multi_normal-dense": {"off_diag": 0.3},
    "multi_normal-sparse": {"n_interacting": 1, "strength": 1.5},
    "multi_normal-2pair": {"strength": 0.9},
    "multi_normal-lvm": {"n_interacting": 2, "alpha": 0.7, "lambd": 1.4, "beta": 1.1, "eta": 2.5},
    "multi_student-identity": {"df": 2.0},
    "multi_student-dense": {"df": 3.5, "off_diag": 0.4},
    "multi_student-sparse": {"df": 1.3, "n_interacting": 2, "strength": 1.5},
    "multi_student-2pair": {"df": 6.0, "strength": 3.0},
    "multi_student-lvm": {
        "df": 5.0,
        "n_interacting": 1,
        "alpha": 0.3,
        "lambd": 2.0,
        "beta": 0.5,
        "eta": 1.0,
    },
    "multi_additive_noise": {"epsilon": [0.2, 0.6, 1.5]},
}
CONFIGURATIONS = [f"{base}-{map_name}" for base in PARAMETERS for map_name in maps.MAPS]
# Where it is possible the two sides differ, so that a mix-up of them shows.
DIMS = {"multi_additive_noise": (3, 3)}
UNEQUAL = (3, 2)


def ours(name: str, parameters: Mapping[str, Any], n: int, dx: int, dy: int) -> Problem:
    """One set of our sampler with explicit parameters."""
    base, structure, map_name = bmi.parse(name)
    p = {key: torch.tensor([value]) for key, value in parameters.items()}
    if base == "multi_additive_noise":
        x, y, mi = families.additive_noise(p["epsilon"], n, dx, dy)
    else:
        correlation = our_correlation(structure, p, dx, dy)
        if base == "multi_student":
            x, y, mi = families.student(correlation, p["df"], n, dx)
        else:
            x, y, mi = families.normal(correlation, n, dx)
    map_x, map_y = maps.MAPS[map_name]
    return Problem(map_x(x), map_y(y), mi)


def our_correlation(structure: str, p: Mapping[str, torch.Tensor], dx: int, dy: int) -> torch.Tensor:
    zero = torch.zeros(1)
    if structure in ("identity", "dense"):
        return structures.dense_correlation(p.get("off_diag", zero), dx, dy)
    if structure == "lvm":
        weights = (p["alpha"], p["lambd"], p["beta"], p["eta"])
        return structures.latent_correlation(dx, dy, p["n_interacting"], *weights)
    interacting = p.get("n_interacting", torch.tensor([2]))
    return structures.latent_correlation(dx, dy, interacting, zero, p["strength"], zero, p["strength"])


def our_sample(name: str, parameters: Mapping[str, Any], dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(0)
    x, y, _ = ours(name, parameters, ROWS, dx, dy)
    return x[0].numpy(), y[0].numpy()


def bmi_sample(name: str, parameters: Mapping[str, Any], dx: int, dy: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = bmi.task(name, parameters, dx, dy).sample(ROWS, 2)
    return np.asarray(x), np.asarray(y)


def projections(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fixed views (k, n): coordinates, products and differences of every two, product of the two radii."""
    z = np.concatenate([x, y], axis=1, dtype=np.float64)
    i, j = np.triu_indices(z.shape[1], k=1)
    radii = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.concatenate([z.T, (z[:, i] * z[:, j]).T, (z[:, i] - z[:, j]).T, radii[None]])


def p_value(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Two-sample Kolmogorov-Smirnov tests on all projections, Bonferroni-corrected."""
    pairs = list(zip(projections(*first), projections(*second), strict=True))
    smallest = min(stats.ks_2samp(a, b, method="asymp").pvalue for a, b in pairs)
    return min(1.0, len(pairs) * smallest)


def dims_of(name: str) -> tuple[int, int]:
    return DIMS.get(bmi.parse(name).base, UNEQUAL)


def test_maps_and_structures_have_the_names_of_the_mixtures():
    assert set(bmi.MAPS) == set(maps.MAPS)
    for name in (*mixtures.PAPER_TRAIN, *mixtures.PAPER_IMD, *mixtures.PAPER_OOMD):
        assert bmi.parse(name).map in maps.MAPS


@pytest.mark.parametrize("base", PARAMETERS)
@pytest.mark.parametrize("dims", [(2, 2), (5, 5), (32, 32), (3, 7), (20, 2)])
def test_same_mutual_information(base, dims):
    dx, dy = dims
    if base == "multi_additive_noise":
        if dx != dy:
            pytest.skip("BMI has no additive noise between unequal dimensions")
        parameters: dict[str, Any] = {"epsilon": np.linspace(0.1, 2.0, dx).tolist()}
    else:
        parameters = PARAMETERS[base]
    for map_name in maps.MAPS:
        name = f"{base}-{map_name}"
        expected = bmi.mutual_information(bmi.task(name, parameters, dx, dy))
        assert ours(name, parameters, 1, dx, dy).mi.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("multi_normal-dense-base", {"off_diag": 0.5}),
        ("multi_normal-sparse-base", {"n_interacting": 32, "strength": 5.0}),
        ("multi_student-sparse-base", {"df": 1.0, "n_interacting": 32, "strength": 5.0}),
        ("multi_student-identity-base", {"df": 10.0}),
        ("multi_additive_noise-base", {"epsilon": [0.1] * 32}),
        (
            "multi_normal-lvm-base",
            {"n_interacting": 32, "alpha": 1.0, "lambd": 3.0, "beta": 1.5, "eta": 0.1},
        ),
    ],
)
def test_same_mutual_information_at_the_ends_of_the_ranges(name, parameters):
    expected = bmi.mutual_information(bmi.task(name, parameters, 32, 32))
    assert ours(name, parameters, 1, 32, 32).mi.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_same_distribution(name):
    parameters, dims = PARAMETERS[name.rpartition("-")[0]], dims_of(name)
    assert p_value(our_sample(name, parameters, *dims), bmi_sample(name, parameters, *dims)) > FALSE_ALARM


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("multi_normal-dense-base", {"off_diag": 0.37}),
        ("multi_normal-dense-wigglify", {"off_diag": 0.37}),
        ("multi_normal-sparse-base", {"n_interacting": 2}),
        ("multi_normal-2pair-halfcube", {"strength": 1.0}),
        ("multi_normal-lvm-base", {"beta": 1.3}),
        ("multi_normal-lvm-normal_cdf", {"alpha": 1.0}),
        ("multi_student-identity-base", {"df": 2.25}),
        ("multi_student-sparse-asinh", {"df": 1.45}),
        ("multi_student-lvm-base", {"eta": 1.5}),
        ("multi_additive_noise-base", {"epsilon": [0.22, 0.6, 1.5]}),
        ("multi_additive_noise-wigglify", {"epsilon": [0.6, 0.2, 1.5]}),
    ],
)
def test_the_comparison_rejects_a_wrong_parameter(name, changed):
    parameters, dims = PARAMETERS[name.rpartition("-")[0]], dims_of(name)
    wrong = our_sample(name, {**parameters, **changed}, *dims)
    assert p_value(wrong, bmi_sample(name, parameters, *dims)) < FALSE_ALARM / 10


def test_the_comparison_rejects_maps_of_the_wrong_side():
    name, dims = "multi_normal-dense-wigglify", (2, 2)
    x, y = our_sample("multi_normal-dense-base", PARAMETERS["multi_normal-dense"], *dims)
    wrong = maps.wiggly_y(torch.from_numpy(x)).numpy(), maps.wiggly_x(torch.from_numpy(y)).numpy()
    assert p_value(wrong, bmi_sample(name, PARAMETERS["multi_normal-dense"], *dims)) < FALSE_ALARM / 10


def test_the_comparison_rejects_a_student_t_with_independent_radii():
    # Marginals and correlations are right; only the dependence between the radii is missing.
    name, parameters = "multi_student-identity-base", PARAMETERS["multi_student-identity"]
    x, y = our_sample(name, parameters, 3, 3)
    wrong = x, np.roll(y, 1, axis=0)
    assert p_value(wrong, bmi_sample(name, parameters, 3, 3)) < FALSE_ALARM / 10


@pytest.mark.parametrize("base", [base for base in PARAMETERS if base != "multi_student-identity"])
def test_mixtures_draw_the_parameters_of_the_paper(base):
    # MI depends on every parameter, so its distribution over random problems shows a wrong range.
    problems, d = 250, 6
    rng, name = np.random.default_rng(0), f"{base}-base"
    torch.manual_seed(0)
    drawn = mixtures.configuration(name, problems, 1, d, d).mi.numpy()
    expected = [
        bmi.mutual_information(bmi.task(name, bmi.draw_parameters(name, d, rng), d, d)) for _ in range(problems)
    ]
    assert stats.ks_2samp(drawn, expected).pvalue > FALSE_ALARM


def test_drawn_parameters_lie_in_their_ranges():
    rng = np.random.default_rng(0)
    for name in CONFIGURATIONS:
        drawn = bmi.draw_parameters(name, 4, rng)
        assert set(drawn) == set(bmi.parameter_names(bmi.parse(name)))
        for key, value in drawn.items():
            low, high = bmi.RANGES.get(key, (1, 4))
            assert np.all((np.asarray(value) >= low) & (np.asarray(value) <= high))
    assert len(bmi.draw_parameters("multi_additive_noise-base", 4, rng)["epsilon"]) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uniform-dense-base", "multi_normal"),
        ("multi_normal-identity-base", "structure"),
        ("multi_normal-base", "structure"),
        ("multi_additive_noise-dense-base", "structure"),
        ("multi_normal-dense-spiral", "maps"),
    ],
)
def test_unknown_configurations_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        bmi.parse(name)


def test_wrong_parameters_and_dimensions_are_named():
    with pytest.raises(ValueError, match="off_diag"):
        bmi.task("multi_normal-dense-base", {"strength": 1.0}, 2, 2)
    with pytest.raises(ValueError, match="dx = dy"):
        bmi.task("multi_additive_noise-base", {"epsilon": [0.5, 0.5]}, 2, 3)


def test_a_missing_bmi_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bmi", None)
    with pytest.raises(ModuleNotFoundError, match=r"mist-loss\[bmi\]"):
        bmi.task("multi_normal-dense-base", {"off_diag": 0.2}, 2, 2)
