"""Streams: videos in the making or at rest, each with its file on disk and its viewers."""
