"""Safe parsing of yaml: plain values only, with limits on size and nesting, against malicious files."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 200_000  # per document; a value counts again for each alias that refers to it
MOST_LEVELS = 50  # nested values
LONGEST_NUMBER = 100  # characters
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class YamlError(ValueError):
    """The text is not valid yaml or exceeds a limit; `line` counts from 1 and is 0 if unknown."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


# what yaml takes unquoted words for
GUESSED = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "null", "int", "float", "timestamp", "merge", "value"))
TEXTS = ("names",)  # keys whose values are class names


def parse_yaml(text: str) -> Any:
    """Return the content of a yaml document: dicts, lists and plain values. Tags cannot create other objects.

    Raises YamlError. Values referred to by aliases count against the limit on values, because a few lines of aliases
    could stand for billions of values.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        _keep_texts(node)
        return loader.construct_document(node)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        message = getattr(e, "problem", None) or str(e)
        raise YamlError(" ".join(message.split()), mark.line + 1 if mark else 0) from e
    except RecursionError as e:
        raise YamlError("values are nested too deeply") from e
    except (ValueError, OverflowError, AttributeError, TypeError) as e:  # an impossible date or number
        if isinstance(e, YamlError):
            raise
        raise YamlError(f"a value cannot be read: {' '.join(str(e).split())[:100]}") from e


def _check_size(root: yaml.Node) -> None:
    """Raise YamlError for a document that contains itself, is nested too deeply or has too many values."""
    sizes: dict[int, int] = {}  # of finished nodes
    parents: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise YamlError(f"a number of {len(node.value)} characters", node.start_mark.line + 1)
        children = _children(node)
        if done:
            parents.remove(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(c)] for c in children)
            if sizes[id(node)] > MOST_VALUES:
                raise YamlError(f"more than {MOST_VALUES} values", node.start_mark.line + 1)
        elif id(node) in parents:
            raise YamlError("a value contains itself", node.start_mark.line + 1)
        elif id(node) not in sizes:
            parents.add(id(node))
            if len(parents) > MOST_LEVELS:
                raise YamlError(f"more than {MOST_LEVELS} nested levels", node.start_mark.line + 1)
            stack.append((node, True))
            stack += [(child, False) for child in children]


def _keep_texts(root: yaml.Node) -> None:
    """Let the values below `names` be texts as they are written: class names such as yes, no, ~, 12:30 or 1.0.

    Raises YamlError for a number of a class that stands twice.
    """
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value not in TEXTS:
            continue
        if isinstance(value, yaml.SequenceNode):
            value.value = [_as_text(v) for v in value.value]
        if isinstance(value, yaml.MappingNode):
            seen = set()
            for k, _ in value.value:
                if isinstance(k, yaml.ScalarNode) and k.value in seen:
                    raise YamlError(f"class {k.value[:20]} has two names", k.start_mark.line + 1)
                seen.add(k.value if isinstance(k, yaml.ScalarNode) else None)
            value.value = [(k, _as_text(v)) for k, v in value.value]


def _as_text(node: yaml.Node) -> yaml.Node:
    # a node of its own: an alias elsewhere in the file may stand for the same one
    guessed = isinstance(node, yaml.ScalarNode) and node.tag in GUESSED and node.value
    return yaml.ScalarNode("tag:yaml.org,2002:str", node.value, node.start_mark, node.end_mark) if guessed else node


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
