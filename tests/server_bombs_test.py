#!/usr/bin/env python3
"""`serve` and what is hard to read: output forms and templates that are bombs, and runs of characters that are hard on a tokenizer. Rows C1,
C2, C3 and C7 of the acceptance table, with a bounded part of their quantities by default.

    server_bombs_test.py HASH_SERVER [--full] [tests]

HASH_SERVER: tests/hashsim/hash_server.cc, as for server_faults_test.py.
"""
import json
import pathlib
import random
import re
import shutil
import socket
import sys
import time
import unicodedata
import unittest

import faults_harness
import serve_harness
from faults_harness import WithServer, body_of, quantity
from serve_harness import MODEL, Server, chat, completion, model_with_template
from swarm import Client, Swarm, parse, post

# Templates that would not end, or would take all memory, of any such size N; and those that no reader may follow down to their end.
BOMBS = {
    'loop': '{% for i in range(99N) %}{% for j in range(99N) %}{% endfor %}{% endfor %}',
    'range': '{{ range(10000N) | list | length }}',
    'macro': '{% macro f(n) %}{{ f(n + N) }}{% endmacro %}{{ f(0) }}',
    'two_macros': '{% macro f() %}{{ N }}{{ g() }}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}',
    'recursive': '{% for i in [N] recursive %}{{ loop([i + 1]) }}{% endfor %}',
    'doubling': '{% set n = namespace(t="x" * N) %}{% for i in range(64) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}',
    'lists': '{% set n = namespace(t=[N]) %}{% for i in range(64) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t | length }}',
    'output': '{% for i in range(99N) %}{{ "x" * 99N }}{% endfor %}',
    'times': '{{ "x" * 1000000N }}',
    'replace': '{{ ("x" * 9N) | replace("x", "y" * 9N) }}',
    'join': '{{ range(9N) | join("x" * 9N) }}',
    'filters': '{% for i in range(999N) %}{{ "x" | upper | lower | trim | title }}{% endfor %}'}
# Where else than at the top of a template they stand.
PLACES = ('B', '{% if true %}B{% endif %}', '{% for q in [1] %}B{% endfor %}', '{% macro m() %}B{% endmacro %}{{ m() }}', '{% set x %}B{% endset %}{{ x }}')


