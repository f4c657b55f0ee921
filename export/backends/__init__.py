"""Compilers that make an engine of a program."""
