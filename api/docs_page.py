"""The page `/docs`: every call of the api as HTML, made from its OpenAPI document.

It loads nothing, neither from elsewhere nor from us: it is whole behind a firewall, and no foreign script runs in the
origin of an api that has no authentication.
"""

import json
from html import escape
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin-top: 2.5rem; font: 600 1.1rem monospace } h3 { font-family: monospace }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; white-space: pre-wrap } td, th { text-align: left;
padding: .1rem 1rem .1rem 0; vertical-align: top } code { background: #f4f4f4 }
"""


def docs_page(openapi: dict[str, Any]) -> str:
    """The whole page."""
    info = openapi["info"]
    title = f"{info['title']} {info['version']}"
    calls = [
        _call(method, path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, schema) for name, schema in openapi["components"]["schemas"].items()]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>'
        f'<p>{escape(info["description"])} For programs: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"{''.join(calls)}<h1>Schemas</h1>{''.join(schemas)}</body></html>\n"
    )


def _call(method: str, path: str, operation: dict[str, Any]) -> str:
    found = [f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(operation.get('description', ''))}</p>"]
    if parameters := operation.get("parameters"):
        found.append(f"<table>{''.join(_parameter(each) for each in parameters)}</table>")
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        found.append(f"<p>Body, <code>{escape(media_type)}</code>: {_link(content['schema'])}</p>")
        if "example" in content:
            command = f"curl -s http://HOST:PORT{path} -H 'content-type: {media_type}' -d '"
            found.append(f"<pre>{escape(command + json.dumps(content['example']))}'</pre>")
    found.append(f"<table>{''.join(_answer(status, each) for status, each in operation['responses'].items())}</table>")
    return "".join(found)


def _parameter(parameter: dict[str, Any]) -> str:
    schema = parameter["schema"]
    default = f"default {json.dumps(schema['default'])}" if "default" in schema else ""
    required = "required" if parameter.get("required") else default
    said = f"{parameter['in']} {schema.get('type', '')}", required, parameter.get("description", "")
    return f"<tr><td><code>{escape(parameter['name'])}</code></td><td>{'</td><td>'.join(map(escape, said))}</td></tr>"


def _answer(status: str, answer: dict[str, Any]) -> str:
    schemas = [_link(content.get("schema", {})) for content in answer.get("content", {}).values()]
    return f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}</td><td>{' '.join(schemas)}</td></tr>"


def _link(schema: dict[str, Any]) -> str:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return f'<a href="#{escape(name)}">{escape(name)}</a>' if name else escape(str(schema.get("type", "")))


def _schema(name: str, schema: dict[str, Any]) -> str:
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><pre>{escape(json.dumps(schema, indent=1))}</pre>'
