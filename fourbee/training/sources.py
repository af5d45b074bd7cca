"""Where samples come from: files of several kinds, read one sample after another.

By the file's ending: `.jsonl` (and any other ending), `.json` (a list), `.txt`, each also `.gz`;
`.parquet`; and a folder that Hugging Face `datasets` wrote with `save_to_disk`. The last two need
pyarrow. What a sample means is `samples.py`, other people's forms are `formats.py`.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from fourbee.foundation.errors import FourbeeError, TrainingError, UsageError, not_installed
from fourbee.foundation.json_files import parse_json, read_json_object
from fourbee.training.formats import to_house
from fourbee.training.samples import chosen_side

Sample = Mapping[str, Any]
Numbered = Iterator[tuple[int, Any]]  # samples with their line, or row, or place; from 1
Told = Callable[[str], None]
BadSamples = Literal["refuse", "skip"]
Take = Literal["whole", "chosen"]
T = TypeVar("T")

# Between the texts of a .txt file.
_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Source:
    """A file of samples. In a recipe a plain string stands for its path."""

    path: Path
    language: str = ""
    domain: str = ""
    weight: float = 1.0  # how often its tokens count in a mixture
    format: str = "auto"  # auto: our own forms; else one of `formats.py`
    bad_samples: BadSamples = "refuse"
    take: Take = "whole"  # chosen: of a pair what was preferred, as an example

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise UsageError(f"{self.path}: weight = {self.weight}: expected more than 0")

    @classmethod
    def from_text(cls, text: str) -> Source:
        """What a plain string in a recipe means."""
        return cls(Path(text))

    @property
    def name(self) -> str:
        """The file's name up to its first dot."""
        return self.path.name.partition(".")[0] or self.path.name

    def files(self) -> list[Path]:
        """The files that it consists of; TrainingError where there is none."""
        if self.path.is_dir():
            return sorted(path for path in self.path.iterdir() if path.is_file())
        if not self.path.is_file():
            raise TrainingError(f"data {self.path}: no such file")
        return [self.path]


def read_samples(source: Source) -> Iterator[tuple[str, Sample]]:
    """`(file:line, sample in our forms)` one after another.

    Raises TrainingError naming file and line of the first that cannot be read.
    """
    for number, sample in read_raw(source):
        where = f"{source.path}:{number}"
        try:
            yield where, house_sample(sample, source)
        except UsageError:
            raise
        except FourbeeError as error:
            raise TrainingError(f"{where}: {error}") from None


def each_sample(
    source: Source, numbered: Iterable[tuple[int, Any]], make: Callable[[Sample], T]
) -> Iterator[tuple[int, T | None]]:
    """What `make` makes of each sample, with its number; None for a bad one that is to be skipped.

    Raises TrainingError naming file and line of the first bad one, where none is to be skipped.
    """
    for number, raw in numbered:
        try:
            yield number, make(house_sample(raw, source))
        except FourbeeError as error:
            if isinstance(error, UsageError) and error.parameter == "format":
                raise
            if source.bad_samples == "refuse":
                raise TrainingError(f"{source.path}:{number}: {error}") from None
            yield number, None


def good_samples(
    source: Source, make: Callable[[Sample], T], told: Told, most: int | None = None
) -> list[tuple[int, T]]:
    """What `make` makes of the first `most` good samples, each with its number.

    `told` hears how many bad ones were skipped. TrainingError where none is good.
    """
    found: list[tuple[int, T]] = []
    skipped = 0
    for number, made in each_sample(source, read_raw(source), make):
        if made is None:
            skipped += 1
        else:
            found.append((number, made))
        if len(found) == most:
            break
    if not found:
        raise no_samples(source, skipped)
    tell_skipped(source, skipped, told)
    return found


def no_samples(source: Source, skipped: int = 0) -> TrainingError:
    """The error of a source without a good sample."""
    bad = f" but {skipped} bad ones" if skipped else ""
    return TrainingError(f"{source.path}: holds no samples{bad}")


def tell_skipped(source: Source, skipped: int, told: Told) -> None:
    """Says how many bad samples of a source were left out, if any were."""
    if skipped:
        told(f"{source.path}: {skipped} bad samples left out, as bad_samples = 'skip' says")


