"""Several servers on one folder of streams: who makes which, and how what another makes is reached."""
