"""An engine for later videos, built by a process of its own once a video is finished."""
