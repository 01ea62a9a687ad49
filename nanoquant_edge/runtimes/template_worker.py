# SPDX-License-Identifier: Apache-2.0
"""The process that renders one chat template: started by `template_process`, ended when it takes too long.

A template comes with the model, so it is a stranger's program. It runs in Jinja's immutable sandbox (no attribute that
begins with an underscore, no change of its arguments), sees plain data only, and this process can neither take much
memory nor write a file.

Run as a script with the folders to import from, as JSON. Its settings are "source", "characters" and those of
`worker_side`; a question is the template's names, an answer {"text"} or {"error"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any


def make_environment() -> Any:
    """Jinja's sandbox with what transformers gives to chat templates."""
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
    import jinja2.utils

    class GenerationBlock(jinja2.ext.Extension):
        """`{% generation %}` marks the assistant's words for training; here its body is rendered and nothing else."""

        tags = {"generation"}  # noqa: RUF012 - the name and type that Jinja reads

        def parse(self, parser: Any) -> Any:
            """The block's body in a scope of its own."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    class Namespace(jinja2.utils.Namespace):
        """Jinja's `namespace`, closed for names that begin with an underscore."""

        def __init__(*arguments: Any, **names: Any) -> None:  # a template may call a name "self"
            self, *rest = arguments
            values = dict(*rest, **names)
            for name in values:
                Namespace.refuse(name)  # the instance answers only for what the template stored
            jinja2.utils.Namespace.__init__(self, values)

        @staticmethod
        def refuse(name: Any) -> None:
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a template may not set the attribute {name!r}")

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace.refuse(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

    class Dict:
        """`dict` without the methods that change one."""

        def __call__(self, *arguments: Any, **names: Any) -> dict[Any, Any]:
            return dict(*arguments, **names)

        def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
            return dict.fromkeys(*arguments)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda layout: datetime.now().strftime(layout),
        dict=Dict(),
        namespace=Namespace,
    )
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(environment: Any, settings: dict[str, Any], names: dict[str, Any]) -> dict[str, str]:
    """{"text"} or {"error"}, a reason in words."""
    try:
        if "template" not in settings:  # Jinja computes constant expressions while it compiles
            settings["template"] = environment.from_string(settings["source"])
        pieces, size = [], 0
        for piece in settings["template"].generate(names):
            size += len(piece)
            if size > settings["characters"]:
                return {"error": f"wrote more than {settings['characters']} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except MemoryError:
        return {"error": f"took more than {settings['memory'] >> 20} MiB"}
    except Exception as error:  # whatever a template makes Python raise is a fault of the template
        return {"error": f"cannot be rendered: {str(error)[:500] or type(error).__name__}"}


def prepare(settings: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """What renders with these settings."""
    environment = make_environment()
    return lambda names: render(environment, settings, names)


if __name__ == "__main__":
    sys.path += json.loads(sys.argv[1])
    from nanoquant_edge.system.worker_side import serve

    serve(prepare)
