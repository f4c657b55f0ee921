"""What a video will need, checked and known before anything of it is allocated."""
