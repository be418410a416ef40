"""Random JSON schemas from a seed, over the keywords of draft 2020-12 that people write: what tests/schemas_test.py asks answers for."""
import random

NAMES = ['id', 'name', 'kind', 'size', 'tags', 'the key', 'é', 'a"b', 'back\\slash', 'x', 'nested', '$ref', 'type', 'line\nend', '日本']
WORDS = ['', 'red', 'a "quote"', 'back\\slash', 'é', '日本', 'tab\t', 'line\nend', 'null', '0', '</script>', 'a/b']
PATTERNS = ['^[a-z]{1,5}$', '^[A-Z][0-9]{3}$', '^(yes|no|maybe)$', '^\\d{3}-\\d{4}$', '^[^"\\\\]{0,4}$', '^a+b?$', '^(ab|c){1,3}$', '^\\w{2,6}$',
            '^[\\u4e00-\\u4e10]{1,2}$', '^.{1,4}$', '^$', '^x\\.y$', '^a(\\.[0-9]{1,3})?z?$', '^(é[0-9]+)?[^"é]{1,3}$', '^[^x]{0,5}$']
FORMATS = ['date', 'time', 'date-time', 'email', 'ipv4', 'ipv6', 'uuid', 'uri', 'hostname', 'duration', 'json-pointer']


class SchemaMaker:
    """One schema by make(). A deeper place has simpler schemas; `$ref` goes to definitions, in some schemas to themselves."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.definitions = {}

    def make(self):
        self.definitions = {}
        schema = self.object(0) if self.random.random() < 0.6 else self.any(0)
        if self.definitions:
            schema = {**schema, '$defs': self.definitions}
        return schema

    def any(self, depth):
        simple = [self.string, self.integer, self.number, self.boolean, self.null, self.enum, self.constant]
        deep = [self.object, self.object, self.array, self.array, self.any_of, self.one_of, self.all_of, self.reference, self.types]
        return self.random.choice(simple if depth > 3 else simple + deep)(depth + 1)

    def boolean(self, _):
        return {'type': 'boolean'}

    def null(self, _):
        return {'type': 'null'}

    def value(self):
        r = self.random
        return r.choice([r.choice(WORDS), r.randint(-99, 99), r.choice([0.5, -1.25, 1e20]), True, False, None, [1, 'a'], {'k': [None]}, [], {}])

    def enum(self, _):
        return {'enum': [self.value() for _ in range(self.random.randint(1, 5))]}

    def constant(self, _):
        return {'const': self.value()}

    def types(self, _):
        return {'type': self.random.sample(['string', 'integer', 'null', 'boolean'], 2), 'maxLength': 4}

    def string(self, _):
        r = self.random
        schema = {'type': 'string'}
        what = r.random()
        if what < 0.25:
            schema['pattern'] = r.choice(PATTERNS)
        elif what < 0.45:
            schema['format'] = r.choice(FORMATS)
        else:
            schema['maxLength'] = r.randint(0, 8)
            if r.random() < 0.5:
                schema['minLength'] = r.randint(0, schema['maxLength'])
        return schema

    def integer(self, _):
        r = self.random
        low = r.choice([-1000, -10, -1, 0, 1, 7, 99, 12345])
        high = low + r.choice([0, 1, 5, 9, 100, 9999])
        return {'type': 'integer', r.choice(['minimum', 'exclusiveMinimum']): low, r.choice(['maximum', 'exclusiveMaximum']): high + 2}

    def number(self, _):
        r = self.random
        low = r.choice([-100, -2.5, -0.125, 0, 0.1, 3, 1000.5])
        schema = {'type': 'number', r.choice(['minimum', 'exclusiveMinimum']): low}
        if r.random() < 0.8:
            schema[r.choice(['maximum', 'exclusiveMaximum'])] = low + r.choice([0.5, 1, 10.75, 5000])
        return schema

    def array(self, depth):
        r = self.random
        schema = {'type': 'array'}
        if r.random() < 0.3:
            schema['prefixItems'] = [self.any(depth) for _ in range(r.randint(1, 3))]
            schema['items'] = r.choice([False, self.any(depth)])
        else:
            schema['items'] = self.any(depth)
        if schema['items'] is not False:
            schema['minItems'] = r.randint(0, 2)
            schema['maxItems'] = schema['minItems'] + r.randint(0, 3)
        return schema

    def object(self, depth):
        r = self.random
        names = r.sample(NAMES, r.randint(0, 5))
        schema = {'type': 'object', 'properties': {name: self.any(depth) for name in names}}
        schema['required'] = [name for name in names if r.random() < 0.6]
        more = r.random()
        if more < 0.6:
            schema['additionalProperties'] = False
        elif more < 0.8:
            schema['additionalProperties'] = self.any(depth + 1)
        if r.random() < 0.1:
            schema['minProperties'] = len(schema['required'])
            schema['maxProperties'] = max(1, len(names))
        if r.random() < 0.02:
            schema[r.choice(['patternProperties', 'not', 'propertyNames', 'if'])] = {}
        return schema

    def branches(self, depth):
        return [self.any(depth) for _ in range(self.random.randint(1, 3))]

    def any_of(self, depth):
        return {'anyOf': self.branches(depth)}

    def one_of(self, _):
        """Branches that no value has in common, as people mean them."""
        simple = {'string': {'type': 'string', 'maxLength': 3}, 'integer': self.integer(0), 'boolean': {'type': 'boolean'}, 'null': {'type': 'null'},
                  'tagged': {'type': 'object', 'properties': {'kind': {'const': 'a'}}, 'required': ['kind'], 'additionalProperties': False}}
        return {'oneOf': [simple[name] for name in self.random.sample(sorted(simple), self.random.randint(1, 3))]}

    def all_of(self, depth):
        branches = self.branches(depth)
        return {'allOf': branches[:1] if self.random.random() < 0.8 else branches}

    def reference(self, depth):
        name = self.random.choice('abc')
        if name not in self.definitions:
            self.definitions[name] = {'type': 'null'}  # where it names itself while it is made
            made = self.any(depth + 1)
            if self.random.random() < 0.3:
                made = {'anyOf': [{'type': 'null'}, {'type': 'array', 'items': {'$ref': '#/$defs/' + name}, 'maxItems': 2}]}
            self.definitions[name] = made
        return {'$ref': '#/$defs/' + name}
