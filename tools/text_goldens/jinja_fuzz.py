"""Differential fuzzing of the Jinja interpreter against jinja2: random templates, rendered by both, must agree.

Usage: python jinja_fuzz.py --count 20000 [--seed N] [--keep FILE] -- PROGRAM [ARGUMENT…]

PROGRAM reads JSONL rows {"template", "context"} and answers each with {"output"} or {"error": {"class", "message"}}, as
`calandra render --jsonl - --now '2026-01-15 12:30:45'` does. Outputs must be equal; where jinja2 raises, an error is
required, and the message too for raise_exception. Errors of the class UnsupportedError are recorded refusals.
"""

import argparse
import json
import random
import re
import subprocess
import warnings
from datetime import datetime

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONTEXT = {
    "x": 5, "y": 2, "neg": -7, "f": 2.5, "big": 12345678901234567890, "t": True, "fa": False, "n": None, "e": "",
    "s": "Hello World", "ws": "  pad \n", "u": "Grüße 你好 👋", "html": "<a href=\"x\">&'</a>", "lines": "one\ntwo\n\nthree",
    "l": [3, 1, 2], "el": [], "strs": ["b", "A", "c", "B"], "words": ["x", "yy", "zzz"],
    "mixed": [1, "a", None, True, 2.5, [1], {"k": 1}], "d": {"b": 1, "a": "x", "c": None}, "ed": {},
    "nested": {"k": [{"v": 1}, {"v": 2, "w": "z"}]},
    "users": [{"name": "Bob", "age": 30, "role": "user"}, {"name": "alice", "age": 25, "role": "assistant"},
              {"name": "Zed", "age": 30, "role": "user"}],
    "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "U"}]},
                 {"role": "assistant", "content": "A", "tool_calls": [{"function": {"name": "f", "arguments": {"k": "v", "n": [1]}}}]}],
}
NAMES = list(CONTEXT) + ["zz", "i", "a", "b", "ns", "m", "loop", "q"]
STRINGS = ["''", "'a'", "'x y'", "'Hello'", "',' ", "'\\n'", "'it\\'s'", "\"q\"", "'ü'", "'ǅßŉ'", "'5'", "'4.2'", "' 7 '", "'0x1F'", "'%s-%s'",
           "'{}'", "'name'", "'role'", "'k'", "'v'", "'ΑΣ'", "'a,b,,c'", "'l'", "'o'", "'<b>'", "'tab\\tx'"]
NUMBERS = ["0", "1", "2", "3", "5", "7", "10", "-1", "-3", "0.5", "2.0", "1e3", "1e16", "1e-5", "3.14159", "100", "2**64", "true", "none", "0.1"]
FILTERS = {
    "upper": 0, "lower": 0, "trim": (0, "S"), "length": 0, "count": 0, "list": 0, "first": 0, "last": 0, "join": (0, "S"), "default": (0, "EE"),
    "d": (0, "E"), "string": 0, "int": (0, "E"), "float": (0, "E"), "abs": 0, "round": (0, "N"), "reverse": 0, "sort": (0, "B"), "unique": 0,
    "sum": 0, "min": 0, "max": 0, "tojson": 0, "items": 0, "dictsort": (0, "B"), "replace": (2, "SSN"), "title": 0, "capitalize": 0,
    "indent": (0, "NBB"), "e": 0, "escape": 0, "safe": 0, "batch": (1, "NE"), "slice": (1, "NE"), "center": (0, "N"), "wordcount": 0,
    "truncate": (0, "NBSN"), "format": (0, "EE"), "map": "map", "select": "select", "reject": "select", "selectattr": "selattr",
    "rejectattr": "selattr", "groupby": "groupby", "urlencode": 0, "striptags": 0, "filesizeformat": (0, "B"), "attr": (1, "S"),
    "forceescape": 0, "xmlattr": 0, "wordwrap": (0, "N"),
}
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "mapping", "sequence", "iterable", "boolean", "true", "false",
         "odd", "even", "lower", "upper", "callable", "escaped"]
