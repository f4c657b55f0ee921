"""Compilers that make an engine of a program, and load it again: one file each, named in the registry."""
