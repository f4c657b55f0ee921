"""The files of a stream, and the transfer of its state between servers."""
