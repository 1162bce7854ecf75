"""Puts the image's model repository onto the volume, then becomes the given command.

The volume holds built files (graphs, plans, weights) beside the image's configs and adapters, as Triton wants one
folder. Files of the image are renewed when the image is, unless somebody has changed them on the volume.
"""

import json
import os
import sys
from hashlib import sha256
from pathlib import Path

IMAGE_REPOSITORY = Path("/opt/polylip/model_repository")
MANIFEST = ".polylip-image.json"  # path -> SHA-256 of what was written here; a file, so Triton takes it for no model


def main(command: list[str]) -> None:
    """Renew the repository and run the command in place of this process."""
    if not command:
        sys.exit("polylip: no command")
    try:
        for kept in renew(IMAGE_REPOSITORY, Path(os.environ["POLYLIP_MODEL_REPOSITORY"])):
            print(f"polylip: {kept} is not the image's and is left as it is", file=sys.stderr)
    except OSError as error:
        sys.exit(f"polylip: cannot write {error.filename} ({error.strerror}); give the volume to user {os.getuid()}")
    os.execvp(command[0], command)  # noqa: S606  the command that the container was given


def renew(source: Path, target: Path) -> list[Path]:
    """Copy what is new in `source`, remove what it no longer has; the files of `target` that were changed there."""
    manifest = target / MANIFEST
    written: dict[str, str] = json.loads(manifest.read_text()) if manifest.is_file() else {}
    wanted = {str(path.relative_to(source)): path for path in sorted(source.rglob("*")) if path.is_file()}
    kept = []
    for name in [*wanted, *(name for name in written if name not in wanted)]:
        path, new = target / name, wanted.get(name)
        present = _digest(path) if path.is_file() else None
        if new is not None and present == _digest(new):
            written[name] = present
        elif present is not None and present != written.get(name):
            kept.append(path)
        elif new is not None:
            _copy(new, path)
            written[name] = _digest(path)
        else:
            path.unlink(missing_ok=True)
            del written[name]
    text = json.dumps(written, indent=1, sort_keys=True)
    if not manifest.is_file() or manifest.read_text() != text:
        manifest.write_text(text)
    return kept


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all: another container may be reading the volume."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.write_bytes(source.read_bytes())
    partial.replace(target)


if __name__ == "__main__":
    main(sys.argv[1:])
