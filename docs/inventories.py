"""Where other projects document their names; without a network their names are simply no links."""

import urllib.request
from collections.abc import Mapping
from pathlib import Path

MADE = Path(__file__).parent / "made"
SECONDS = 5


def mapping(sites: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Sphinx's `intersphinx_mapping`, of those sites whose inventory is here or can be fetched.

    Sphinx itself would warn if one cannot be fetched, and a warning is an error.
    """
    return {
        name: (url, str(MADE / f"{name}.inv")) for name, url in sites.items() if _have(name, url)
    }


def _have(name: str, url: str) -> bool:
    path = MADE / f"{name}.inv"
    if path.exists():
        return True
    try:
        with urllib.request.urlopen(f"{url}objects.inv", timeout=SECONDS) as answer:
            inventory = answer.read()
    except OSError:
        return False
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(inventory)
    return True
