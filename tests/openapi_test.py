#!/usr/bin/env python3
"""/openapi.json against the server that gives it: routes, fields with their types and bounds, answers.

    openapi_test.py PROGRAM SCRIPTED_SERVER

What the document says of a body is tried field by field, so a field that no reader looks at is found; a field that a reader looks at and the
document lacks is found in the readers' sources. Answers are held to schemas that allow no further field.
"""
import json
import re
import sys
import unittest

import gtest_report
import serve_harness
from serve_harness import MODEL, ROOT, Server, chat, completion

SCRIPTS = ROOT / 'tests' / 'scripted' / 'scripts.json'
TOOL = {'type': 'function', 'function': {'name': 'weather', 'parameters': {'type': 'object', 'properties': {'city': {'type': 'string'}}}}}
LEAST = {'/v1/completions': completion(max_tokens=2), '/v1/chat/completions': chat(max_tokens=2), '/v1/embeddings': {'model': MODEL, 'input': 'x'},
         '/v1/responses': {'model': MODEL, 'input': 'x', 'max_output_tokens': 2},
         '/v1/messages': {'model': MODEL, 'messages': [{'role': 'user', 'content': 'x'}], 'max_tokens': 2},
         '/v1/messages/count_tokens': {'model': MODEL, 'messages': [{'role': 'user', 'content': 'x'}]},
         '/tokenize': {'prompt': 'x'}, '/detokenize': {'tokens': [1]}}
VALUES = {'string': 'x', 'integer': 7, 'number': 1.5, 'boolean': True, 'array': [], 'object': {}}
# Sources whose readers look into bodies, and the names that they look for elsewhere than at the top of one, or only to refuse.
READERS = ('batch_request', 'messages_request', 'openai_api', 'responses_api', 'responses_request', 'tool_choice')
INNER = set('''allowed_tools arguments body budget_tokens call_id continuous_usage_stats custom_id data definition description
    disable_parallel_tool_use display edits effort format function id image_url include_usage input_schema keep media_type method mode
    name refusal role schema source strict syntax task_budget tool_use_id type url'''.split())


def resolved(document, schema):
    while '$ref' in schema:
        schema = document['components']['schemas'][schema['$ref'].rsplit('/', 1)[1]]
    return schema


def types_of(document, schema):
    """JSON types that a schema lets through; all of them for one that says nothing."""
    schema = resolved(document, schema)
    if 'type' in schema:
        return {schema['type']} if isinstance(schema['type'], str) else set(schema['type'])
    if 'anyOf' in schema:
        return set().union(*(types_of(document, one) for one in schema['anyOf']))
    kinds = {str: 'string', bool: 'boolean', type(None): 'null'}
    return {kinds[type(value)] for value in schema.get('enum', [])} or set(VALUES)


def fault(document, schema, value, path='answer'):
    """What is wrong with a value, or nothing. The words of JSON Schema that the document's answers use."""
    schema = resolved(document, schema)
    unknown = set(schema) - {'type', 'enum', 'const', 'anyOf', 'required', 'properties', 'additionalProperties', 'items', 'minimum', 'maximum', 'minLength', 'not'}
    assert not unknown, unknown
    if 'anyOf' in schema:
        faults = [fault(document, one, value, path) for one in schema['anyOf']]
        return None if None in faults else faults[0]
    kind = {dict: 'object', list: 'array', str: 'string', bool: 'boolean', int: 'integer', float: 'number', type(None): 'null'}[type(value)]
    allowed = schema.get('type', [])
    allowed = [allowed] if isinstance(allowed, str) else allowed
    if allowed and kind not in allowed and not (kind == 'integer' and 'number' in allowed):
        return f'{path} is of the type {kind}'
    if value not in schema.get('enum', [value]) or value != schema.get('const', value):
        return f'{path} is {value!r}'
    if kind == 'integer' and not schema.get('minimum', value) <= value <= schema.get('maximum', value):
        return f'{path} is {value}'
    if kind == 'array':
        return next(filter(None, (fault(document, schema.get('items', {}), one, f'{path}[{i}]') for i, one in enumerate(value))), None)
    if kind != 'object':
        return None
    missing = [name for name in schema.get('required', []) if name not in value]
    if missing:
        return f'{path} lacks {missing[0]}'
    for name, one in value.items():
        inner = schema.get('properties', {}).get(name, schema.get('additionalProperties', {}))
        wrong = f'{path} has {name}' if inner is False else fault(document, inner, one, f'{path}.{name}')
        if wrong:
            return wrong
    return None


