"""The server behind `vmla-serve`: live video over a network, from one session.

`edge` is what every request passes, `streams` what is made and kept on disk, `routes` what can be asked for,
`page` what a browser shows. `app` puts them together.
"""
