"""Models, sets and results as commands find and leave them: run folders, places that are looked at before the work."""

from __future__ import annotations

from pathlib import Path

from advfeat.cli.console import say
from advfeat.datasets.constructed import ConstructedSet
from advfeat.datasets.sources import Source
from advfeat.files import check_writable_file, check_writable_folder, write_together
from advfeat.models import Model, fingerprint, load


def check_place(out: Path, done: str) -> None:
    """Looks whether there will be a place for what is made, before models and data are read; what is there already
    may lie where nothing can be written."""
    if not (out / done).is_file():
        check_writable_folder(out)


def load_model(folder: Path) -> Model:
    """The model of ``--model``. Errors: as of :func:`advfeat.models.load`; ValueError for what is no run folder."""
    if (folder / "manifest.json").is_file() and not (folder / "model.json").is_file():
        raise ValueError(f"--model should be a run folder of advfeat train, got the constructed set {folder}")
    if folder.is_file():
        raise ValueError(
            f"--model should be a run folder of advfeat train, got the file {folder}; your own weights are for "
            "Python: advfeat.models.adapt(module, ...)"
        )
    return load(folder)


def describe_set(made: ConstructedSet, path: Path) -> None:
    success, moved = made.target_success.float().mean(), made.distance.float()
    relabelled = (made.labels != made.original_labels).float().mean()
    say(f"{len(made):,} images in {path}")
    say(f"  the source model says the label for {100 * success:.1f} %")
    say(f"  {100 * relabelled:.1f} % are relabelled")
    say(f"  moved by {moved.mean():.3f} on average, {moved.max():.3f} at most")


def write_results(files: list[tuple[Path, bytes]]) -> OSError | None:
    """Writes results. What fails is returned, for the results are still to be shown before it is raised."""
    try:
        write_together(files)
    except OSError as error:
        return error
    return None


def say_written(out: Path | None, failed: OSError | None, more: str) -> None:
    """The end of a command that writes results."""
    if failed is not None:
        raise failed
    if out is not None:
        say(f"written to {out}, {more}")


def check_results(folder: Path, *names: str) -> None:
    """Looks whether results of these names could be written into a folder, before the work."""
    check_writable_folder(folder)
    for name in names:
        check_writable_file(folder / name)


def of_what(model: Model, source: Source) -> dict:
    """What a result is of."""
    return {
        "data": source.name,
        "data_fingerprint": source.fingerprint,
        "model_fingerprint": fingerprint(model),
        "n": len(source),
    }