def house_sample(sample: Any, source: Source) -> Sample:
    """A sample in our forms; TrainingError when it is none."""
    if not isinstance(sample, dict):
        raise TrainingError("expected a JSON object")
    ours = to_house(sample, source.format)
    return chosen_side(ours) if source.take == "chosen" else ours


def read_raw(source: Source) -> Numbered:
    """The samples as their file has them; only what cannot be read at all is refused."""
    source.files()
    path = source.path
    if path.is_dir():
        return enumerate(map(_without_nulls, _dataset_rows(path)), start=1)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".parquet":
        return enumerate(map(_without_nulls, _parquet_rows(path)), start=1)
    if kind == ".txt":
        return _texts(path, source.format == "lines")
    if kind == ".json":
        return _json_items(path)
    return _json_lines(path)


def _json_lines(path: Path) -> Numbered:
    number = 0
    for number, line in enumerate(_byte_lines(path), start=1):
        if line.strip():  # an empty line is no sample, and none is lost
            yield number, _parse(line, f"{path}:{number}")


def _json_items(path: Path) -> Numbered:
    items = _parse(b"".join(_byte_lines(path)), str(path))
    if not isinstance(items, list):
        raise TrainingError(f"{path}: expected a list of objects (or JSON lines in a .jsonl file)")
    yield from enumerate(items, start=1)


def _texts(path: Path, by_line: bool) -> Numbered:
    """Texts with their line; they end with a line or, else, at `<|endoftext|>`."""
    parts: list[str] = []
    first = number = 1
    for number, line in enumerate(_byte_lines(path), start=1):
        try:
            mark = "utf-8-sig" if number == 1 else "utf-8"  # a byte order mark is no text
            *ended, rest = line.decode(mark).split("\n" if by_line else _END_OF_TEXT)
        except UnicodeDecodeError:
            raise TrainingError(f"{path}:{number}: not UTF-8 text") from None
        for text in ended:
            yield from _text(first, [*parts, text])
            parts, first = [], number
        parts.append(rest)
    yield from _text(first, parts)


def _text(number: int, parts: list[str]) -> Numbered:
    """Nothing for blank space alone."""
    text = "".join(parts)
    if text.strip():
        yield number, {"text": text}


def _byte_lines(path: Path) -> Iterator[bytes]:
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    file: BinaryIO
    try:
        with opened(path, "rb") as file:
            yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise TrainingError(f"{path}: cannot be read: {error}") from None


def _parse(text: bytes, where: str) -> Any:
    try:
        return parse_json(text)
    except UnicodeDecodeError:
        raise TrainingError(f"{where}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise TrainingError(f"{where}: not valid JSON: {error.msg}") from None


def _parquet_rows(path: Path) -> Iterator[Any]:
    arrow = _arrow(path)
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except arrow.ArrowException as error:
        raise TrainingError(f"{path}: not a Parquet file: {error}") from None


def _dataset_rows(folder: Path) -> Iterator[Any]:
    """A dataset is a folder of Arrow streams, which state.json lists in order."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = [str(folder / name) for name in read_json_object(splits).get("splits", [])]
        raise TrainingError(f"{folder}: several splits; expected one: {', '.join(names)}")
    if not (folder / "state.json").is_file():
        raise TrainingError(f"{folder}: a folder without state.json, so no dataset of save_to_disk")
    arrow = _arrow(folder)
    for file in read_json_object(folder / "state.json")["_data_files"]:
        path = folder / file["filename"]
        try:
            with arrow.memory_map(str(path)) as stream, arrow.ipc.open_stream(stream) as batches:
                for batch in batches:
                    yield from batch.to_pylist()
        except (arrow.ArrowException, OSError) as error:
            raise TrainingError(f"{path}: cannot be read: {error}") from None


def _without_nulls(value: Any) -> Any:
    """Columns have the keys of all rows: a null says that the row has none."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _arrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ModuleNotFoundError:
        raise not_installed(f"{path}:", "pyarrow", "data") from None
    return pyarrow
