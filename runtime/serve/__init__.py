"""The server behind `vmla-serve`: live video over a network, from one session.

Every request passes `edge`; `streams` makes the videos, whose files are in `disk`; `routes` has the
endpoints, `shared` several servers on one folder, `page` what a browser shows. `app` puts them together.
"""
