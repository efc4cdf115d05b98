"""What MkDocs needs to build the documentation: the options of `wagma`, and links out of docstrings.

Both follow the sources: a new command or option appears by itself.
"""

import contextlib
import io
import os
import re

import griffe

import wagma_jax
from wagma_jax.commands.main import main

OPTIONS = "<!-- options of wagma -->"
"""Is replaced by what `wagma --help` and the help of every command print."""


def _help(*words: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return output.getvalue().rstrip()


def commands() -> list[str]:
    """The commands that `wagma --help` lists."""
    return re.findall(r"^    (\w+)", _help(), re.MULTILINE)


def _sections() -> str:
    os.environ["COLUMNS"] = "110"  # of argparse
    helps = [("wagma", _help())] + [(f"wagma {name}", _help(name)) for name in commands()]
    return "\n\n".join(f"### `{title}`\n\n```text\n{text}\n```" for title, text in helps)


def on_page_markdown(markdown: str, **_) -> str:
    """Called by MkDocs for each page."""
    return markdown.replace(OPTIONS, _sections()) if OPTIONS in markdown else markdown


class Roles(griffe.Extension):
    """Turns the roles in docstrings, such as :class:`GroupAverager`, into links where there is something to link to."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Called by griffe for each object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r":(?:class|func|meth|attr):`~?([\w.]+)`", _link, obj.docstring.value)


def _link(match: re.Match[str]) -> str:
    name = match[1].removeprefix("wagma_jax.")
    if name.partition(".")[0] in wagma_jax.__all__:
        return f"[`{name}`][wagma_jax.{name}]"
    return f"`{name}`"
