"""What was computed of a reference voice, kept for the stream that sent it: the least recently used goes first.

The key is the stream and the reference's own samples, never a text, so no stream can hear another one's voice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from threading import Lock
from typing import Generic, TypeVar

from polylip.serving.engines import Float32

Kept = TypeVar("Kept")
Key = tuple[str, str]  # stream, SHA-256 of the reference


class VoiceCache(Generic[Kept]):
    """At most `bound` voices, over all streams."""

    def __init__(self, bound: int) -> None:
        if bound < 1:
            raise ValueError(f"a cache of {bound} voices holds none; give at least 1")
        self._bound = bound
        self._voices: OrderedDict[Key, Kept] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._voices)

    def voice(self, stream: str, reference: Float32, make: Callable[[str], Kept]) -> Kept:
        """What is kept for this stream and reference, else what `make` makes of the reference's SHA-256.

        `make` runs outside the lock: a slow voice never delays another stream.
        """
        digest = sha256(reference.tobytes()).hexdigest()
        key = (stream, digest)
        with self._lock:
            if key in self._voices:
                self._voices.move_to_end(key)
                return self._voices[key]
        made = make(digest)
        with self._lock:
            kept = self._voices.setdefault(key, made)
            self._voices.move_to_end(key)
            while len(self._voices) > self._bound:
                self._voices.popitem(last=False)
        return kept
