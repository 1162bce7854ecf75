"""What the models of the `dub` ensemble call: admission, checks, decoding, tracks and mouths. See docs/protocol.md."""
