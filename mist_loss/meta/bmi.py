"""The same problems built from BMI's own task objects: an implementation independent of ours.

BMI is the benchmark of Czyz et al., "Beyond Normal" (NeurIPS 2023), distributed as ``benchmark-mi`` and
imported as ``bmi``. Configurations and ranges of parameters are those of MIST (arXiv 2511.18945).
This module imports without BMI; its functions need ``pip install "mist-loss[bmi]"``.

A configuration is named ``base-structure-map``, or ``base-map`` where the base has no structure:
``multi_normal-dense-base``, ``multi_student-2pair-asinh``, ``multi_additive_noise-wigglify``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from bmi import Task

STRUCTURES: dict[str, tuple[str, ...]] = {
    "multi_normal": ("dense", "sparse", "2pair", "lvm"),
    "multi_student": ("identity", "dense", "sparse", "2pair", "lvm"),
    "multi_additive_noise": (),
}
MAPS = ("base", "halfcube", "asinh", "wigglify", "normal_cdf")

# MIST's generator draws each of these uniformly; n_interacting, an integer in 1..d, depends on the dimension.
RANGES: dict[str, tuple[float, float]] = {
    "off_diag": (0.0, 0.5),
    "strength": (0.1, 5.0),
    "alpha": (0.0, 1.0),
    "lambd": (0.1, 3.0),
    "beta": (0.0, 1.5),
    "eta": (0.1, 5.0),
    "df": (1.0, 10.0),
    "epsilon": (0.1, 2.0),
}
_STRUCTURE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "identity": (),
    "dense": ("off_diag",),
    "sparse": ("n_interacting", "strength"),
    "2pair": ("strength",),
    "lvm": ("n_interacting", "alpha", "lambd", "beta", "eta"),
}


class Configuration(NamedTuple):
    """The parts of a configuration's name; ``structure`` is empty for additive noise."""

    base: str
    structure: str
    map: str


def import_bmi() -> ModuleType:
    """The ``bmi`` package.

    Raises:
        ModuleNotFoundError: if it is missing, or is not the benchmark (``bmi`` on PyPI is another package).
    """
    try:
        import bmi
        import bmi.benchmark
    except ImportError as error:
        raise ModuleNotFoundError(
            "problems of the BMI benchmark need the package benchmark-mi (PyPI's `bmi` is another one), "
            f'which cannot be imported ({error}): pip install "mist-loss[bmi]", on Python 3.10 or 3.11'
        ) from error
    return bmi


def parse(name: str) -> Configuration:
    """Splits a configuration's name into base, structure and map.

    Raises:
        ValueError: if a part is not known, or the base has no such structure.
    """
    base, _, rest = name.partition("-")
    structure, _, map_name = rest.rpartition("-")
    if base not in STRUCTURES:
        raise ValueError(f"expected a configuration of one of {', '.join(STRUCTURES)}, got {name!r}")
    if structure not in (STRUCTURES[base] or ("",)):
        known = f"one of {', '.join(STRUCTURES[base])}" if STRUCTURES[base] else "none"
        raise ValueError(f"expected a structure of {base} ({known}) in {name!r}, got {structure!r}")
    if map_name not in MAPS:
        raise ValueError(f"expected one of the maps {', '.join(MAPS)} at the end of {name!r}, got {map_name!r}")
    return Configuration(base, structure, map_name)


def parameter_names(configuration: Configuration) -> tuple[str, ...]:
    """The names of the parameters that `task` needs for a configuration."""
    if configuration.base == "multi_additive_noise":
        return ("epsilon",)
    dof = ("df",) if configuration.base == "multi_student" else ()
    return dof + _STRUCTURE_PARAMETERS[configuration.structure]


def draw_parameters(name: str, d: int, rng: np.random.Generator) -> dict[str, Any]:
    """Random parameters of a configuration with ``d`` dimensions a side, from the ranges of MIST's generator.

    Raises:
        ValueError: if the name is not a configuration's.
    """

    def draw(parameter: str) -> Any:
        if parameter == "n_interacting":
            return int(rng.integers(1, d, endpoint=True))
        if parameter == "epsilon":
            return rng.uniform(*RANGES["epsilon"], size=d).tolist()
        return float(rng.uniform(*RANGES[parameter]))

    return {parameter: draw(parameter) for parameter in parameter_names(parse(name))}


def task(name: str, parameters: Mapping[str, Any], dx: int, dy: int) -> Task:
    """BMI's task for a configuration.

    Args:
        name: the configuration, such as ``multi_student-sparse-asinh``.
        parameters: exactly those of `parameter_names`.
            ``df``: degrees of freedom.
            ``off_diag``: every correlation of the dense structure.
            ``n_interacting``: how many pairs (x_i, y_i) share a latent variable of their own.
            ``strength`` (sparse) or ``lambd`` (lvm): its weight.
            ``alpha``, ``beta``: weights of the variables shared by all coordinates, and by those of a side.
            ``eta``: weight of the extra noise of the unpaired coordinates.
            ``epsilon``: half-widths of the noise, one for each coordinate.
        dx, dy: dimensions of the two sides; equal for additive noise, and at least 2 for 2pair.

    Raises:
        ValueError: if the name is not a configuration's, or parameters or dimensions do not fit it.
        ModuleNotFoundError: if BMI is missing.
    """
    configuration = parse(name)
    expected = parameter_names(configuration)
    if set(parameters) != set(expected):
        raise ValueError(f"expected parameters {', '.join(expected)} for {name}, got {', '.join(parameters)}")
    tasks = import_bmi().benchmark.tasks
    if configuration.base == "multi_additive_noise":
        base = _additive_noise(parameters["epsilon"], dx, dy)
    else:
        builders: dict[str, Callable[..., Task]] = {
            "multi_normal-dense": tasks.task_multinormal_dense,
            "multi_normal-sparse": tasks.task_multinormal_sparse,
            "multi_normal-2pair": tasks.task_multinormal_2pair,
            "multi_normal-lvm": tasks.task_multinormal_lvm,
            "multi_student-identity": tasks.student.task_student_identity,
            "multi_student-dense": tasks.task_student_dense,
            "multi_student-sparse": tasks.task_student_sparse,
            "multi_student-2pair": tasks.task_student_2pair,
            "multi_student-lvm": _student_lvm,
        }
        base = builders[f"{configuration.base}-{configuration.structure}"](dim_x=dx, dim_y=dy, **parameters)
    return _transformed(base, configuration.map)


def mutual_information(task: Task) -> float:
    """The task's MI in nats, in double precision.

    BMI computes that of additive noise through jax, which is in single precision by default.
    """
    from jax.experimental import enable_x64

    with enable_x64():
        return float(task.sampler.mutual_information())


def _transformed(base: Task, map_name: str) -> Task:
    if map_name == "base":
        return base
    bmi = import_bmi()
    tasks = bmi.benchmark.tasks
    transforms: dict[str, Callable[[Task], Task]] = {
        "halfcube": tasks.transform_half_cube_task,
        "asinh": tasks.asinh.transform_asinh_task,
        "wigglify": tasks.transform_wiggly_task,
        "normal_cdf": tasks.transform_normal_cdf_task,
    }
    return transforms[map_name](base)


def _student_lvm(dim_x: int, dim_y: int, df: float, n_interacting: int, **latent: float) -> Task:
    # BMI has this dispersion for the normal only; its Student sampler takes any.
    bmi = import_bmi()
    parametrization = bmi.samplers.GaussianLVMParametrization(
        dim_x=dim_x,
        dim_y=dim_y,
        n_interacting=n_interacting,
        alpha=latent["alpha"],
        lambd=latent["lambd"],
        beta_x=latent["beta"],
        eta_x=latent["eta"],
    )
    dispersion = parametrization.correlation
    return bmi.Task(
        sampler=bmi.samplers.SplitStudentT(dim_x=dim_x, dim_y=dim_y, df=df, dispersion=dispersion),
        task_id=f"student-lvm-{dim_x}-{dim_y}-{df}",
        task_name=f"Student-t {dim_x} x {dim_y} (LVM)",
        task_params={"dof": df, "n_interacting": n_interacting, **latent},
    )


def _additive_noise(epsilon: list[float], dx: int, dy: int) -> Task:
    if not dx == dy == len(epsilon):
        raise ValueError(f"expected dx = dy = len(epsilon) for additive noise, got {dx}, {dy}, {len(epsilon)}")
    bmi = import_bmi()
    coordinates = [bmi.samplers.AdditiveUniformSampler(epsilon=half_width) for half_width in epsilon]
    return bmi.Task(
        sampler=bmi.samplers.IndependentConcatenationSampler(coordinates),
        task_id=f"additive-{dx}-{dy}",
        task_name=f"Uniform {dx} x {dy} (additive noise)",
        task_params={"epsilon": list(epsilon)},
    )
