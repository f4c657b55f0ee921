"""The state of a video on disk, from which it continues with identical frames."""
