"""``DataLoader`` as an argument: it stands for the samples of its dataset, in the order of the dataset."""

from __future__ import annotations

from typing import Any

from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
    default_convert,
)

from advfeat._arguments import whole_number


def dataset_of(data: Any, name: str) -> Any:
    """The data set that a ``DataLoader`` reads; anything else as it is.

    Evaluation takes the samples in the order of the data set, and training shuffles them by its own seed. Only the
    loader's dataset and batch size are used (:func:`batch_size_for`): shuffling and the number of workers do not affect
    the result. A loader with a setting that would affect it is refused.

    Args:
        data: A loader, or anything else. For a ``SubsetRandomSampler``, the data set is that subset.
        name: Name of the argument, for messages.

    Raises:
        ValueError: If the loader has a ``sampler`` that omits, repeats or weights samples, the user's own
            ``batch_sampler`` or ``collate_fn``, or a ``drop_last`` that drops samples.
        TypeError: If the loader is of a subclass that makes its own batches.
    """
    if not isinstance(data, DataLoader):
        return data
    if type(data).__iter__ is not DataLoader.__iter__:
        raise TypeError(
            f"{name} should be a DataLoader of torch or a data set, got {type(data).__name__}, which makes batches of "
            "its own: give its dataset, loader.dataset"
        )
    dataset: Any = data.dataset  # torch declares no __len__ of datasets and samplers
    if isinstance(dataset, IterableDataset):
        return dataset  # refused as such, by whoever asks for samples by position
    if data.collate_fn not in (default_collate, default_convert):
        called = getattr(data.collate_fn, "__name__", type(data.collate_fn).__name__)
        raise _refused(
            name,
            f"collate_fn={called}",
            "torch's own collate_fn, since the loader's batches are not used",
            "a dataset that gives (image, label)",
        )
    if data.batch_sampler is not None and data.batch_size is None:
        called = type(data.batch_sampler).__name__
        raise _refused(name, f"batch_sampler={called}", "no batch_sampler, since the loader's batches are not used")
    sampler: Any = data.sampler
    plain = type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)
    if type(sampler) is SubsetRandomSampler:
        dataset = Subset(dataset, list(sampler.indices))
    elif not plain or len(sampler) != len(dataset):
        raise _refused(
            name,
            f"sampler={type(sampler).__name__}",
            f"a sampler that takes each of the {len(dataset):,} samples once, as with shuffle=True or False",
            "torch.utils.data.Subset(dataset, indices)",
        )
    if data.drop_last and data.batch_size and len(dataset) % data.batch_size:
        raise _refused(name, "drop_last=True", "drop_last=False, since all samples are used")
    return dataset


def batch_size_for(data: Any, batch_size: int | None, default: int) -> int:
    """The batch size: the given one, else that of a ``DataLoader``, else ``default``.

    Raises:
        ValueError: If it is not an integer of at least 1.
    """
    if batch_size is None:
        batch_size = data.batch_size if isinstance(data, DataLoader) else None
    return whole_number("batch_size", default if batch_size is None else batch_size)


def _refused(name: str, got: str, wanted: str, instead: str = "its dataset, loader.dataset") -> ValueError:
    return ValueError(f"{name} should be a DataLoader with {wanted}, got {got}: give {instead}")
