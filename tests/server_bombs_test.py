#!/usr/bin/env python3
"""`serve` and what is hard to read: templates that are bombs, and runs of characters that are hard on a tokenizer. Rows C3 and C7 of the
acceptance table, with a bounded part of their quantities by default.

    server_bombs_test.py HASH_SERVER [--full] [tests]

HASH_SERVER: tests/hashsim/hash_server.cc, as for server_faults_test.py.
"""
import json
import pathlib
import shutil
import sys
import tempfile
import unicodedata
import unittest

import serve_harness
import server_faults_test as faults
from serve_harness import MODEL, Server, chat, completion
from server_faults_test import quantity

# Templates that would not end, or would take all memory; and those that no reader may follow down to their end.
BOMBS = {
    'loop': '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
    'range': '{{ range(1000000000) | list | length }}',
    'macro': '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
    'two_macros': '{% macro f() %}{{ g() }}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}',
    'recursive': '{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}',
    'doubling': '{% set n = namespace(t="x") %}{% for i in range(64) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}',
    'lists': '{% set n = namespace(t=[1]) %}{% for i in range(64) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t | length }}',
    'output': '{% for i in range(99999) %}{{ "x" * 9999 }}{% endfor %}',
    'times': '{{ "x" * 1000000000 }}',
    'replace': '{{ ("x" * 9999) | replace("x", "y" * 9999) }}',
    'join': '{{ range(9999) | join("x" * 9999) }}',
    'filters': '{% for i in range(999999) %}{{ "x" | upper | lower | trim | title }}{% endfor %}'}
DEEP = {'blocks': '{% if true %}' * 5500 + '{% endif %}' * 5500, 'brackets': '{{ ' + '(' * 6000 + '1' + ')' * 6000 + ' }}',
        'lists': '{{ ' + '[' * 6000 + ']' * 6000 + ' }}', 'filters': '{{ "x"' + ' | upper' * 10**6 + ' }}', 'not': '{{ ' + 'not ' * 10**5 + 'true }}'}
# Texts that are hard on a tokenizer: one class of characters all along, and what begins again and again.
RUNS = ('a', 'Z', 'é', '中', '👋', '7', ' ', '\n', '\t', ' \n', '!', 'a1', "'s", 'a\u0301', '\u200d', '<|im_st')


class Words(faults.WithServer):
    # C7

    def test_runs_of_one_class_go_through_the_tokenizer_and_back(self):
        for run in RUNS:
            for size in (1 << bits for bits in range(10, 10 + quantity(7, 13))):
                text = run * (size // len(run.encode()))
                ids = self.server.ok('/tokenize', {'prompt': text, 'add_special_tokens': False})['tokens']
                self.assertEqual(self.server.ok('/detokenize', {'tokens': ids})['prompt'], unicodedata.normalize('NFC', text), (run, size))
            status, _, reply = self.server.ask('/v1/chat/completions', chat(messages=[{'role': 'user', 'content': text}]))
            self.assertIn(status, (200, 400), reply[:300])

    # C3

    def test_no_template_comes_with_a_request(self):
        for bomb in (*BOMBS.values(), *DEEP.values()):
            for path in '/v1/chat/completions', '/tokenize':
                status, _, text = self.server.ask(path, chat(chat_template=bomb))
                self.assertEqual((status, self.fault_of(status, text)['param']), (400, 'chat_template'))
            text = bomb[:5000]  # as a user's words it is text
            ids = self.server.ok('/tokenize', {'messages': [{'role': 'user', 'content': text}], 'chat_template_kwargs': {'enable_thinking': False}})['tokens']
            self.assertIn(text.strip(), self.server.ok('/detokenize', {'tokens': ids})['prompt'])


class Templates(unittest.TestCase):
    """C3: bombs in the template of the model itself."""

    def start(self, template):
        folder = pathlib.Path(tempfile.mkdtemp(prefix='calandra_template_'))
        self.addCleanup(shutil.rmtree, folder)
        for file in (serve_harness.ROOT / 'demo' / 'demo-qwen3_5').iterdir():
            if file.name != 'chat_template.jinja':
                (folder / file.name).symlink_to(file)
        (folder / 'chat_template.jinja').write_text(template)
        return Server(str(folder), '--served-model-name', MODEL)

    def bodies(self, **kwargs):
        words = [{'role': 'user', 'content': 'x'}]
        return (('/v1/chat/completions', chat(chat_template_kwargs=kwargs)), ('/tokenize', {'messages': words, 'chat_template_kwargs': kwargs}),
                ('/v1/responses', {'model': MODEL, 'input': 'x', 'max_output_tokens': 2, 'chat_template_kwargs': kwargs}),
                ('/v1/messages', {'model': MODEL, 'messages': words, 'max_tokens': 2, 'chat_template_kwargs': kwargs}))

    def test_bombs_that_go_off_are_refused(self):
        server = self.start(''.join(f'{{% if bomb == "{name}" %}}{bomb}{{% endif %}}' for name, bomb in BOMBS.items()) + '{{ messages[0].content }}')
        for path, body in self.bodies():
            server.ok(path, body)
        resident, asked = server.resident_bytes(), 0
        for _ in range(quantity(1, 7)):
            for name in BOMBS:
                for path, body in self.bodies(bomb=name):
                    status, _, text = server.ask(path, body)
                    self.assertEqual(status, 400, (name, path, text[:300]))
                    self.assertIn('the chat template refused the conversation', json.loads(text)['error']['message'], (name, path))
                    asked += 1
        print(f'{asked} bombs, {server.resident_bytes() - resident >> 20} MiB more', flush=True)
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
    serve_harness.PROGRAM = sys.argv.pop(1)
    if '--full' in sys.argv:
        faults.FULL = True
        sys.argv.remove('--full')
    unittest.main()