def template_bombs(count):
    """So many templates, all different."""
    texts = []
    for i in range(count):
        bomb = tuple(BOMBS.values())[i % len(BOMBS)].replace('N', str(999 + 7 * (i // len(BOMBS))))
        texts.append(PLACES[i // len(BOMBS) % len(PLACES)].replace('B', bomb))
    return texts


DEEP = {'blocks': '{% if true %}' * 5500 + '{% endif %}' * 5500, 'brackets': '{{ ' + '(' * 6000 + '1' + ')' * 6000 + ' }}',
        'lists': '{{ ' + '[' * 6000 + ']' * 6000 + ' }}', 'filters': '{{ "x"' + ' | upper' * 10**6 + ' }}', 'not': '{{ ' + 'not ' * 10**5 + 'true }}'}
# Texts that are hard on a tokenizer: one class of characters all along, and what begins again and again.
RUNS = ('a', 'Z', 'é', '中', '👋', '7', ' ', '\n', '\t', ' \n', '!', 'a1', "'s", 'a\u0301', '\u200d', '<|im_st')


class FormMaker:
    """Output forms from a seed: the body's fields of a chat that ask for them."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def schema(self, schema):
        return {'response_format': {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': schema}}}

    def tools(self, tools, **more):
        return {'tools': [{'type': 'function', 'function': {'name': f'f{i}', 'parameters': one, **more}} for i, one in enumerate(tools)], 'tool_choice': 'required'}

    def nested(self, depth, inner):
        schema = {'type': 'string'}
        for _ in range(depth):
            schema = inner(schema)
        return schema

    def bomb(self, i):
        """What must be refused: it is more than may be compiled, or has no end."""
        r, n = self.random, 10 ** (4 + i % 6)
        deep = r.randint(65, 300)  # what is deeper is no body
        schemas = [lambda: self.nested(deep, lambda one: {'oneOf': [one, {'type': 'null'}]}), lambda: self.nested(deep, lambda one: {'type': 'array', 'items': one}),
                   lambda: self.nested(deep, lambda one: {'type': 'object', 'properties': {'a': one}}), lambda: {'enum': [f'{i}-{k}' for k in range(r.randint(10_001, 100_000))]},
                   lambda: {'type': 'array', 'minItems': 9 * n}, lambda: {'type': 'object', 'minProperties': 9 * n},
                   lambda: {'$ref': '#/$defs/a', '$defs': {'a': {'anyOf': [{'$ref': '#/$defs/b'}, {'$ref': '#/$defs/a'}]}, 'b': {'$ref': '#/$defs/a'}}}, lambda: {'$ref': '#'},
                   lambda: {'type': 'object', 'properties': {f'p{k}': {'type': 'null'} for k in range(r.randint(1001, 5000))}},
                   lambda: {'anyOf': [{'type': 'integer', 'minimum': k} for k in range(r.randint(1001, 3000))]}, lambda: {'type': 'string', 'pattern': f'^(a{{{n % 9000 + 1000}}}){{1000}}$'}]
        patterns = ['(' * r.randint(2001, 30_000) + 'a', '((a{1000}){1000}){1000}', f'.{{0,10000}}{{{n}}}', f'(.{{0,{n + 5000}}})', '(?=a)b', '(?!a)b', '(?<=a)b', '(a)\\1', '(?P<x>a)(?P=x)', 'a{9,3}', '[z-a]']
        grammars = ['root ::= root', 'root ::= x\nx ::= x{1,3}', 'root ::= a\na ::= b\nb ::= a', 'root ::= ' + '(' * r.randint(2001, 20_000) + '"a"', 'root ::= ' + 'x' * 100, 'root ::= "a"{' + str(n * 9) + '}',
                    ''.join(f'r{k} ::= "a" r{k + 1}\n' for k in range(r.randint(1001, 4000))) + 'root ::= r0']
        kind = i % 4
        if kind == 0:
            return self.schema(r.choice(schemas)())
        if kind == 1:
            return {'guided_regex': r.choice(patterns)}
        if kind == 2:
            return {'guided_grammar': r.choice(grammars)}
        return self.tools([{'type': 'object', 'properties': {'a': r.choice(schemas)()}, 'required': ['a']}])

    def parameter(self, depth=0):
        r = self.random
        return r.choice([lambda: {'type': 'string', 'description': 'word ' * r.randint(1, 20)}, lambda: {'type': 'integer'}, lambda: {'type': 'boolean'}, lambda: {'type': 'number'},
                         lambda: {'enum': [f'v{k}' for k in range(r.randint(1, 20))]}, lambda: {'type': 'array', 'items': {'type': 'string'}},
                         lambda: {'type': 'string', 'maxLength': r.choice([10, 64, 100, 255, 1000, 10_000])}, lambda: {'type': 'integer', 'minimum': 0, 'maximum': r.randint(1, 10**6)},
                         lambda: {'type': 'object', 'properties': {f'{k}': self.parameter(depth + 1) for k in 'abc'}, 'required': ['a']} if depth < 4 else {'type': 'null'}])()

    def honest(self, i):
        """What people use, large: up to sixty tools; of ten one has nearly a mebibyte of descriptions."""
        r = self.random
        if i % 10 == 9:
            tools = [{'type': 'object', 'description': f'{i}.{k} ' + 'word ' * 3000, 'properties': {'p': self.parameter(), 'q': self.parameter()}, 'required': ['p']} for k in range(64)]
            # A mebibyte of tools is more than the prompt may have.
            return {**self.tools(tools), 'truncate_prompt_tokens': 1000} if i // 10 % 2 else self.schema({'anyOf': tools})
        tools = [{'type': 'object', 'properties': {f'p{k}': self.parameter() for k in range(r.randint(1, 10))}, 'required': ['p0']} for _ in range(1 + i % 60)]
        return self.schema({'type': 'object', 'properties': {'tool': {'enum': [f'f{k}' for k in range(len(tools))]}, 'call': {'anyOf': tools}}, 'required': ['tool', 'call']}) if i % 2 else self.tools(tools)


class Forms(WithServer):
    # C1, C2
    LONGEST = serve_harness.LONGEST

    def test_forms_that_are_bombs_are_refused_and_delay_nobody(self):
        maker, resident, status_of = FormMaker(1), self.resident(), {}
        bombs = [Client(post('/v1/chat/completions', chat(max_tokens=3, **maker.bomb(i)))) for i in range(quantity(60, 2000))]
        normal = [(i, self.client(i)) for i in range(96)]
        everybody = bombs + [client for _, client in normal]
        random.Random(2).shuffle(everybody)
        self.run_all(everybody, 32)
        for client in bombs:
            status, _, body = parse(client.reply)
            status_of[status] = status_of.get(status, 0) + 1
            self.assertEqual(status, 400, (client.data[:600], body[:300]))
            self.fault_of(status, body)
        for i, client in normal:
            self.check(client, i)
        print(f'{len(bombs)} bombs, {self.resident() - resident >> 20} MiB more', flush=True)
        self.assertLess(self.resident() - resident, 256 << 20)

    def test_how_long_each_kind_of_bomb_takes(self):
        """One after the other, with those that are nested as deeply as the table says, which no writer of JSON writes."""
        kinds = [('nested oneOf, 1,000', '{"oneOf": [' * 1000 + '{"type": "string"}' + ', {"type": "null"}]}' * 1000),
                 ('items, 1,000', '{"items": ' * 1000 + '{}' + '}' * 1000)]
        bodies = []
        for name, schema in kinds:
            for before, behind in (('"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ', '}}'),
                                   ('"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f", "parameters": ', '}}]')):
                bodies.append((name, json.dumps(chat(max_tokens=3))[:-1].encode() + b', ' + (before + schema + behind).encode() + b'}'))
        deep = '(' * 30_000 + 'a' + ')' * 30_000
        for form in ({'guided_regex': deep}, {'guided_grammar': 'root ::= ' + deep.replace('a', '"a"')}, FormMaker(0).schema({'type': 'string', 'pattern': deep}),
                     FormMaker(0).tools([{'type': 'object', 'properties': {'a': {'type': 'string', 'pattern': deep}}, 'required': ['a']}])):
            bodies.append(('30,000 parentheses', json.dumps(chat(max_tokens=3, **form)).encode()))
        maker = FormMaker(4)
        bodies += [('one of many', json.dumps(chat(max_tokens=3, **maker.bomb(i))).encode()) for i in range(quantity(20, 500))]
        times = []
        for name, data in bodies:
            begun = time.monotonic()
            status, _, text = self.server.ask('/v1/chat/completions', data)
            times.append((time.monotonic() - begun, name, data[-60:]))
            self.assertEqual(status, 400, (name, data[:300], text[:300]))
            self.fault_of(status, text)
        longest = sorted(times)[::-1]
        print(f'{len(times)} bombs: half within {1000 * longest[len(times) // 2][0]:.0f} ms, longest {[(round(1000 * t), name, end) for t, name, end in longest[:3]]}', flush=True)

    # C2

    def test_expressions_that_are_bombs_for_others_are_followed(self):
        """Those that a backtracking matcher never ends with: an automaton does not mind."""
        for i, (pattern, most) in enumerate((('(a+)+b', 'ab'), ('(a|a)*', 'a'), ('((a+)+)+b', 'ab'), ('(a|aa)+b', 'ab'), ('(a*)*b', 'ab'), ('(a|a?)+b', 'ab'), ('([a-z]+)*9', '9'), ('(.*a){12}b', None))):
            for form in ({'guided_regex': pattern}, FormMaker(0).schema({'type': 'string', 'pattern': f'^{pattern}$'})):
                choice = self.server.ok('/v1/chat/completions', chat(messages=[{'role': 'user', 'content': f'{i}'}], max_tokens=200, temperature=1, seed=i, **form))['choices'][0]
                text = choice['message']['content']
                if choice['finish_reason'] == 'stop' and most is not None:
                    text = text if 'guided_regex' in form else json.loads(text)
                    self.assertTrue(text == '' or text[-1] in most, (pattern, text))

    def test_forms_that_take_long_are_stopped_and_hold_up_nobody(self):
        """As many as there are threads that handle requests, each for all the time that a compile may take."""
        hanging = []
        for i in range(2):
            properties = {f'p{k}': {'type': 'string', 'pattern': f'^[^{chr(0x4e00 + k)}é]{{0,{33 + (k + i) % 30}}}$'} for k in range(300)}
            one = socket.create_connection(('127.0.0.1', self.server.port))
            one.sendall(post('/v1/chat/completions', chat(max_tokens=3, response_format={
                'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'type': 'object', 'properties': properties}}})))
            hanging.append(one)
        self.assertTrue(self.server.until(lambda: self.server.metric('calandra:http_requests_total') >= 2))
        quick = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'enum': ['quick']}}}
        self.server.ok(*body_of(7))
        self.server.ok('/v1/chat/completions', chat(max_tokens=3, response_format=quick))
        for one in hanging:
            self.assertRaises(BlockingIOError, one.recv, 1, socket.MSG_DONTWAIT)
        for one in hanging:
            reply = bytearray()
            while part := one.recv(1 << 16):
                reply += part
            status, _, body = parse(reply)
            self.assertIn(status, (400, 503))
            self.assertIn(self.fault_of(status, body)['message'], ('the output form cannot be used: compiling it takes too long',
                                                                   'other output forms are being compiled; try again later'))
            one.close()

    def test_large_forms_that_people_use_are_taken(self):
        maker, times = FormMaker(3), []
        for i in range(quantity(20, 200)):
            body = chat(messages=[{'role': 'user', 'content': 'x'}], max_tokens=3, **maker.honest(i * 7))
            begun = time.monotonic()
            self.server.ok('/v1/chat/completions', body)
            times.append((time.monotonic() - begun, len(json.dumps(body)) >> 10, 'tools' if 'tools' in body else 'schema'))
        longest = sorted(times)[::-1]
        print(f'{len(times)} forms: half within {1000 * longest[len(times) // 2][0]:.0f} ms, longest {[(round(1000 * t), f"{size} KiB", kind) for t, size, kind in longest[:4]]}, '
              f'largest {sorted((size, kind) for _, size, kind in times)[-3:]}', flush=True)


class DifferentForms(unittest.TestCase):
    """C1b: forms of which none comes twice."""

    def test_what_is_kept_has_an_end_and_no_disk(self):
        server = Server('--max-num-seqs', '16', '--disable-uvicorn-access-log', json_lines=False)
        idle, written, count = server.resident_bytes(), self.bytes_written(server), quantity(300, 80_000)
        for begin in range(0, count, 1000):
            clients = [Client(post('/v1/chat/completions', chat(max_tokens=2, response_format={'type': 'json_schema', 'json_schema': {
                'name': 'x', 'schema': {'enum': [f'{i}', i, [f'name {i}']]}}}))) for i in range(begin, min(begin + 1000, count))]
            Swarm(server.port, 64).run(clients)
            for client in clients:
                status, _, body = parse(client.reply)
                self.assertEqual(status, 200, body[:300])
            if begin % 5000 == 0:
                print(f'{begin + len(clients)} forms, {server.resident_bytes() - idle >> 20} MiB more', flush=True)
        self.assertLess(server.resident_bytes() - idle, 512 << 20)  # what may be kept
        self.assertEqual(self.bytes_written(server), written)
        self.assertEqual(server.end(), 0)

    def bytes_written(self, server):
        """To files, without its log; what goes to sockets is not counted there."""
        return int(re.search(r'^wchar: (\d+)', pathlib.Path(f'/proc/{server.process.pid}/io').read_text(), re.M).group(1)) - len(server.log())


class Words(WithServer):
    FLAGS = (*WithServer.FLAGS, '--max-body-bytes', str(64 << 20))
    PREFIX = ('prlimit', '--stack=65536', '--')  # of each thread: nothing goes deeper with the text

    # C7

    def processor_time(self):
        """Of the server's threads, in seconds."""
        tasks = pathlib.Path(f'/proc/{self.server.process.pid}/task').iterdir()
        return sum(int((task / 'schedstat').read_text().split()[0]) for task in tasks) / 1e9

    def test_runs_of_one_class_go_through_the_tokenizer_and_back(self):
        for run in RUNS:
            times = {}
            for size in (1 << bits for bits in range(10, 10 + quantity(7, 13))):
                text = run * (size // len(run.encode()))
                for _ in range(quantity(1, 3)):
                    begun = self.processor_time()
                    ids = self.server.ok('/tokenize', {'prompt': text, 'add_special_tokens': False})['tokens']
                    times[size] = min(times.get(size, 1e9), self.processor_time() - begun)
                if len(ids) <= (1 << 20) - 2:  # more values no body may have
                    self.assertEqual(self.server.ok('/detokenize', {'tokens': ids})['prompt'], unicodedata.normalize('NFC', text), (run, size))
            status, _, reply = self.server.ask('/v1/chat/completions', chat(messages=[{'role': 'user', 'content': text}]))
            self.assertIn(status, (200, 400), reply[:300])
            ratios = [times[size] / times[size // 2] for size in times if size > 64 << 10]
            print(f'{run!r}: {" ".join(f"{1000 * seconds:.1f}" for seconds in times.values())} ms for 1 KiB and its doubles; at most {max(ratios, default=0):.2f} times for twice as much', flush=True)

    # C3

    def test_no_template_comes_with_a_request(self):
        for bomb in (*template_bombs(len(BOMBS)), *DEEP.values()):
            for path in '/v1/chat/completions', '/tokenize':
                status, _, text = self.server.ask(path, chat(chat_template=bomb))
                self.assertEqual((status, self.fault_of(status, text)['param']), (400, 'chat_template'))
            text = bomb[:5000]  # as a user's words it is text
            ids = self.server.ok('/tokenize', {'messages': [{'role': 'user', 'content': text}], 'chat_template_kwargs': {'enable_thinking': False}})['tokens']
            self.assertIn(text.strip(), self.server.ok('/detokenize', {'tokens': ids})['prompt'])


class Templates(unittest.TestCase):
    """C3: bombs in the template of the model itself, or of a request that is trusted."""

    def start(self, template):
        folder = model_with_template(template)
        self.addCleanup(shutil.rmtree, folder)
        return Server(str(folder), '--served-model-name', MODEL)

    def test_bombs_of_requests_are_refused(self):
        server = Server('--trust-request-chat-template')
        resident = server.resident_bytes()
        for i, bomb in enumerate((*template_bombs(quantity(24, 300)), *DEEP.values(), '{{ 1 }}' * 37_000 + '{{ raise_exception("no") }}', '{% for')):
            path, body = self.bodies()[i % 4]
            status, _, text = server.ask(path, {**body, 'chat_template': bomb})
            error = json.loads(text)['error']
            self.assertEqual(status, 400, (bomb[:80], path, text[:300]))
            self.assertTrue(error['param'] == 'chat_template' if 'param' in error else 'chat template' in error['message'] or 'chat_template' in error['message'], error)
        self.assertLess(server.resident_bytes() - resident, 64 << 20)
        for path, body in self.bodies():
            server.ok(path, body)
            server.ok(path, {**body, 'chat_template': '{{ messages[0].content }}'})
        self.assertEqual(server.end(), 0)

    def bodies(self, **kwargs):
        words = [{'role': 'user', 'content': 'x'}]
        return (('/v1/chat/completions', chat(chat_template_kwargs=kwargs)), ('/tokenize', {'messages': words, 'chat_template_kwargs': kwargs}),
                ('/v1/responses', {'model': MODEL, 'input': 'x', 'max_output_tokens': 2, 'chat_template_kwargs': kwargs}),
                ('/v1/messages', {'model': MODEL, 'messages': words, 'max_tokens': 2, 'chat_template_kwargs': kwargs}))

    def test_bombs_that_go_off_are_refused(self):
        bombs = template_bombs(300)
        server = self.start(''.join(f'{{% if bomb == {i} %}}{bomb}{{% endif %}}' for i, bomb in enumerate(bombs)) + '{{ messages[0].content }}')
        for path, body in self.bodies():
            server.ok(path, body)
        resident, asked, longest = server.resident_bytes(), 0, (0, '')
        for i in range(len(bombs)):
            for j, (path, body) in enumerate(self.bodies(bomb=i)):
                if (i + i // len(BOMBS) + j) % quantity(28, 1):
                    continue
                begun = time.monotonic()
                status, _, text = server.ask(path, body)
                longest = max(longest, (time.monotonic() - begun, bombs[i]))
                self.assertEqual(status, 400, (bombs[i], path, text[:300]))
                self.assertIn('the chat template refused the conversation', json.loads(text)['error']['message'], (bombs[i], path))
                asked += 1
        print(f'{asked} bombs, {server.resident_bytes() - resident >> 20} MiB more, refused within {1000 * longest[0]:.0f} ms ({longest[1]})', flush=True)
        self.assertLess(server.resident_bytes() - resident, 64 << 20)
        for path, body in self.bodies():
            server.ok(path, body)
        self.assertEqual(server.end(), 0)

    def test_templates_too_deep_to_read_are_refused(self):
        for name, bomb in DEEP.items():
            server = self.start(bomb)
            for path, body in self.bodies():
                status, _, text = server.ask(path, body)
                self.assertEqual(status, 400, (name, path, text[:300]))
            server.ok('/v1/completions', completion(max_tokens=2))
            self.assertEqual(server.end(), 0)


if __name__ == '__main__':
    sys.exit(faults_harness.main())