class Document(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server('--trust-request-chat-template', '--scheduling-policy', 'priority', '--hf-overrides', '{"is_matryoshka": true}', '--speculative-config', '{"method": "mtp", "num_speculative_tokens": 2}',
                            program=(SCRIPTED, str(SCRIPTS)))
        cls.document = cls.server.ok('/openapi.json')
        cls.posts = {path: methods['post'] for path, methods in cls.document['paths'].items() if 'requestBody' in methods.get('post', {})}

    @classmethod
    def tearDownClass(cls):
        assert cls.server.end() == 0

    def fields(self, path):
        return self.posts[path]['requestBody']['content']['application/json']['schema']['properties']

    def test_it_is_a_document_of_openapi(self):
        self.assertTrue(self.document['openapi'].startswith('3.1.'))
        refs = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(self.document)))
        names = {f'#/components/schemas/{name}' for name in self.document['components']['schemas']}
        self.assertEqual(refs, names, 'a reference to nothing, or a schema that nobody refers to')
        try:
            import jsonschema
        except ImportError:
            return
        for schema in [*self.document['components']['schemas'].values(), *(self.posts[path]['requestBody']['content']['application/json']['schema'] for path in self.posts)]:
            jsonschema.Draft202012Validator.check_schema(schema)

    def test_every_route_is_there(self):
        self.assertEqual(set(self.posts), set(LEAST))
        for path, methods in self.document['paths'].items():
            path = path.replace('{model}', MODEL).replace('{response_id}', 'none')
            for method in methods:
                status, _, text = self.server.ask(path, LEAST.get(path) if method == 'post' else None, method=method.upper())
                self.assertTrue(status == 200 or 'there is no response' in text.decode(), (method, path, text))
            status, headers, _ = self.server.ask(path, method='PATCH')
            allowed = ', '.join({'get': 'GET, HEAD'}.get(method, method.upper()) for method in methods)
            self.assertEqual((status, headers['Allow']), (405, allowed), path)
            status, headers, text = self.server.ask(path, method='HEAD')
            asked, as_get, body = self.server.ask(path, method='GET')
            self.assertEqual((status, text), (asked, b''), path)
            self.assertEqual('get' in methods, status != 405, path)
            if path not in ('/metrics', '/load'):  # which count
                self.assertEqual(headers['Content-Length'], as_get['Content-Length'], path)
                self.assertEqual(int(headers['Content-Length']), len(body), path)

    def refused(self, path, name, value, least=None):
        """Whether this value of a field is refused for its own sake."""
        if path == '/tokenize' and least is None:  # a text and a conversation have different fields
            return any(self.refused(path, name, value, one) for one in (LEAST[path], {'messages': chat()['messages']}))
        more = {'logprobs': True} if name == 'top_logprobs' else {}
        status, _, text = self.server.ask(path, {**(least or LEAST[path]), **more, name: value})
        self.assertIn(status, (200, 400, 404), (path, name, str(value)[:50], text[:300]))
        if status == 200:
            return False
        error = json.loads(text)['error']
        return error['param'] == name if 'param' in error else error['message'].startswith(name)

    def test_fields_have_the_types_that_it_says(self):
        tried = 0
        for path in self.posts:
            for name, schema in self.fields(path).items():
                types = types_of(self.document, schema)
                for kind, value in VALUES.items():
                    if kind in types or (kind == 'integer' and 'number' in types):
                        continue
                    self.assertTrue(self.refused(path, name, value), (path, name, value))
                    tried += 1
                if 'null' in types and name not in ('prompt', 'messages'):  # of /tokenize: one of them must be there
                    self.assertEqual(self.server.ask(path, {**LEAST[path], name: None})[0], 200, (path, name))
        print(f'{tried} values of wrong types', flush=True)
        self.assertGreater(tried, 500)

    def test_fields_have_the_bounds_that_it_says(self):
        tried = 0
        for path in self.posts:
            for name, schema in self.fields(path).items():
                for one in [resolved(self.document, schema), *schema.get('anyOf', [])]:
                    inner = resolved(self.document, one.get('items', {}))
                    item = VALUES.get(inner.get('type'), 'x') if inner.get('type') != 'array' else [7]
                    small = 1 if 'integer' in one.get('type', []) else None  # the step beyond a bound
                    inside, outside = [], []
                    for bound, sign in (('minimum', -1), ('maximum', 1)):
                        if bound in one:
                            inside.append(one[bound])
                            outside.append(one[bound] + sign * (small or max(0.01, abs(one[bound]) * 0.01)))
                    if 'exclusiveMinimum' in one:
                        outside.append(one['exclusiveMinimum'])
                    if 'minLength' in one:
                        outside.append('')
                    if 'maxLength' in one:
                        inside.append('y' * one['maxLength'])
                        outside.append('y' * (one['maxLength'] + 1))
                    if 'maxItems' in one:
                        outside.append([item] * (one['maxItems'] + 1))
                        if name != 'prompt' and name != 'input':
                            inside.append([item] * one['maxItems'])
                    if 'minItems' in one:
                        outside.append([])
                    if 'maxProperties' in one:
                        inside.append({str(i): 1 for i in range(one['maxProperties'])})
                        outside.append({str(i): 1 for i in range(one['maxProperties'] + 1)})
                    if 'enum' in one:
                        inside += one['enum']
                        outside.append('other')
                    for value in inside:
                        self.assertFalse(self.refused(path, name, value), (path, name, str(value)[:50]))
                    for value in outside:
                        self.assertTrue(self.refused(path, name, value), (path, name, str(value)[:50]))
                    tried += len(inside) + len(outside)
        print(f'{tried} values at bounds', flush=True)
        self.assertGreater(tried, 200)

    def test_every_field_that_a_reader_looks_for_is_there(self):
        said = set().union(*(self.fields(path) for path in self.posts))
        table = (ROOT / 'src' / 'apps' / 'api' / 'known_fields.cc').read_text()
        refused = set(re.findall(r'^    \{"(\w+)",', table, re.M))
        looked_for = set()
        for name in READERS:
            source = (ROOT / 'src' / 'apps' / 'api' / f'{name}.cc').read_text()
            looked_for |= set(re.findall(r'(?:(?:flag|integer|string|object|array|find)_field|find_object)\([^()]*(?:\([^()]*\)[^()]*)?, "(\w+)"', source))
            looked_for |= set(re.findall(r'if_contains\("(\w+)"\)', source))
        sampling = (ROOT / 'src' / 'engine' / 'sampling_params.cc').read_text()
        looked_for |= set(re.findall(r'\br\.read(?:_\w+)?\("(\w+)"', sampling)) | {'seed', 'logit_bias', 'repetition_detection'}
        forms = (ROOT / 'src' / 'structured' / 'requested_form.cc').read_text()
        looked_for |= set(re.findall(r'find_field\(body, "(\w+)"\)', forms))
        self.assertGreater(len(looked_for & said), 60)
        self.assertEqual(looked_for - said - refused, INNER)

    def test_the_guide_has_every_field(self):
        page = (ROOT / 'docs' / 'guide' / 'fields.md').read_text()
        taken, silent, refused = ([row.split(' | ') for row in re.findall(r'^\| (`.*) \|$', part, re.M)] for part in re.split('^## ', page, flags=re.M))
        paths = '/v1/completions', '/v1/chat/completions', '/v1/embeddings', '/tokenize'
        said = set().union(*(self.fields(path) for path in paths))
        names = {name for fields, *_ in taken + silent for name in re.findall(r'`(\w+)`', re.sub(r'\(.*?\)', '', fields))}
        self.assertEqual(names, said)
        for fields, why in refused:
            for name in re.findall(r'`(\w+)`', fields):
                for path in paths[:3]:
                    status, _, text = self.server.ask(path, {**LEAST[path], name: {'x': 1}})
                    error = json.loads(text)['error']
                    self.assertEqual((status, error['code'], error['message']), (400, 'unsupported_parameter', f'{name} cannot be set: {why}'))
        for fields, _ in silent:
            for name in re.findall(r'`(\w+)`', fields):
                self.assertEqual(self.server.ask('/v1/chat/completions', {**LEAST['/v1/chat/completions'], name: ['text']})[0], 200, name)

    # answers

    def check(self, path, reply, schema):
        wrong = fault(self.document, {'$ref': f'#/components/schemas/{schema}'}, reply)
        self.assertIsNone(wrong, (path, reply))

    def test_answers_are_what_it_says(self):
        rich = {'logprobs': 2, 'prompt_logprobs': 1, 'return_token_ids': True, 'n': 2, 'echo': True}
        tools = {'tools': [TOOL], 'max_tokens': 400}
        said = {'messages': [{'role': 'user', 'content': 'Please [[thought_tool]]'}], 'chat_template_kwargs': {'enable_thinking': True}}
        forms = {**said, 'messages': said['messages']}
        cases = [('/v1/completions', completion()), ('/v1/completions', completion(**rich)), ('/v1/completions', completion(stop_token_ids=[1, 2, 3], stop=['e'])),
                 ('/v1/chat/completions', chat()), ('/v1/chat/completions', chat(**{**said, **tools})),
                 ('/v1/chat/completions', chat(logprobs=True, top_logprobs=2, prompt_logprobs=1, return_token_ids=True, n=2)),
                 ('/v1/embeddings', {'model': MODEL, 'input': ['a', 'b']}), ('/v1/embeddings', {'model': MODEL, 'input': [1, 2], 'encoding_format': 'base64'}),
                 ('/v1/responses', {'model': MODEL, 'input': 'x', 'max_output_tokens': 4}),
                 ('/v1/responses', {'model': MODEL, 'input': 'Please [[thought_tool]]', 'max_output_tokens': 400, 'chat_template_kwargs': {'enable_thinking': True},
                                    'tools': [{'type': 'function', **TOOL['function']}]}),
                 ('/v1/responses', {'model': MODEL, 'input': 'Please [[tool]]', 'max_output_tokens': 400, 'tools': [{'type': 'custom', 'name': 'weather'}]}),
                 ('/v1/messages', {'model': MODEL, 'max_tokens': 4, 'messages': forms['messages']}),
                 ('/v1/messages', {'model': MODEL, 'max_tokens': 400, 'messages': forms['messages'], 'thinking': {'type': 'enabled'},
                                   'tools': [{'name': 'weather', 'input_schema': TOOL['function']['parameters']}]}),
                 ('/v1/messages/count_tokens', LEAST['/v1/messages/count_tokens']), ('/tokenize', {'prompt': 'a b', 'return_token_strs': True}),
                 ('/tokenize', {'content': 'a b'}), ('/detokenize', {'tokens': [5, 6]})]
        self.assertEqual({path for path, _ in cases}, set(LEAST))
        for path, body in cases:
            content = self.posts[path]['responses']['200']['content']
            self.check(path, self.server.ok(path, body), content['application/json']['schema']['$ref'].rsplit('/', 1)[1])
            wrong = self.posts[path]['responses']['default']['content']['application/json']['schema']['$ref'].rsplit('/', 1)[1]
            status, _, text = self.server.ask(path, b'{')
            self.assertEqual(status, 400)
            self.check(path, json.loads(text), wrong)
            if 'echo' in body:  # with logprobs it has no stream
                continue
            status, headers, _ = self.server.ask(path, {**body, 'stream': True})
            self.assertEqual((status, headers['Content-Type'] in content), (200, True), path)
            self.assertEqual(headers['Content-Type'] == 'text/event-stream', 'text/event-stream' in content, path)

    def test_answers_without_bodies(self):
        made = self.server.ok('/v1/responses', {'model': MODEL, 'input': 'x', 'max_output_tokens': 2})
        going = self.server.ok('/v1/responses', {'model': MODEL, 'input': 'Please [[endless]]', 'max_output_tokens': 1000, 'background': True})
        self.check('background', going, 'Response')
        for path, methods in self.document['paths'].items():
            for method, operation in methods.items():
                if 'requestBody' in operation:
                    continue
                at = path.replace('{model}', MODEL).replace('{response_id}', going['id'] if 'cancel' in path else made['id'])
                status, headers, text = self.server.ask(at, method=method.upper())
                self.assertEqual(status, 200, (at, text))
                (kind, content), = operation['responses']['200']['content'].items()
                self.assertEqual(headers['Content-Type'].split(';')[0], kind)
                if kind == 'application/json':
                    self.check(at, json.loads(text), content['schema']['$ref'].rsplit('/', 1)[1])

    def test_routes_of_admins_are_there_with_their_flag(self):
        server = Server('--enable-admin-endpoints')
        paths = server.ok('/openapi.json')['paths']
        added = {path: methods for path, methods in paths.items() if path not in self.document['paths']}
        self.assertEqual(set(self.document['paths']) - set(paths), set())
        self.assertEqual(set(added), {'/sleep', '/wake_up', '/is_sleeping', '/reset_prefix_cache', '/reset_mm_cache', '/reset_encoder_cache'})
        self.document = server.ok('/openapi.json')
        for path in sorted(added):  # /sleep comes before /wake_up
            (method, operation), = added[path].items()
            names = [one['name'] for one in operation.get('parameters', [])]
            self.assertEqual(names, {'/sleep': ['level', 'mode'], '/wake_up': ['tags']}.get(path, []))
            for one in operation.get('parameters', []):
                self.assertEqual(server.ask(f'{path}?{one["name"]}=x', method=method.upper())[0], 400, path)
                for value in one['schema'].get('enum') or one['schema']['items']['enum']:
                    self.assertEqual(server.ask(f'{path}?{one["name"]}={value}', method=method.upper())[0], 200, (path, value))
            status, _, text = server.ask(path, method=method.upper())
            self.assertEqual(status, 200, (path, text))
            self.assertEqual(server.ask(path, method='HEAD')[0], {'get': 200, 'post': 405}[method], path)
            self.check(path, json.loads(text), operation['responses']['200']['content']['application/json']['schema']['$ref'].rsplit('/', 1)[1])
            self.assertEqual(self.server.ask(path, method=method.upper())[0], 404)
        self.assertEqual(server.end(), 0)


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv.pop(1)
    SCRIPTED = sys.argv.pop(1)
    sys.exit(gtest_report.main())
