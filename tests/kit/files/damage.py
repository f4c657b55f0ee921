"""Documents with something gone or odd in them, drawn from a seed."""

import copy

ODD = (
    None, True, -1, 0, 7, 10**9, 10**15, 10**40, 1.5, -1e300, 5e-324, "", "x", "../..", "\0", "<script>",
    "9" * 400, [], {}, [1], [10**9], {"a": 1},
)  # fmt: skip


def damaged(document, rng):
    """A copy of `document` with one or two values that are gone, or something odd."""
    made = copy.deepcopy(document)
    for _ in range(rng.randint(1, 2)):
        if not (places := _places(made, [])):
            break
        container, key = rng.choice(places)
        if rng.random() < 0.35:
            del container[key]
        else:
            container[key] = copy.deepcopy(rng.choice(ODD))
    return made


def _places(value, found):
    """Every container in `value` with each of its keys, of lists the first three."""
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 3))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            _places(value[key], found)
    return found
