"""yaml as data: plain values out of a text, whose size in memory is bounded by the text's own."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 200_000  # of a document, a value counted each time that an alias names it
MOST_LEVELS = 50  # of values in values
LONGEST_NUMBER = 100  # letters
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class YamlError(ValueError):
    """A text that is no yaml, or asks for more than a data file may; `line` counts from 1, 0 if unknown."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def parse_yaml(text: str) -> Any:
    """Return what a yaml document holds: dicts, lists, strings, numbers, None. No tag makes anything else.

    Raises YamlError. Aliases are followed, but not without end: a few lines of them could stand for billions of values.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        message = getattr(e, "problem", None) or str(e)
        raise YamlError(" ".join(message.split()), mark.line + 1 if mark else 0) from e
    except RecursionError as e:
        raise YamlError("values in values without end") from e
    except (ValueError, OverflowError, AttributeError, TypeError) as e:  # a date or number that cannot be
        if isinstance(e, YamlError):
            raise
        raise YamlError(f"a value cannot be read: {' '.join(str(e).split())[:100]}") from e


def _check_size(root: yaml.Node) -> None:
    """Raise YamlError for a document that contains itself, is nested too deep or stands for too many values."""
    sizes: dict[int, int] = {}  # of nodes that are done
    parents: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if node.tag in NUMBERS and len(node.value) > LONGEST_NUMBER:
            raise YamlError(f"a number of {len(node.value)} letters", node.start_mark.line + 1)
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
                raise YamlError(f"more than {MOST_LEVELS} values in each other", node.start_mark.line + 1)
            stack.append((node, True))
            stack += [(child, False) for child in children]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []
