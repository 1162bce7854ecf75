"""The live client: sources and sinks that run in real time, and the job between them. See docs/live.md."""
