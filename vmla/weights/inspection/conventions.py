"""The parts of latent attention by the names that MLA code gives them.

DeepSeek writes `kv_a_proj_with_mqa` and `kv_b_proj`, its inference code `wkv_a` and `wkv_b`, papers W_DKV,
W_UK and W_KR, others `kv_down`, `k_rope`. A name is cut into words; what the words say is its role.
"""

from __future__ import annotations

import re

ATTENTIONS = ("self_attn", "attn1", "attn", "attention", "mla")
"""Names of the self-attention module within a block."""

WORDS = {
    "dkv": "down kv", "dq": "down q", "ukv": "up kv", "uk": "up k", "uv": "up v", "uq": "up q",
    "qr": "q rope", "kr": "k rope", "wkv": "kv", "wq": "q", "wk": "k", "wv": "v", "wo": "o",
    "a": "down", "b": "up",
    "compress": "down", "compressed": "down", "decompress": "up", "expand": "up", "lora": "", "latent": "",
    "rot": "rope", "rotary": "rope", "pe": "rope", "layernorm": "norm", "ln": "norm", "rmsnorm": "norm",
    "key": "k", "value": "v", "query": "q", "out": "o", "output": "o", "w": "", "proj": "", "projection": "",
    "linear": "", "with": "", "mqa": "", "to": "", "c": "", "ckv": "kv", "cq": "q", "nope": "", "content": "",
    "0": "",
}  # fmt: skip
"""The roles that words in names stand for; words without a meaning are left out."""
ROLES = {
    frozenset(words.split()): role
    for role, spellings in {
        "kv_down": ("down kv", "kv", "down rope kv"),
        "kv_norm": ("norm kv", "down norm kv"),
        "kv_up": ("up kv",),
        "k_up": ("up k", "up kv k"),
        "v_up": ("up v", "up kv v"),
        "k_rope": ("k rope", "rope kv", "down k rope"),
        "q_down": ("down q",),
        "q_norm": ("norm q", "down norm q"),
        "q_up": ("up q",),
        "q_rope": ("q rope", "up q rope"),
        "out": ("o",),
    }.items()
    for words in spellings
}


def words_of(name: str) -> list[str]:
    """The words of a module's name, as `WORDS` has them: `W_DKV` gives down, kv."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    words = (WORDS.get(word, word) for word in re.split(r"[._]+", parts))
    return [word for words_ in words for word in words_.split()]


def role_of(name: str) -> str | None:
    """The role of a module of attention, a value of `ROLES`; None for a name that says nothing."""
    return ROLES.get(frozenset(words_of(name)))


def rotary_first(name: str) -> bool:
    """Whether a fused projection's name has its rotary rows before the others."""
    words = words_of(name)
    return "rope" in words and "kv" in words and words.index("rope") < words.index("kv")
