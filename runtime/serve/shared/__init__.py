"""Several servers on one folder of streams: which server makes which, and how requests reach it."""
