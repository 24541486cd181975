"""Render conversations with the same roles once for all of them, if a chat template only copies the contents.

The values of the template's expressions are followed. A content may be printed, stripped, joined to other text,
and tested for its type. Any other use of a content is replaced by an error. If the changed template renders
some roles without this error, then their renderings differ in the copies of the contents alone. The first
rendering leaves gaps, and filling them takes a tenth of the time of another rendering.
"""

import re
from collections.abc import Callable, Iterable
from enum import Enum, auto
from itertools import chain
from typing import Any

from jinja2 import nodes

_BLANK, _OPEN, _CLOSE = "\u2003", "\ue000", "\ue001"
_FENCES = {_BLANK, _OPEN, _CLOSE}
"""Characters that mark contents in a rendering; a template that has them itself is not followed."""
_FENCED = re.compile(f"({_BLANK})?{_OPEN}([0-9]+){_CLOSE}(?(1){_BLANK})")
"""A content with both blanks around it, or without. The blank after a stripped one is not its own."""
_LOOP_POSITIONS = {"first", "last", "index", "index0", "revindex", "revindex0", "length", "depth", "depth0"}
_TYPE_TESTS = {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "boolean"}
_PURE_FILTERS = {
    *("trim", "length", "count", "tojson", "upper", "lower", "capitalize", "title", "string", "list", "first"),
    *("last", "join", "default", "d", "int", "items", "dictsort", "replace", "selectattr", "rejectattr", "map"),
}
"""Filters without side effects whose result is no `Markup`, which would escape text that is joined to it."""
_RAISE = "raise_exception"
_PURE_FUNCTIONS = {_RAISE, "namespace", "range", "dict"}
_CLOCK = "strftime_now"
_OPAQUE_NAMES = {
    *("loop", "self", "super", "caller", "varargs", "kwargs"),
    *("cycler", "joiner", "lipsum"),  # each use of them gives something else
}


class _Kind(Enum):
    """What is known of a value. Whatever is done to another kind may be done to a value without contents."""

    FREE = auto()
    """Depends on the roles alone, or on nothing."""
    CONTENT = auto()
    """The content of a message, perhaps stripped."""
    TEXT = auto()
    """Text with contents in it."""
    MESSAGE = auto()
    MESSAGES = auto()


_PRINTABLE = {_Kind.FREE, _Kind.CONTENT, _Kind.TEXT}
_ITERABLE = {_Kind.FREE, _Kind.MESSAGES}


class _UnknownError(Exception):
    """An expression may depend on contents in other ways than to copy them."""


class Frame:
    """The rendering of some roles, with gaps for the contents."""

    def __init__(self, render: Callable[[list[str]], str], count: int) -> None:
        """Render a conversation.

        Args:
            render: renders these contents, by a template that refuses to read them.
            count: of the messages.
        """
        parts = _FENCED.split(render([f"{_BLANK}{_OPEN}{number}{_CLOSE}{_BLANK}" for number in range(count)]))
        self._parts = parts[::3]
        self._gaps = [
            (int(number), before is None) for before, number in zip(parts[1::3], parts[2::3], strict=True)
        ]

    def fill(self, contents: list[str]) -> str:
        """The rendering of a conversation with these contents."""
        texts = [contents[number].strip() if strip else contents[number] for number, strip in self._gaps]
        return "".join([*chain.from_iterable(zip(self._parts, texts, strict=False)), self._parts[-1]])


def refuse_to_read_contents(template: nodes.Template, pinned: bool) -> None:
    """Change a template so that it raises an error if it does anything with contents but copy them.

    It holds for messages of a role and a content that is text and not blank.

    Args:
        template: as Jinja parses it.
        pinned: whether `strftime_now` always returns the same.
    """
    _Followed(template, {*_PURE_FUNCTIONS, *([_CLOCK] if pinned else [])})


