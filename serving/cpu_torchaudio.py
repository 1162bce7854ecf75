"""Makes torchaudio load beside a CPU build of torch: `python -m polylip.serving.cpu_torchaudio`.

The wheels of the package registry hold compiled parts that link CUDA's torch, and torchaudio does not start where they
cannot be loaded. XTTS uses none of them: without the files torchaudio falls back to its Python code.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from polylip.serving.errors import MissingError

COMMAND = "python -m polylip.serving.cpu_torchaudio"


def compiled_parts() -> list[Path]:
    """torchaudio's shared libraries, none where it is not installed."""
    spec = find_spec("torchaudio")
    return [] if spec is None or spec.origin is None else sorted((Path(spec.origin).parent / "lib").glob("*.so"))


def torch_has_cuda() -> bool:
    """Whether the installed torch is a CUDA build; seen from its files, as importing it takes a second."""
    spec = find_spec("torch")
    return spec is not None and spec.origin is not None and (Path(spec.origin).parent / "lib/libc10_cuda.so").exists()


def drop_compiled_parts() -> list[Path]:
    """Remove them if torch has no CUDA; what was removed."""
    unusable = [] if torch_has_cuda() else compiled_parts()
    for path in unusable:
        path.unlink()
    return unusable


def require_torchaudio() -> None:
    """Raises MissingError where torchaudio is missing or would not start."""
    try:
        import torchaudio  # noqa: F401, PLC0415
    except ModuleNotFoundError:
        raise MissingError("torchaudio is not installed; run: pip install 'polylip[speech]'") from None
    except OSError:
        raise MissingError(f"torchaudio's compiled parts need CUDA's torch; run: {COMMAND}") from None


if __name__ == "__main__":
    for removed in drop_compiled_parts():
        print(f"removed {removed}")
