"""Where frames go: a video file, a folder of pictures, or nowhere."""
