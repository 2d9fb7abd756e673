"""From labelled text files to a data set; a file is one text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lamella.data.scenario import Source
from lamella.data.sources.files import LabelledFile, check_utf8, keys_of_files
from lamella.data.sources.labelled_texts import LabelledText, texts_to_source
from lamella.data.sources.rows import decoded

__all__ = ["text_files_to_source"]


def text_files_to_source(
    name: str,
    root: Path,
    files: Sequence[LabelledFile],
    *,
    renamed: Mapping[str, str] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    told: Sequence[str] = (),
) -> Source:
    """A Source of these files. Their content decides their keys, so that a file may be called otherwise.

    Files that are no UTF-8 texts, and empty ones, are left out and listed in `unreadable`.

    Args:
        name: of the data set.
        root: the folder that messages name files relative to.
        files: the text files.
        renamed: class name -> the name people should see.
        test_fraction: as in `load_folder`.
        split_seed: as in `load_folder`.
        told: how they were found, in lines for people.

    Raises:
        ValueError: as `texts_to_source`, or a name is not UTF-8.
    """
    check_utf8([file.class_name for file in files])
    named = renamed or {}
    return texts_to_source(
        name,
        [_read(file, key, named) for file, key in zip(files, keys_of_files(root, files), strict=True)],
        test_fraction=test_fraction,
        split_seed=split_seed,
        told=told,
    )


def _read(file: LabelledFile, key: str, renamed: Mapping[str, str]) -> LabelledText:
    text, fault = "", ""
    try:
        text = decoded(file.path.read_bytes(), key)
    except FileNotFoundError:
        fault = "there is no such file"
    except ValueError as error:
        fault = str(error).removeprefix(f"{key}, ")
    class_name = renamed.get(file.class_name, file.class_name)
    return LabelledText(text, class_name, key, None, file.domain, file.is_test, fault)
