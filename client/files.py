"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from polylip.client.errors import InputError
from polylip.serving.glossary import parse_glossary

MAX_GLOSSARY_BYTES = 64 << 10  # it travels with every segment


def write_atomic(path: Path, content: bytes) -> Path:
    """Write `content` so that `path` holds either its old content or all of the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_glossary(path: Path) -> str:
    """The text of a glossary file, at most MAX_GLOSSARY_BYTES of UTF-8. Raises InputError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_GLOSSARY_BYTES + 1)
        if len(content) > MAX_GLOSSARY_BYTES:
            raise InputError(f"{path}: a glossary holds at most {MAX_GLOSSARY_BYTES >> 10} KiB")
        text = content.decode("utf-8-sig")
        parse_glossary(text, str(path))
        return text
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a text file with a term per line") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except ValueError as error:
        raise InputError(str(error)) from None