class _Followed:
    """A template whose statements were followed until the kinds of its variables settled, and then changed."""

    def __init__(self, template: nodes.Template, functions: set[str]) -> None:
        self._functions = functions
        self._opaque = _OPAQUE_NAMES | ({_CLOCK} - functions)
        self._opaque |= {macro.name for macro in template.find_all(nodes.Macro)}
        self._kinds = {"messages": _Kind.MESSAGES}
        self._settled = False
        self._error = nodes.Call(nodes.Name(_RAISE, "load"), [nodes.Const("")], [], None, None)
        for node in (self._error, *self._error.find_all(nodes.Node)):
            node.lineno, node.environment = 1, template.environment
        self._rules: tuple[tuple[Any, Callable[[Any], _Kind]], ...] = (
            ((nodes.Const, nodes.TemplateData), self._constant),
            (nodes.Name, self._name),
            (nodes.Getattr, lambda node: self._part(node.node, node.attr)),
            (nodes.Getitem, self._item),
            (nodes.Concat, lambda node: self._joined(*node.nodes)),
            (nodes.Add, lambda node: self._joined(node.left, node.right)),
            ((nodes.And, nodes.Or), lambda node: _join(self._kind(node.left), self._kind(node.right))),
            (nodes.CondExpr, self._choice),
            (nodes.Not, self._truth),
            (nodes.Compare, self._comparison),
            (nodes.Test, self._test),
            (nodes.Filter, self._filter),
            (nodes.Call, self._call),
            ((nodes.BinExpr, nodes.UnaryExpr), self._operation),
            ((nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair), self._operation),
        )
        before: dict[str, _Kind] = {}
        while before != self._kinds:
            before = dict(self._kinds)
            self._follow(template.body)
        self._settled = True
        self._follow(template.body)

    def _follow(self, statements: list[nodes.Node]) -> None:
        for position, node in enumerate(statements):
            if isinstance(node, nodes.Output):
                for place in range(len(node.nodes)):
                    self._use(node.nodes, place, _PRINTABLE)
            elif isinstance(node, nodes.If):
                self._use_fields(node, "test", set(_Kind))
                for body in (node.body, node.elif_, node.else_):
                    self._follow(body)  # type: ignore[arg-type]
            elif isinstance(node, nodes.For) and not node.recursive:
                kind = self._use_fields(node, "iter", _ITERABLE)
                self._assign(node, "iter", _Kind.MESSAGE if kind is _Kind.MESSAGES else kind)
                if node.test is not None:
                    self._use_fields(node, "test", set(_Kind))
                self._follow(node.body)
                self._follow(node.else_)
            elif isinstance(node, nodes.Assign):
                self._assign(node, "node", self._use_fields(node, "node", set(_Kind)))
            elif not isinstance(node, (nodes.Break, nodes.Continue)) and self._settled:
                # A macro that is defined does nothing; calls of it are errors.
                output = [] if isinstance(node, nodes.Macro) else [self._error]
                statements[position] = nodes.Output(output, lineno=node.lineno, environment=node.environment)

    def _use_fields(self, node: nodes.Node, field: str, kinds: set[_Kind]) -> _Kind:
        return self._use(vars(node), field, kinds)

    def _use(self, holder: Any, key: Any, kinds: set[_Kind]) -> _Kind:
        """The kind of an expression. If it is unknown or another, nothing after the expression will happen."""
        try:
            return self._require([holder[key]], kinds)[0]
        except _UnknownError:
            if self._settled:
                holder[key] = self._error
            return _Kind.FREE

    def _assign(self, node: "nodes.For | nodes.Assign", value: str, kind: _Kind) -> None:
        try:
            self._assign_to(node.target, kind)
        except _UnknownError:
            if self._settled:
                setattr(node, value, self._error)

    def _assign_to(self, target: nodes.Node, kind: _Kind) -> None:
        if isinstance(target, nodes.Name) and target.name not in self._opaque | self._functions:
            self._kinds[target.name] = _join(self._kinds.get(target.name, _Kind.FREE), kind)
        elif isinstance(target, nodes.Tuple) and kind is _Kind.FREE:
            for each in target.items:
                self._assign_to(each, kind)
        elif not isinstance(target, nodes.NSRef) or kind is not _Kind.FREE:
            raise _UnknownError

    def _require(self, expressions: Iterable[nodes.Node | None], kinds: set[_Kind]) -> list[_Kind]:
        actual = [self._kind(node) for node in expressions if node is not None]
        if not kinds.issuperset(actual):
            raise _UnknownError
        return actual

    def _require_free(self, *expressions: nodes.Node | None) -> _Kind:
        self._require(expressions, {_Kind.FREE})
        return _Kind.FREE

    def _kind(self, node: nodes.Node) -> _Kind:
        for types, rule in self._rules:
            if isinstance(node, types):
                return rule(node)
        raise _UnknownError

    def _constant(self, node: "nodes.Const | nodes.TemplateData") -> _Kind:
        text = node.data if isinstance(node, nodes.TemplateData) else node.value
        if isinstance(text, str) and not _FENCES.isdisjoint(text):
            raise _UnknownError
        return _Kind.FREE

    def _name(self, node: nodes.Name) -> _Kind:
        if node.name in self._opaque:
            raise _UnknownError
        return self._kinds.get(node.name, _Kind.FREE)

    def _joined(self, *parts: nodes.Node) -> _Kind:
        return _Kind.FREE if set(self._require(parts, _PRINTABLE)) == {_Kind.FREE} else _Kind.TEXT

    def _choice(self, node: nodes.CondExpr) -> _Kind:
        self._kind(node.test)
        return _join(self._kind(node.expr1), self._kind(node.expr2) if node.expr2 else _Kind.FREE)

    def _truth(self, node: nodes.Not) -> _Kind:
        """The truth of a value depends on no content, because no content is empty."""
        self._kind(node.node)
        return _Kind.FREE

    def _operation(self, node: nodes.Node) -> _Kind:
        return self._require_free(*node.iter_child_nodes())

    def _item(self, node: nodes.Getitem) -> _Kind:
        return self._part(node.node, node.arg.value if isinstance(node.arg, nodes.Const) else node.arg)

    def _part(self, whole: nodes.Expr, key: Any) -> _Kind:
        """A part of a value; the key is a constant or an expression."""
        if isinstance(whole, nodes.Name) and whole.name == "loop" and key in _LOOP_POSITIONS:
            return _Kind.FREE
        kind = self._kind(whole)
        if isinstance(key, nodes.Slice):
            self._require_free(key.start, key.stop, key.step)
            if kind in _ITERABLE:
                return kind
        elif isinstance(key, nodes.Expr):
            self._require_free(key)
            if kind in _ITERABLE:
                return _Kind.FREE if kind is _Kind.FREE else _Kind.MESSAGE
        elif kind is _Kind.FREE:
            return kind
        elif kind is _Kind.MESSAGES and isinstance(key, int):
            return _Kind.MESSAGE
        elif kind is _Kind.MESSAGE and isinstance(key, str) and not hasattr(dict, key):
            return _Kind.CONTENT if key == "content" else _Kind.FREE
        raise _UnknownError

    def _comparison(self, node: nodes.Compare) -> _Kind:
        for operand in node.ops:
            if operand.op in ("in", "notin") and self._kind(operand.expr) is _Kind.MESSAGE:
                continue  # asks for a field
            self._require_free(operand.expr)
        return self._require_free(node.expr)

    def _arguments(self, node: "nodes.Filter | nodes.Test | nodes.Call") -> list[nodes.Expr]:
        """The arguments, without contents, of a use of a value."""
        arguments = [*node.args, *(pair.value for pair in node.kwargs)]
        self._require_free(*arguments)
        if node.dyn_args is not None or node.dyn_kwargs is not None or node.node is None:
            raise _UnknownError
        return arguments

    def _call(self, node: nodes.Call) -> _Kind:
        arguments = self._arguments(node)
        if isinstance(node.node, nodes.Name) and node.node.name in self._functions:
            return _Kind.FREE
        if isinstance(node.node, nodes.Getattr):
            kind = self._kind(node.node.node)
            if kind is _Kind.FREE or (kind is _Kind.CONTENT and node.node.attr == "strip" and not arguments):
                return kind
        raise _UnknownError

    def _test(self, node: nodes.Test) -> _Kind:
        arguments = self._arguments(node)
        if isinstance(node.node, nodes.Name) and node.name == "defined":
            return _Kind.FREE
        if self._kind(node.node) is _Kind.FREE or (node.name in _TYPE_TESTS and not arguments):
            return _Kind.FREE
        raise _UnknownError

    def _filter(self, node: nodes.Filter) -> _Kind:
        arguments = self._arguments(node)
        if node.name in _PURE_FILTERS and node.node is not None:
            kind = self._kind(node.node)
            if kind is _Kind.FREE or (kind is _Kind.CONTENT and node.name == "trim" and not arguments):
                return kind
            if kind in (_Kind.MESSAGE, _Kind.MESSAGES) and node.name in ("length", "count"):
                return _Kind.FREE
        raise _UnknownError


def _join(left: _Kind, right: _Kind) -> _Kind:
    """What is known of a value that is one or the other."""
    if left is right or right is _Kind.FREE:
        return left
    if left is _Kind.FREE:
        return right
    if {left, right} == {_Kind.CONTENT, _Kind.TEXT}:
        return _Kind.TEXT
    raise _UnknownError
