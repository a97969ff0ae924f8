"""Finding models and writing results: run folders, and checks of output places before the work starts."""

from __future__ import annotations

from pathlib import Path

from advfeat.cli.console import say
from advfeat.datasets.constructed import ConstructedSet
from advfeat.datasets.sources import Source
from advfeat.files import check_writable_file, check_writable_folder, write_together
from advfeat.models import Model, fingerprint, load


def check_place(out: Path, done: str) -> None:
    """Check that output can be written, before models and data are read.

    A finished output is accepted even in a folder that is not writable.

    Args:
        out: Output folder.
        done: Name of the file that marks finished output.

    Raises:
        OSError: If nothing can be written to the folder.
    """
    if not (out / done).is_file():
        check_writable_folder(out)


def load_model(folder: Path, option: str = "--model") -> Model:
    """Load the model of ``--model`` or another option.

    Args:
        folder: Run folder.
        option: The option.

    Returns:
        The model.

    Raises:
        ValueError: If the folder is not a run folder; otherwise as :func:`advfeat.models.load`.
    """
    if (folder / "manifest.json").is_file() and not (folder / "model.json").is_file():
        raise ValueError(f"{option} should be a run folder of advfeat train, got the constructed set {folder}")
    if folder.is_file():
        raise ValueError(
            f"{option} should be a run folder of advfeat train, got the file {folder}; your own weights are for "
            "Python: advfeat.models.adapt(module, ...)"
        )
    return load(folder)


def describe_set(made: ConstructedSet, path: Path) -> None:
    """Print the size, success rate, relabelling and distances of a constructed set.

    Args:
        made: The set.
        path: Its folder.
    """
    success, moved = made.target_success.float().mean(), made.distance.float()
    relabelled = (made.labels != made.original_labels).float().mean()
    say(f"{len(made):,} images in {path}")
    say(f"  the source model predicts the label for {100 * success:.1f} %")
    say(f"  {100 * relabelled:.1f} % are relabelled")
    say(f"  moved by {moved.mean():.3f} on average, {moved.max():.3f} at most")


def write_results(files: list[tuple[Path, bytes]]) -> OSError | None:
    """Write result files together.

    A failure is returned instead of raised, so that the caller can still show the results first.

    Args:
        files: Pairs of path and content.

    Returns:
        The error if the files could not be written, else None.
    """
    try:
        write_together(files)
    except OSError as error:
        return error
    return None


def say_written(out: Path | None, failed: OSError | None, more: str) -> None:
    """Report where results were written, at the end of a command.

    Args:
        out: Output path, None if nothing was to be written.
        failed: Error returned by :func:`write_results`.
        more: Text to append, naming the other files.

    Raises:
        OSError: ``failed``, if it is not None.
    """
    if failed is not None:
        raise failed
    if out is not None:
        say(f"written to {out}{', ' if more else ''}{more}")


def check_results(folder: Path, *names: str) -> None:
    """Check before the work that results can be written to a folder.

    Args:
        folder: Output folder.
        *names: Names of the files.

    Raises:
        OSError: If one of them could not be written.
    """
    check_writable_folder(folder)
    for name in names:
        check_writable_file(folder / name)


def of_what(model: Model, source: Source) -> dict:
    """Identify the model and data behind a result.

    Args:
        model: The model.
        source: The data set.

    Returns:
        Name and fingerprint of the data, fingerprint of the model, and the number of samples.
    """
    return {
        "data": source.name,
        "data_fingerprint": source.fingerprint,
        "model_fingerprint": fingerprint(model),
        "n": len(source),
    }