TESTS1 = ["divisibleby", "eq", "ne", "lt", "gt", "le", "ge", "in", "sameas", "equalto"]
METHODS = ["upper()", "lower()", "strip()", "lstrip()", "rstrip()", "split()", "splitlines()", "title()", "capitalize()", "swapcase()", "isdigit()",
           "isalpha()", "isupper()", "islower()", "isspace()", "istitle()", "items()", "keys()", "values()", "copy()", "casefold()", "isalnum()",
           "split(S)", "split(S, N)", "rsplit(S, N)", "rsplit(None, N)", "split(none, N)", "strip(S)", "lstrip(S)", "rstrip(S)", "startswith(S)",
           "endswith(S)", "find(S)", "rfind(S)", "index(S)", "count(S)", "replace(S, S)", "replace(S, S, N)", "join(E)", "get(S)", "get(S, E)",
           "format(E, E)", "partition(S)", "rpartition(S)", "removeprefix(S)", "removesuffix(S)", "zfill(N)", "center(N)", "ljust(N)", "rjust(N, S)",
           "expandtabs(N)", "find(S, N)", "count(S, N, N)", "startswith(S, N)", "index(E)", "count(E)", "append(E)", "splitlines(true)"]
ATTRIBUTES = ["a", "b", "k", "v", "name", "role", "content", "zz", "0", "1", "upper", "index", "__class__", "items", "text"]
FORMATS = ["'%s'", "'%d'", "'%5.2f'", "'%-6s|'", "'%05d'", "'%x'", "'%e'", "'%g'", "'%r'", "'%+d'", "'%c'", "'%%'", "'%s %s'", "'%(a)s'", "'%.3s'", "'%#x'", "'%G'"]
SPECS = ["", ":>6", ":<6", ":^7", ":*^7", ":05d", ":,", ":.2f", ":x", ":#b", ":e", ":+", ":g", ":.3", ":10", ":%", ":_", "!r", "!s", ":s", ":c", ":n", ":,.1f", ":08.2f"]
SPACE = ["", "", "", " ", "\n", "\n  ", "text", "  x\n", "\t", "é", "\n\n", "{ }", "a\n b"]


