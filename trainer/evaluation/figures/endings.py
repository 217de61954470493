"""How the fits of linear probes and SVMs ended, from the keys of results.json."""

import re
from collections.abc import Mapping

FITTED = re.compile(r"(control/\w+/)?(probe/linear|probe/svm|few_shot/\d+/linear)(/\w+)?")
PARTS = ("/std", "/converged", "/iterations", "/objective", "/l2")  # what else is known of a fit


def endings(results: Mapping[str, float]) -> str:
    """A line about those that stopped before their minimum, and one about those of which it is not known.

    Results from before 2026-11-29 do not say; their linear probes stopped after 100 iterations at the latest.
    """
    fitted = [name for name in results if FITTED.fullmatch(name) and not name.endswith(PARTS)]
    short = [name for name in fitted if results.get(f"{name}/converged") == 0]
    unknown = [name for name in fitted if f"{name}/converged" not in results]
    lines = []
    if short:
        lines.append(f"stopped before the minimum: {', '.join(short)}; more `iterations` may reach it")
    if unknown:
        lines.append(f"unknown whether at the minimum (by SGD, or older): {', '.join(unknown)}")
    return "\n".join(lines)
