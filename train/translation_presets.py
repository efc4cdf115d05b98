"""Lab records of translation: the options of whole experiments, by name."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {}