class Grammar:
    """Writes one random template from a seed."""

    def __init__(self, rng):
        self.rng = rng

    def pick(self, options):
        return self.rng.choice(options)

    def chance(self, p):
        return self.rng.random() < p

    def arguments(self, required, kinds):
        count = self.rng.randint(required, len(kinds))
        return ", ".join(self.argument(kind) for kind in kinds[:count])

    def argument(self, kind):
        if self.chance(0.05):
            return self.expression(1)
        if kind == "S":
            return self.pick(STRINGS)
        if kind == "N":
            return self.pick(["0", "1", "2", "3", "4", "10", "-1", "20"])
        if kind == "B":
            return self.pick(["true", "false"])
        return self.expression(1)

    def filter(self):
        name = self.pick(list(FILTERS))
        shape = FILTERS[name]
        if shape == "map":
            return self.pick(["map('upper')|list", "map('string')|join('+')", "map(attribute='name')|list", "map(attribute='v', default=0)|list",
                              "map('length')|list", "map(attribute='0')|list", "map('default', 'q')|list", "map('tojson')|join", "map('int')|sum", "map|list"])
        if shape == "select":
            return f"{name}({self.pick(['', repr(self.pick(TESTS)), repr(self.pick(TESTS1)) + ', ' + self.expression(1)])})|list"
        if shape == "selattr":
            attribute = self.pick(["'name'", "'age'", "'role'", "'zz'", "'v'", "'content'"])
            return f"{name}({attribute}{self.pick(['', ', ' + repr(self.pick(TESTS)), ', ' + repr(self.pick(TESTS1)) + ', ' + self.expression(1)])})|list"
        if shape == "groupby":
            return self.pick(["groupby('role')|list", "groupby('age')|map(attribute='list')|list", "groupby('name', default='z')|map('first')|list"])
        if name in ("sort", "unique", "min", "max", "sum", "join") and self.chance(0.3):
            attribute = self.pick(["'name'", "'age'", "'v'", "'age,name'"])
            return f"{name}(attribute={attribute})" + ("|list" if name == "unique" else "")
        if name == "tojson" and self.chance(0.4):
            return self.pick(["tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(separators=(',', ':'))", "tojson(sort_keys=true)", "tojson(true)", "tojson(indent='-')"])
        text = name if shape == 0 else f"{name}({self.arguments(*shape)})"
        return text + ("|list" if name in ("batch", "slice", "items", "unique", "reverse") and self.chance(0.9) else "")

    def atom(self):
        kind = self.rng.randrange(10)
        if kind < 4:
            return self.pick(NAMES)
        if kind < 6:
            return self.pick(STRINGS)
        if kind < 8:
            return self.pick(NUMBERS)
        return self.pick(["[]", "{}", "()", "[1, 2]", "(1,)", "{'a': 1}", "range(3)", "range(1, 9, 3)", "range(5, 0, -2)", "namespace(a=1)", "dict(a=1)", "d.items()", "d.keys()"])

    def text(self, depth):
        """An expression that is a string."""
        if depth <= 0:
            return self.pick(STRINGS + ["s", "u", "ws", "html", "lines", "e", "strs[0]", "users[0].name", "messages[0].role"])
        sub = lambda: self.text(depth - 1)
        methods = [m for m in METHODS if m.endswith(("()", "(S)", "(S, S)", "(S, S, N)", "(S, N)")) and m[:3] not in ("ite", "key", "val", "cop", "get", "app", "joi")]
        return self.pick([
            lambda: f"({sub()} + {sub()})", lambda: f"({sub()} ~ {self.any(depth - 1)})", lambda: f"({self.any(depth - 1)})|string", lambda: f"({sub()} * 2)",
            lambda: f"({sub()})|{self.pick(['upper', 'lower', 'trim', 'title', 'capitalize', 'e', 'indent', 'indent(2, true)', 'reverse', 'center(9)', 'truncate(6)', 'urlencode', 'safe', 'first', 'last', 'forceescape', 'string', 'striptags'])}",
            lambda: f"({sub()})|replace({sub()}, {sub()})", lambda: f"({self.sequence(depth - 1)})|join({self.pick(STRINGS)})", lambda: f"({self.any(depth - 1)})|tojson",
            lambda: f"({sub()}).{re.sub(r'(?<![a-z])[SN](?![a-z])', lambda m: self.argument(m[0]), self.pick(methods))}", lambda: f"({sub()} )[{self.slice()}]",
            lambda: f"('%s|%s' % ({self.any(depth - 1)}, {self.any(depth - 1)}))", lambda: f"({sub()} if {self.any(depth - 1)} else {sub()})",
            lambda: f"'{{}}{{{self.pick(['', ':>8', ':^9', '!r'])}}}'.format({self.any(depth - 1)}, {sub()})",
        ])()

    def number(self, depth):
        """An expression that is a number."""
        if depth <= 0:
            return self.pick([*NUMBERS[:14], "x", "y", "neg", "f", "big", "l[0]", "users[1].age"])
        sub = lambda: self.number(depth - 1)
        return self.pick([
            lambda: f"({sub()} {self.pick(['+', '-', '*', '/', '//', '%'])} {sub()})", lambda: f"({sub()})|{self.pick(['abs', 'round', 'round(1)', 'int', 'float', 'round(2, ' + repr('floor') + ')'])}",
            lambda: f"({self.text(depth - 1)})|length", lambda: f"({self.sequence(depth - 1)})|count", lambda: f"({self.text(depth - 1)})|int", lambda: f"({self.text(depth - 1)})|float",
            lambda: f"({self.text(depth - 1)}).{self.pick(['find', 'rfind', 'count'])}({self.pick(STRINGS)})", lambda: f"-({sub()})", lambda: f"({sub()} ** {self.pick(['0', '1', '2', '3'])})",
            lambda: f"(l + [{sub()}, {sub()}])|{self.pick(['sum', 'min', 'max', 'first', 'last'])}", lambda: f"({self.text(depth - 1)})|wordcount",
        ])()

    def sequence(self, depth):
        """An expression that is a list or another sequence."""
        if depth <= 0:
            return self.pick(["l", "strs", "words", "mixed", "users", "el", "range(4)", "[1, 'b', none]", "(x, y)", "nested.k", "messages", "d.items()|list", "d|list"])
        sub = lambda: self.sequence(depth - 1)
        return self.pick([
            lambda: f"({sub()})|list", lambda: f"({self.text(depth - 1)}).split({self.pick(['', *STRINGS[1:8]])})", lambda: f"({sub()})|reverse|list", lambda: f"(({sub()})|list)[{self.slice()}]",
            lambda: f"({self.text(depth - 1)})|list", lambda: f"[{self.any(depth - 1)}, {self.any(depth - 1)}]", lambda: f"({sub()})|map({self.pick([repr('string'), repr('tojson'), 'attribute=' + repr('name'), repr('default'), repr('e')])})|list",
            lambda: f"({sub()})|select({self.pick([repr(t) for t in TESTS[:12]])})|list", lambda: f"({sub()})|reject({self.pick([repr(t) for t in TESTS[:12]])})|list",
            lambda: f"(({sub()})|list + ({sub()})|list)", lambda: f"({sub()})|batch(2, 0)|list", lambda: f"({sub()})|map('string')|{self.pick(['sort', 'unique|list', 'sort(reverse=true)', 'sort(case_sensitive=true)'])}",
            lambda: f"users|{self.pick(['selectattr', 'rejectattr'])}('{self.pick(['age', 'role', 'name', 'zz'])}', '{self.pick(['eq', 'ne', '==', '!='])}', {self.any(depth - 1)})|map(attribute='name')|list",
            lambda: f"({self.text(depth - 1)}).{self.pick(['splitlines()', 'rsplit(none, 1)', 'split(none, 1)', 'partition(' + self.pick(STRINGS[1:6]) + ')'])}",
        ])()

    def truth(self, depth):
        """An expression that is a boolean."""
        sub = lambda: self.any(depth - 1)
        return self.pick([
            lambda: f"({sub()} is {self.pick(['', 'not '])}{self.pick(TESTS[:13])})", lambda: f"({sub()} {self.pick(['==', '!='])} {sub()})", lambda: f"(not {sub()})",
            lambda: f"({self.number(depth - 1)} {self.pick(['<', '<=', '>', '>='])} {self.number(depth - 1)})", lambda: f"({self.text(depth - 1)} {self.pick(['in', 'not in', '<'])} {self.text(depth - 1)})",
            lambda: f"({sub()} {self.pick(['in', 'not in'])} {self.sequence(depth - 1)})", lambda: f"({self.text(depth - 1)}).{self.pick(['isdigit', 'isalpha', 'isupper', 'istitle', 'isspace', 'isalnum', 'isidentifier'])}()",
        ])()

    def any(self, depth):
        return self.pick([self.text, self.text, self.number, self.sequence, self.truth] if depth > 0 else [self.text, self.number, self.sequence])(depth)

    def expression(self, depth):
        if self.chance(0.75):
            return self.any(min(depth, 2)) if depth > 0 else self.atom()
        if depth <= 0 or self.chance(0.15):
            return self.atom()
        sub = lambda: self.expression(depth - 1)
        kind = self.rng.randrange(22)
        if kind < 2:
            return f"{sub()} {self.pick(['+', '-', '*', '/', '//', '%', '**'])} {sub()}"
        if kind == 2:
            return f"{sub()} ~ {sub()}"
        if kind == 3:
            return f"{sub()} {self.pick(['==', '!=', '<', '<=', '>', '>=', 'in', 'not in'])} {sub()}"
        if kind == 4:
            return f"{sub()} {self.pick(['and', 'or'])} {sub()}"
        if kind == 5:
            return self.pick(["not ", "-", "+"]) + sub()
        if kind == 6:
            return f"{sub()} if {sub()}" + (f" else {sub()}" if self.chance(0.8) else "")
        if kind == 7:
            return f"{sub()} is {self.pick(['', 'not '])}{self.pick(TESTS)}"
        if kind == 8:
            return f"{sub()} is {self.pick(TESTS1)}({sub()})"
        if kind < 13:
            return f"{self.wrapped(depth)}|{self.filter()}"
        if kind < 15:
            method = re.sub(r"\b[SNE]\b", lambda m: self.argument(m[0]), self.pick(METHODS))
            return f"{self.wrapped(depth)}.{method}"
        if kind == 15:
            return f"{self.wrapped(depth)}.{self.pick(ATTRIBUTES)}"
        if kind == 16:
            # No slices of constants: jinja2 folds them by other rules than it evaluates them.
            return f"{self.pick(NAMES)}[{self.pick([sub(), self.slice(), self.slice(), repr(self.pick(ATTRIBUTES))])}]"
        if kind == 17:
            return "[" + ", ".join(sub() for _ in range(self.rng.randrange(4))) + "]"
        if kind == 18:
            return "{" + ", ".join(f"{self.pick(STRINGS)}: {sub()}" for _ in range(self.rng.randrange(3))) + "}"
        if kind == 19:
            return f"({sub()})"
        if kind == 20:
            return f"{self.pick(FORMATS)} % {self.pick([sub(), '(' + sub() + ', ' + sub() + ')', '(' + sub() + ',)', '{' + repr('a') + ': ' + sub() + '}'])}"
        return f"'{{{self.pick(['', '0', ''])}{self.pick(SPECS)}}}'.format({sub()})"

    def wrapped(self, depth):
        return f"({self.expression(depth - 1)})" if self.chance(0.4) else self.atom_in_parentheses()

    def atom_in_parentheses(self):
        atom = self.atom()
        return f"({atom})" if atom[0] in "-0123456789" else atom

    def slice(self):
        bound = lambda: self.pick(["", "", "0", "1", "2", "-1", "-2", "5", "x", "none"])
        return f"{bound()}:{bound()}" + (f":{self.pick(['', '1', '2', '-1', '-2'])}" if self.chance(0.4) else "")

    def tag(self, text):
        return "{%" + self.pick(["", "", "-", "-", "+"]) + " " + text + " " + self.pick(["", "", "-", "-", "+"]) + "%}"

    def print(self, depth):
        return "{{" + self.pick(["", "", "-"]) + " " + self.expression(depth) + " " + self.pick(["", "", "-"]) + "}}"

    def body(self, depth, in_loop=False):
        parts = []
        for _ in range(self.rng.randint(1, 3)):
            parts += [self.pick(SPACE), self.statement(depth, in_loop)]
        return "".join(parts) + self.pick(SPACE)

    def statement(self, depth, in_loop=False):
        if depth <= 0 or self.chance(0.3):
            return self.pick(["{# c #}", "{#- c -#}"]) if self.chance(0.08) else self.print(2)
        kind = self.rng.randrange(16)
        inner = lambda loop=in_loop: self.body(depth - 1, loop)
        if kind < 3:
            text = self.tag(f"if {self.expression(2)}") + inner()
            if self.chance(0.3):
                text += self.tag(f"elif {self.expression(1)}") + inner()
            if self.chance(0.4):
                text += self.tag("else") + inner()
            return text + self.tag("endif")
        if kind < 7:
            return self.loop(inner)
        if kind < 10:
            target = self.pick(["a", "b", "i", "x", "q", "ns.a", "ns.q", "a, b"])
            return self.tag(f"set {target} = {self.expression(2)}")
        if kind == 10:
            name = self.pick(["a", "b", "q"]) + self.pick(["", "", " | upper", " | trim", " | replace('a', 'b')", " | length"])
            return self.tag(f"set {name}") + inner() + self.tag("endset")
        if kind < 13:
            parameters = self.pick(["", "a", "a, b", "a, b=1", "a='d', b=a", "caller=none"])
            text = self.tag(f"macro m({parameters})") + inner(False)
            text += self.pick(["", "{{ caller() }}", "{{ varargs }}", "{{ kwargs }}", "{{ caller is defined }}", "{{ caller(1) if caller else 'no' }}"])
            text += self.tag("endmacro")
            calls = ["{{ m() }}", "{{ m(1) }}", "{{ m(1, 2) }}", "{{ m(b=3) }}", "{{ m(1, 2, 3, c=4) }}", "{{ m(*l) }}", "{{ m(**d) }}",
                     "{% call m() %}C{{ a }}{% endcall %}", "{% call(a) m(1) %}{{ a }}!{% endcall %}"]
            return text + self.pick(calls) + self.pick(SPACE) + self.pick(calls)
        if kind == 13:
            return self.tag(f"with {self.pick(['a = ', 'x = ', 'a = x, b = '])}{self.expression(1)}") + inner() + self.tag("endwith")
        if kind == 14:
            return self.tag("filter " + self.pick(["upper", "trim", "replace('a', 'b')", "indent(2)", "title|trim"])) + inner() + self.tag("endfilter")
        if in_loop and self.chance(0.6):
            return self.tag(self.pick(["break", "continue"]))
        return self.pick(["{% raw %} {{ x }} {% endraw %}", "{%- raw -%} {% x %} {%- endraw -%}", "{% generation %}g{{ x }}{% endgeneration %}",
                          "{{ raise_exception('no: ' ~ x) }}", "{% set ns = namespace(a=1, q='z') %}", "{{ strftime_now('%Y %B %j') }}",
                          "{% block c %}B{{ x }}{{ a }}{% endblock %}", "{% print x, 'y' %}",
                          "{% autoescape true %}{{ html }}{{ html|safe ~ '<' }}{{ s + ('<'|e) }}{{ ['<', '&'|safe]|join('>') }}{% endautoescape %}"])

    def loop(self, inner):
        target = self.pick(["i", "i", "a", "x", "a, b", "k, v"])
        source = self.pick(["l", "s", "d", "users", "messages", "range(3)", "d.items()", "nested.k", "mixed", "zz", "el", "[[1, 2], [3, 4]]",
                            "d|dictsort", "users|groupby('role')", "messages[::-1]", "l|map('string')", "strs|select", self.expression(1)])
        condition = self.pick(["", "", "", " if i", " if loop is undefined", " if not a", " if x"])
        text = self.tag(f"for {target} in {source}{condition}") + self.pick(["", "{{ loop.index }}", "{{ loop.first }}{{ loop.last }}",
               "{{ loop.length }}:{{ loop.revindex0 }}", "{{ loop.previtem }}<{{ loop.nextitem }}", "{{ loop.cycle('p', 'q') }}", "{{ loop.changed(i) }}",
               "{{ i }}", "{{ a }}{{ b }}", "{{ k }}={{ v }}", "{{ loop }}", "{{ loop.depth }}"])
        text += inner(True)
        if self.chance(0.3):
            text += self.tag("else") + self.pick(SPACE) + inner()
        return text + self.tag("endfor")

    def template(self):
        start = self.pick(["", "", "{% set ns = namespace(a=1) %}", "{% set ns = namespace(a=1) %}{% set a = 1 %}{% set b, q = 2, 'q' %}"])
        text = start + self.body(self.rng.randint(0, 3))
        if self.chance(0.04):  # a cut or an odd character: mostly syntax errors
            at = self.rng.randrange(len(text) + 1)
            text = text[:at] + self.pick(["", "}", "{", "%}", "'", "|", ")", "$", "-", "\r\n", "{%"]) + text[at + self.rng.randrange(3):]
        return text


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` renders its body unchanged."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime(2026, 1, 15, 12, 30, 45).strftime(form)
    return env


def expected(env, template):
    """The output of jinja2 or its exception; None for what nobody can be asked to repeat (addresses, huge or complex numbers)."""
    try:
        output = env.from_string(template).render(**json.loads(json.dumps(CONTEXT)))
        output.encode()
        return None if re.search("0x[0-9a-f]{9,}", output.lower()) or len(output) > 100_000 or re.search(r"\dj\)", output) else {"output": output}
    except MemoryError:
        return None
    except Exception as error:
        return {"error": {"class": type(error).__name__, "message": str(error)}}


def agrees(want, got):
    if "output" in want:
        return got.get("output") == want["output"] or got.get("error", {}).get("class") in ("UnsupportedError", "BudgetError")
    if "error" not in got:
        return False
    return want["error"]["class"] != "TemplateError" or got["error"]["message"] == want["error"]["message"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="write the rows that differ to this file")
    parser.add_argument("--show", type=int, default=15)
    parser.add_argument("program", nargs="+")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    env = environment()
    templates = [Grammar(random.Random(f"{args.seed}/{i}")).template() for i in range(args.count)]
    rows = [(template, want) for template in templates if (want := expected(env, template)) is not None]
    lines = "".join(json.dumps({"template": template, "context": CONTEXT}, ensure_ascii=False) + "\n" for template, _ in rows)
    done = subprocess.run(args.program, input=lines.encode(), capture_output=True, check=False)
    answers = [json.loads(line) for line in done.stdout.decode().split("\n") if line]
    if len(answers) != len(rows):
        raise SystemExit(f"{len(answers)} answers to {len(rows)} rows; status {done.returncode}; template {rows[len(answers)][0]!r}")
    wrong = [{"template": template, "want": want, "got": got} for (template, want), got in zip(rows, answers) if not agrees(want, got)]
    refused = sum(got.get("error", {}).get("class") in ("UnsupportedError", "BudgetError") for got in answers)
    print(f"{len(rows)} templates, {sum('output' in want for _, want in rows)} with output; {refused} refused; {len(wrong)} differ")
    for row in sorted(wrong, key=lambda row: len(row["template"]))[: args.show]:
        print(json.dumps(row, ensure_ascii=False)[:1500])
    if args.keep:
        with open(args.keep, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in wrong)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
