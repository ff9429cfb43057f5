"""YAML as people write configurations and recipes: what no configuration needs is refused, with its line."""

from typing import Any

import yaml

_DEEPEST = 40  # levels of nesting; a configuration has about ten
_LARGEST = 100_000  # values with every alias written out; a recipe has some hundred
_DATE = "tag:yaml.org,2002:timestamp"


class YamlError(Exception):
    """A text is not YAML that a configuration can be written in; the message says where and why."""


def load_yaml(text: str) -> Any:
    """The plain values that a text stands for.

    Raises:
        YamlError: It is not valid YAML, gives a key twice, nests too deep, or holds a value inside itself.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YamlError(line + " ".join(str(error.problem).split())) from error
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from error


class _Loader(yaml.SafeLoader):
    # A date is text, as to the full parser.
    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        first: [each for each in resolvers if each[0] != _DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # how many values each finished node stands for

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Composes a node, and looks at it before any value is made."""
        mark, alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)  # type: ignore[no-untyped-call]
        if self._depth == _DEEPEST:
            raise _error(f"values are nested more than {_DEEPEST} levels deep", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if not alias:
            self._sizes[node] = 1 + self._size_inside(node)
        elif node not in self._sizes:
            raise _error("a value holds itself", mark)
        if self._sizes[node] > _LARGEST:
            raise _error(f"its aliases stand for more than {_LARGEST:,} values", mark)
        return node

    def _size_inside(self, node: yaml.Node) -> int:
        """How many values a collection holds; an error where it gives a key twice."""
        if isinstance(node, yaml.SequenceNode):
            return sum(self._sizes[each] for each in node.value)
        size, names = 0, set[str]()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise _error(f"{key.value} is given twice", key.start_mark)
            names.add(str(key.value))
            size += self._sizes[key] + self._sizes[value]
        return size

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Makes a value; says what a tag's own code raises for a text that does not fit it."""
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:
            what = f"{str(node.value)[:40]!r} cannot be read as {node.tag.rpartition(':')[2]}"
            raise _error(what, node.start_mark) from error


def _error(what: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, what, mark)
