"""``advfeat theory``: one table of claims, checked on a task of the user's choice, and the figures."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from advfeat.datasets.reading import read_npy
from advfeat.files import check_writable_folder, write_together

from . import _checks, claims, figures
from .gaussian import GaussianTask

# The accuracy rows need somewhat overlapping classes: this Mahalanobis length of the mean gives 97.7 % clean accuracy.
MEAN_LENGTH = 2.0
_LARGEST = 1e12  # variances: above this the minimisations stop early, and claims fail for that reason
_FARTHEST = 1000  # radii, in standard deviations: above this float64 is too coarse for the comparisons


@dataclass(frozen=True)
class TheoryConfig:
    """The task and the effort of ``advfeat theory``.

    Attributes:
        dim: the dimension d; by default the number of variances given (3 for isotropic and geometric).
        eps: the L2 radius.
        covariance: variances as "3,0.7,0.2" (repeated until ``dim``, which must be a multiple of their number),
            "isotropic:2", "geometric:1e4" (``dim`` variances from 1 down to 1/1e4), or a .npy, .csv or .txt file with a
            vector or a symmetric positive definite matrix.
        seed: of the mean and the samples.
        out: the folder of the report.
        samples: the number of Monte Carlo samples.
    """

    dim: int | None = None
    eps: float = 0.8
    covariance: str = "3,0.7,0.2"
    seed: int = 0
    out: Path = Path("theory-report")
    samples: int = 100_000


@dataclass(frozen=True)
class TheoryReport:
    """The result of ``advfeat theory``.

    Attributes:
        claims: the rows.
        figures: the figures written.
        seconds: the duration.
    """

    claims: list[claims.Claim]
    figures: list[Path]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no claim failed ("not checked" is not a failure)."""
        return all(row.verdict != claims.FAILS for row in self.claims)


def make_task(config: TheoryConfig) -> GaussianTask:
    """The task of a config: its covariance, and a mean drawn from the seed with Mahalanobis length 2.

    Args:
        config: the config.

    Returns:
        The task.

    Raises:
        ValueError: the covariance is invalid or larger than 1e12.
        FileNotFoundError: its file does not exist.
    """
    covariance = parse_covariance(config.covariance, config.dim)
    if not np.all(np.abs(covariance) <= _LARGEST):
        raise ValueError(f"covariance should be at most {_LARGEST:g}, got {np.abs(covariance).max():g}")
    dim = covariance.shape[0]
    task = GaussianTask(np.zeros(dim), covariance)
    # A random direction in whitened coordinates: every variance contributes equally to the accuracy.
    direction = np.random.default_rng(config.seed).standard_normal(dim)
    direction *= MEAN_LENGTH / float(np.linalg.norm(direction))
    return GaussianTask(task.from_eigenbasis(direction * np.sqrt(task.variances)), covariance)


def parse_covariance(text: str, dim: int | None = None) -> np.ndarray:
    """The covariance that a text describes.

    Args:
        text: as for ``TheoryConfig.covariance``.
        dim: as for ``TheoryConfig.dim``.

    Returns:
        A vector [d] or a matrix [d, d].

    Raises:
        ValueError: the text is invalid, or does not fit ``dim``.
        FileNotFoundError: the file does not exist.
    """
    if dim is not None:
        dim = _checks.integer("dim", dim, minimum=1)
    kind, _, argument = text.partition(":")
    if kind in ("isotropic", "geometric"):
        try:
            value = float(argument)
        except ValueError:
            raise ValueError(f"covariance should be like '{kind}:10', got {text!r}") from None
        value = _checks.real("covariance", value, minimum=0.0, strict=True)
        size = 3 if dim is None else dim
        return np.full(size, value) if kind == "isotropic" else np.geomspace(1.0, 1.0 / value, size)
    if Path(text).suffix in (".npy", ".csv", ".txt"):
        return _read_covariance(Path(text), dim)
    try:
        values = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise ValueError(
            "covariance should be variances like '3,0.7,0.2', 'isotropic:2', 'geometric:1e4' or a .npy, .csv or .txt "
            f"file, got {text!r}"
        ) from None
    if dim is None:
        return values
    if dim % values.size:
        raise ValueError(f"dim should be a multiple of the {values.size} variances given, got {dim}")
    return np.tile(values, dim // values.size)


def _read_covariance(path: Path, dim: int | None) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"covariance: no such file: {path}")
    if path.suffix == ".npy":
        values = read_npy(path)
    else:
        try:
            values = np.loadtxt(path, delimiter="," if path.suffix == ".csv" else None)
        except ValueError as error:
            raise ValueError(f"covariance in {path} should be numbers: {error}") from None
    values = np.atleast_1d(values)
    if values.ndim > 2:
        raise ValueError(f"covariance in {path} should be a vector or a matrix, got shape {values.shape}")
    if dim is not None and values.shape[0] != dim:
        raise ValueError(f"covariance in {path} has {values.shape[0]} dimensions, but dim is {dim}")
    return values


def run(config: TheoryConfig, console=None) -> TheoryReport:
    """Checks every claim, prints the table with rich, and writes the figures and theory.json to ``config.out``.

    It takes at most a minute on two cores with the defaults.

    Args:
        config: the config.
        console: a rich Console; by default that of the command line.

    Returns:
        The report.

    Raises:
        ValueError: eps is too large for the task, or as for :func:`make_task`.
    """
    from rich.text import Text

    from advfeat.cli.console import console as usual

    started = time.perf_counter()
    eps = _checks.real("eps", config.eps, minimum=0.0, strict=True)
    samples = _checks.integer("samples", config.samples, minimum=1000)
    seed = _checks.integer("seed", config.seed, minimum=0)
    task = make_task(config)
    farthest = _FARTHEST * float(np.sqrt(task.variances.max()))
    if eps > farthest:
        raise ValueError(
            f"eps should be at most {farthest:g}, {_FARTHEST} standard deviations of the task, got {eps:g}"
        )
    out = check_writable_folder(config.out)
    console = usual if console is None else console

    # Fewer samples in high dimensions, so that each of the eight sampled rows takes at most a few seconds.
    samples = max(1000, min(samples, 50_000_000 // task.dim))
    rows: list[claims.Claim] = []
    with console.status("checking the theorems"):
        rows += claims.accuracy_claims(task, eps, samples, seed)
        rows += claims.theorem1_claims(task, samples, seed)
        rows += claims.theorem2_claims(task, eps, samples, seed)
        rows += claims.theorem3_claims(task, eps, seed)
        rows += claims.separable_claims(seed)
    with console.status("drawing the figures"), tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        drawn = [
            figures.figure4(there / "figure4.png", seed=seed),
            figures.figure14(there / "figure14.png", seed=seed),
            figures.robust_spectrum(there / "theorem2.png", task),
            figures.relaxation(there / "relaxation.png"),
            figures.alignment(there / "theorem3.png", task, seed=seed),
        ]
        pictures = [(out / path.name, path.read_bytes()) for path in drawn]
    report = TheoryReport(rows, [path for path, _ in pictures], time.perf_counter() - started)
    write_together([*pictures, (out / "theory.json", _described(report, config, task))])
    console.print(table(report, task, eps))
    console.print(Text(f"{len(drawn)} figures and theory.json in {out} ({report.seconds:.0f} s)"), soft_wrap=True)
    return report


def table(report: TheoryReport, task: GaussianTask, eps: float):
    """The rich table of a report: claim, closed form, numerical value, Monte Carlo with its standard error, verdict.

    Args:
        report: the report.
        task: the task, for the title.
        eps: the L2 radius, for the title.

    Returns:
        The table.
    """
    from rich.box import SIMPLE
    from rich.table import Table

    kappa = f"condition number {task.condition:.4g}"
    result = Table(
        title=f"Section 4 and Appendix E on d = {task.dim}, {kappa}, eps = {eps:g}",
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    # No minimum widths: rich would cut off the last column to keep them.
    result.add_column("claim")
    for heading in ("closed form", "numerical", "Monte Carlo"):
        result.add_column(heading, justify="right")
    result.add_column("verdict", no_wrap=True)
    colours = {claims.HOLDS: "green", claims.FAILS: "bold red", claims.REFUTED: "yellow", claims.UNCHECKED: "dim"}
    if any(row.verdict == claims.REFUTED for row in report.claims):
        result.caption = "refuted: not so as printed; docs/theory.md says what holds"
        result.caption_justify = "left"
    topic = None
    for row in report.claims:
        if row.topic != topic:
            result.add_section()
            result.add_row(f"[bold]{row.topic}[/bold]")
        colour = colours[row.verdict]
        result.add_row(
            row.claim,
            row.closed if isinstance(row.closed, str) else _number(row.closed),
            "" if row.numeric is None else _number(row.numeric),
            "" if row.sampled is None else f"{_number(row.sampled[0])} ± {row.sampled[1]:.1g}",
            f"[{colour}]{row.verdict.removesuffix(' as printed')}[/{colour}]",
        )
        topic = row.topic
    return result


def _number(value: float) -> str:
    return f"{value:.6g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.3e}"


def _described(report: TheoryReport, config: TheoryConfig, task: GaussianTask) -> bytes:
    """theory.json: the resolved config and every row, so that a table can be traced to its inputs."""
    content = {
        "config": {**asdict(config), "out": str(config.out), "dim": task.dim},
        "claims": [asdict(row) for row in report.claims],
        "figures": [figure.name for figure in report.figures],
        "seconds": round(report.seconds, 2),
    }
    return (json.dumps(content, indent=2, default=float) + "\n").encode()


__all__ = ["TheoryConfig", "TheoryReport", "make_task", "parse_covariance", "run", "table"]
