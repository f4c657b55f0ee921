"""The state of a video on disk, from which it goes on to the identical frames."""
