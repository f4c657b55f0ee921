"""The figures of all replicas as one answer for Prometheus, each with the name of its replica."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import httpx

from runtime.serve.edge.access import RELAYED

SECONDS = 2.0
"""Seconds that a replica has to answer."""


async def figures(addresses: Collection[str], key: str) -> str:
    """The figures of the replicas at `addresses`; one that does not answer is left out."""
    async with httpx.AsyncClient(timeout=SECONDS, trust_env=False, headers={RELAYED: key}) as client:
        asked = (client.get(f"{address}/metrics") for address in addresses)
        answers = await asyncio.gather(*asked, return_exceptions=True)
    told = {
        address.partition("//")[2]: answer.text
        for address, answer in zip(addresses, answers, strict=True)
        if isinstance(answer, httpx.Response) and answer.is_success
    }
    return together(told)


def together(told: Mapping[str, str]) -> str:
    """The answers `told` by each replica, by its name, grouped by figure as the format requires."""
    about: dict[str, list[str]] = {}
    lines: dict[str, list[str]] = {}
    for name, text in told.items():
        figure = ""
        for line in text.splitlines():
            if line.startswith("# HELP "):
                figure = line.split()[2]
            if line.startswith("#"):
                known = about.setdefault(figure, [])
                known += [] if line in known else [line]
            elif line:
                lines.setdefault(figure, []).append(_labelled(line, name))
    return "".join(f"{line}\n" for figure in about for line in (*about[figure], *lines.get(figure, ())))


def _labelled(line: str, name: str) -> str:
    figure, _, value = line.rpartition(" ")
    before, brace, labels = figure.partition("{")
    return f'{before}{{replica="{name}"{"," + labels if brace else "}"} {value}'
