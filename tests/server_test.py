#!/usr/bin/env python3
"""`calandra serve` as clients meet it: the recorded checks of the API, streams, leaving clients, hostile requests, the end.

    server_test.py PROGRAM

Runs the built program on the demo model, over loopback. Nothing is asserted about time; loops that wait are bounded.
"""
import concurrent.futures
import http.client
import json
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import unittest

import gtest_report
import serve_harness
from serve_harness import CHECKS, LONG, LONGEST, MODEL, ROOT, Server, chat, completion, make_certificate, model_with_template

CHECKS_TO_SKIP = ('qwen_template',)  # the demo has a template of its own, which takes a chat without a user
# As Qwen3.5's.
REFUSES_WITHOUT_USER = ("{%- if not messages | selectattr('role', 'equalto', 'user') | list -%}"
                        "{{- raise_exception('No user query found in messages.') -}}{%- endif -%}")


class WithServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server('--speculative-config', '{"method": "mtp", "num_speculative_tokens": 2}', '--max-num-seqs', '8', longest=LONGEST)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.end() == 0

    # the recorded checks

    def run_checks(self, *arguments):
        if not CHECKS.is_dir():
            self.skipTest('no recorded checks beside the repository')
        done = subprocess.run([sys.executable, str(CHECKS / 'run_checks.py'), *arguments], capture_output=True, text=True, timeout=540)
        counts = done.stdout.strip().splitlines()[-1]
        print(counts, flush=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for number, what in re.findall(r'(\d+) (passed|skipped)', counts):
            gtest_report.record(self, f'recorded_checks_{what}', int(number))
        return counts

    def test_recorded_checks(self):
        self.run_checks(f'http://127.0.0.1:{self.server.port}', '--skip', *CHECKS_TO_SKIP)

    def test_recorded_checks_of_keys(self):
        server = Server('--api-key', 'secret')
        try:
            self.run_checks(f'http://127.0.0.1:{server.port}', '--checks', str(CHECKS / 'checks_auth.json'), '--model', MODEL, '--skip', *CHECKS_TO_SKIP)
        finally:
            server.end()

    def test_recorded_check_of_a_chat_without_a_user(self):
        template = (ROOT / 'demo' / 'demo-qwen3_5' / 'chat_template.jinja').read_text()
        folder = model_with_template(REFUSES_WITHOUT_USER + template)
        self.addCleanup(shutil.rmtree, folder)
        server = Server(str(folder), '--served-model-name', MODEL)
        try:
            counts = self.run_checks(f'http://127.0.0.1:{server.port}', '--only', 'chat/error/no_user_message')
            self.assertEqual(counts, '1 passed, 0 failed, 0 skipped')
        finally:
            server.end()

    # faults that say what to do

    def fault_of(self, path, body):
        status, _, text = self.server.ask(path, body)
        self.assertEqual(status, 400, text)
        return json.loads(text)['error']['message']

    def test_faults_say_what_to_do(self):
        self.assertIn('messages is empty: send at least one', self.fault_of('/v1/chat/completions', chat(messages=[])))
        form = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'enum': ['yes', 'no']}}}
        said = self.fault_of('/v1/completions', completion(response_format=form, allowed_token_ids=[1]))
        self.assertIn('exclude all that the output form allows', said)
        for empty in '', [], [''], [[]], ['a', '']:
            for path, field in ('/v1/completions', 'prompt'), ('/v1/embeddings', 'input'):
                status, _, text = self.server.ask(path, {'model': MODEL, field: empty})
                error = json.loads(text)['error']
                self.assertEqual((status, error['param'], error['message']), (400, field, f'{field} must not be empty'))
        calls = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'tool_calls': [{'function': {'arguments': '{}'}}]}]
        self.assertIn('tool_calls with the name of a function', self.fault_of('/v1/chat/completions', chat(messages=calls)))
        self.assertIn('input must be a string or a list', self.fault_of('/v1/responses', {'model': MODEL, 'input': {'a': 1}}))
        self.assertIn('system must be a string or a list', self.fault_of('/v1/messages', {**chat(), 'system': 5}))
        self.assertIn('the body is empty', self.fault_of('/v1/chat/completions', b''))
        status, _, text = self.server.ask('/chat/completions', chat())
        self.assertEqual(status, 404)
        self.assertIn('/openapi.json lists the paths', text.decode())

    def test_whole_numbers_may_have_a_point(self):
        for path, usual, fields in (('/v1/completions', completion(), 'max_tokens n seed truncate_prompt_tokens priority'), ('/v1/chat/completions', chat(), 'max_completion_tokens top_k'),
                                    ('/v1/messages', chat(), 'max_tokens'), ('/v1/responses', {'model': MODEL, 'input': 'x'}, 'max_output_tokens'),
                                    ('/v1/completions', completion(), 'prompt'), ('/detokenize', {}, 'tokens')):
            for field in fields.split():
                one = 0 if field == 'priority' else 1
                wrap = (lambda number: [number]) if field in ('prompt', 'tokens') else (lambda number: number)
                self.server.ok(path, {**usual, field: wrap(float(one))})
                self.fault_of(path, {**usual, field: wrap(one + 0.5)})

    def test_a_missing_key_says_how_to_send_one(self):
        server = Server('--api-key', 'secret')
        try:
            for path in '/v1/models', '/v1/messages':
                status, headers, _ = server.ask(path)
                self.assertEqual((status, headers['WWW-Authenticate']), (401, 'Bearer'))
        finally:
            server.end()

    # thoughts

    def said(self, server, body):
        """The message of a chat's answer, which must be what a stream of it joins to."""
        message = server.ok('/v1/chat/completions', body)['choices'][0]['message']
        deltas = [chunk['choices'][0]['delta'] for chunk in server.stream('/v1/chat/completions', body)]
        for name in ('content', 'reasoning_content'):
            self.assertEqual(''.join(delta.get(name) or '' for delta in deltas), message.get(name) or '', name)
        return message

    def test_a_user_may_write_the_tags_of_thoughts(self):
        bailing = Server('demo:bailing')
        try:
            for text in 'What is 2 + 3?', 'What does <think> mean?', 'And </think>?', '</think><think>':
                ask = [{'role': 'user', 'content': text}]
                for thinking in False, True:
                    message = self.said(self.server, chat(messages=ask, chat_template_kwargs={'enable_thinking': thinking}))
                    self.assertEqual(bool(message.get('reasoning_content')), thinking, (text, message))
                message = self.said(bailing, chat(model='demo:bailing', messages=ask))  # its template opens no thoughts
                self.assertNotIn('reasoning_content', message, text)
                self.assertTrue(message['content'], text)
        finally:
            bailing.end()

    def test_a_template_of_a_request_that_is_trusted(self):
        own = '{{ "<|im_start|>" + messages[-1].content + name }}{% if add_generation_prompt %}!{% endif %}'
        words = [{'role': 'user', 'content': 'a<|im_start|>b'}]
        trusting = Server('--trust-request-chat-template')
        try:
            body = {'messages': words, 'chat_template': own, 'chat_template_kwargs': {'name': 'c'}}
            ids = trusting.ok('/tokenize', body)['tokens']
            start = trusting.ok('/tokenize', {'prompt': '<|im_start|>', 'add_special_tokens': False})['tokens']
            self.assertEqual(trusting.ok('/detokenize', {'tokens': ids})['prompt'], '<|im_start|>a<|im_start|>bc!')
            self.assertEqual([ids.count(start[0]), ids[0]], [1, start[0]])  # a user's words are words
            said = trusting.ok('/v1/chat/completions', chat(**body, return_token_ids=True))
            self.assertEqual(said['prompt_token_ids'], ids)
            self.assertNotEqual(trusting.ok('/tokenize', {'messages': words})['tokens'], ids)
            self.assertEqual(trusting.ok('/tokenize', {'messages': words, 'chat_template': None})['tokens'], trusting.ok('/tokenize', {'messages': words})['tokens'])
        finally:
            trusting.end()
        status, _, text = self.server.ask('/tokenize', body)
        self.assertEqual((status, json.loads(text)['error']['param']), (400, 'chat_template'))
        self.assertIn('--trust-request-chat-template', json.loads(text)['error']['message'])

    def test_a_form_ends_before_min_tokens(self):
        enum = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'enum': ['yes', 'no']}}}
        for more in ({}, {'stop_token_ids': [5]}, {'n': 2, 'temperature': 1.0}):
            for choice in self.server.ok('/v1/completions', completion(response_format=enum, **{'min_tokens': 20, 'max_tokens': 40, **more}))['choices']:
                self.assertIn(json.loads(choice['text']), ['yes', 'no'])
                self.assertEqual((choice['finish_reason'], choice['stop_reason']), ('stop', None))
        # Where it may go on it does.
        said = self.server.ok('/v1/completions', completion(guided_regex='[ab]*', min_tokens=20, max_tokens=40, logit_bias={'1': 100}, return_token_ids=True))
        self.assertGreaterEqual(len(said['choices'][0]['token_ids']), 20)

    # streams

    def test_a_stream_is_the_answer(self):
        for seed in range(4):
            body = completion(temperature=1.0, seed=seed, n=2, logprobs=2, return_token_ids=True, prompt=['Once', '语言 👋'])
            whole = self.server.ok('/v1/completions', body)['choices']
            chunks = self.server.stream('/v1/completions', body)
            self.assertEqual([choice['index'] for choice in whole], [0, 1, 2, 3])
            for choice in whole:
                mine = [c['choices'][0] for c in chunks if c['choices'][0]['index'] == choice['index']]
                self.assertEqual(''.join(c['text'] for c in mine), choice['text'])
                self.assertEqual(sum((c['token_ids'] for c in mine), []), choice['token_ids'])
                self.assertEqual(mine[-1]['finish_reason'], choice['finish_reason'])
                for name in ('tokens', 'token_logprobs', 'text_offset', 'top_logprobs'):
                    parts = [c['logprobs'][name] for c in mine if c['logprobs']]
                    self.assertEqual(sum(parts, []), choice['logprobs'][name], name)

    def test_a_chat_stream_is_the_answer(self):
        for seed in range(3):
            body = chat(temperature=1.2, seed=seed, n=2, logprobs=True, top_logprobs=2, max_tokens=40)
            whole = self.server.ok('/v1/chat/completions', body)
            chunks = self.server.stream('/v1/chat/completions', {**body, 'stream_options': {'include_usage': True}})
            self.assertEqual(chunks[-1]['usage']['completion_tokens'], whole['usage']['completion_tokens'])
            self.assertEqual(chunks[-1]['choices'], [])
            for choice in whole['choices']:
                mine = [c['choices'][0] for c in chunks if c['choices'] and c['choices'][0]['index'] == choice['index']]
                self.assertEqual(mine[0]['delta'], {'role': 'assistant', 'content': ''})
                for name in ('content', 'reasoning', 'reasoning_content'):
                    self.assertEqual(''.join(c['delta'].get(name) or '' for c in mine), choice['message'].get(name) or '', name)
                self.assertEqual(sum((c['logprobs']['content'] for c in mine if c['logprobs']), []), choice['logprobs']['content'])

    def test_many_streams_at_once_are_what_they_are_alone(self):
        bodies = [completion(temperature=1.0, seed=i, max_tokens=8 + i % 9, prompt='Word ' * (1 + i % 7)) for i in range(48)]
        alone = [self.server.ok('/v1/completions', body)['choices'][0]['text'] for body in bodies]
        with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
            chunks = list(pool.map(lambda body: self.server.stream('/v1/completions', body), bodies))
        self.assertEqual([''.join(c['choices'][0]['text'] for c in one) for one in chunks], alone)

    # clients that leave

    def leaves(self, body, read_first):
        before = self.server.metric('vllm:request_success_total', 'finished_reason="abort"')
        connection = self.server.connect()
        connection.request('POST', '/v1/completions', json.dumps(body))
        if read_first:
            connection.getresponse().read(20)
        else:
            self.assertTrue(self.server.until(lambda: self.server.metric('vllm:num_requests_running') == 1))
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        ended = lambda: self.server.metric('vllm:request_success_total', 'finished_reason="abort"') == before + body.get('n', 1)
        self.assertTrue(self.server.until(ended))
        self.assertTrue(self.server.until(lambda: self.server.metric('vllm:num_requests_running') == 0))

    def test_a_client_that_leaves_a_stream_ends_it(self):
        self.leaves(completion(**{**LONG, 'stream': True, 'n': 2}), read_first=True)

    def test_a_client_that_leaves_before_its_answer_ends_it(self):
        self.leaves(completion(**LONG), read_first=False)

    # hostile requests

    def test_hostile_requests_harm_nobody(self):
        head = b'POST /v1/completions HTTP/1.1\r\nHost: x\r\n'
        body = json.dumps(completion()).encode()
        whole = head + b'Content-Length: %d\r\n\r\n' % len(body) + body
        for cut in range(0, len(whole), 7):
            self.server.raw(whole[:cut], half=True)
        for status, data in {
                b'413': head + b'Content-Length: 99999999999\r\n\r\n',
                b'431': head + b'X-Long: ' + b'x' * 100_000 + b'\r\n\r\n',
                b'415': head + b'Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}',
                b'400': b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n'}.items():
            self.assertTrue(self.server.raw(data).startswith(b'HTTP/1.1 ' + status), status)
        for wrong in (b'[' * 100_000, b'{"model":' * 50_000, b'\xff\xfe', b'{"model": "\xed\xa0\x80"}', b'{"a": 1e999999}'):
            self.assertEqual(self.server.ask('/v1/completions', wrong)[0], 400)
        for field, value in (('prompt', [[1]] * 100_000), ('n', 10**9), ('n', 2**64), ('prompt', [2**31]), ('max_tokens', 2**31 - 1),
                             ('stop', ['x'] * 1000), ('logit_bias', {'1': 'x'}), ('seed', 'x'), ('request_id', 5)):
            self.assertEqual(self.server.ask('/v1/completions', completion(**{field: value}))[0], 400, field)
        self.assertEqual(self.server.ok('/v1/completions', completion())['choices'][0]['finish_reason'], 'length')

    def test_request_ids_come_back(self):
        _, headers, _ = self.server.ask('/v1/completions', completion(), headers={'X-Request-Id': 'mine-1'})
        self.assertEqual(headers['X-Request-Id'], 'mine-1')
        _, headers, _ = self.server.ask('/health', headers={'X-Request-Id': 'a"b'})
        self.assertTrue(headers['X-Request-Id'].startswith('req-'))

    def test_the_access_log_says_nothing_of_prompts(self):
        secret = 'xyzzy-plugh'
        self.server.ok('/v1/completions', completion(prompt=secret))
        self.server.ask('/health?' + secret)
        self.server.ask('/v1/completions', {'model': MODEL, 'prompt': secret, 'temperature': -1})
        self.assertTrue(any(row['path'] == '/v1/completions' and row['status'] == 400 for row in self.server.access()))
        self.assertNotIn(secret, pathlib.Path(self.server.access_path).read_text() + self.server.log())

    def test_messages_of_all_kinds(self):
        call = {'id': 'c', 'type': 'function', 'function': {'name': 'f', 'arguments': '{"a": '}}
        for messages in (
                [{'role': 'developer', 'content': 'a'}, {'role': 'user', 'content': 'b'}, {'role': 'system', 'content': 'c'}],
                [{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]}],
                [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': None, 'tool_calls': [call]},
                 {'role': 'tool', 'tool_call_id': 'c', 'content': [{'type': 'text', 'text': 'x'}]}],
                [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b', 'reasoning': 'c'}, {'role': 'user', 'content': 'd'}]):
            self.server.ok('/v1/chat/completions', chat(messages=messages))
        merged = self.server.ok('/tokenize', {'messages': [{'role': 'system', 'content': 'a\n\nc'}, {'role': 'user', 'content': 'b'}]})
        late = self.server.ok('/tokenize', {'messages': [{'role': 'system', 'content': 'a'}, {'role': 'user', 'content': 'b'}, {'role': 'system', 'content': 'c'}]})
        self.assertEqual(merged['tokens'], late['tokens'])


class Ends(unittest.TestCase):
    def start_stream(self, server, **body):
        connection = server.connect()
        connection.request('POST', '/v1/completions', json.dumps(completion(**{**LONG, 'stream': True, **body})))
        reply = connection.getresponse()
        first = reply.read(30)
        return reply, first

    def test_a_stream_that_runs_comes_to_its_end(self):
        server = Server('--shutdown-timeout', '600')
        reply, first = self.start_stream(server, max_tokens=300)
        server.process.send_signal(signal.SIGTERM)
        rest = first + reply.read()
        self.assertTrue(rest.endswith(b'data: [DONE]\n\n'))
        self.assertNotIn(b'"error"', rest)
        self.assertEqual(server.end(), 0)

    def test_a_stream_that_is_given_up_says_so(self):
        server = Server('--shutdown-timeout', '0', longest=LONGEST)
        reply, first = self.start_stream(server)
        server.process.send_signal(signal.SIGTERM)
        rest = first + reply.read()
        self.assertIn(b'"error"', rest)
        self.assertEqual(server.end(), 0)

    def test_a_full_queue_refuses(self):
        server = Server('--max-num-seqs', '1', '--max-waiting-requests', '2', longest=LONGEST)
        streams = [self.start_stream(server)]
        statuses = []

        def ask():
            return server.ask('/v1/completions', completion(max_tokens=1))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(ask) for _ in range(8)]
            done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
            self.assertTrue(done)
            streams[0][0].close()
            statuses = [future.result() for future in futures]
        refused = [one for one in statuses if one[0] == 429]
        self.assertTrue(refused)
        self.assertTrue(all(one[0] in (200, 429) for one in statuses))
        self.assertEqual(refused[0][1]['Retry-After'], '1')
        self.assertEqual(server.end(), 0)

    def test_tls(self):
        with tempfile.TemporaryDirectory() as folder:
            made = make_certificate(folder)
            if not made:
                self.skipTest('no openssl to make a certificate with')
            certificate, key = made
            server = Server('--ssl-certfile', certificate, '--ssl-keyfile', key, '--max-num-seqs', '8', longest=LONGEST)
            context = ssl.create_default_context(cafile=certificate)
            context.check_hostname = False
            connection = http.client.HTTPSConnection('127.0.0.1', server.port, context=context, timeout=120)
            for stream in (False, True, False):
                connection.request('POST', '/v1/completions', json.dumps(completion(stream=stream)))
                reply = connection.getresponse()
                self.assertEqual(reply.status, 200)
                self.assertTrue(reply.read())
            connection.close()
            self.assertEqual(server.raw(b'GET /health HTTP/1.1\r\n\r\n')[:8], b'')
            body = json.dumps(completion(**LONG, n=8)).encode()
            leaving = context.wrap_socket(socket.create_connection(('127.0.0.1', server.port), timeout=120))
            leaving.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % len(body) + body)
            leaving.setblocking(False)
            with self.assertRaises(ssl.SSLWantReadError):  # says goodbye, which TLS 1.3 encrypts, and waits for the server's
                leaving.unwrap()
            leaving.close()
            self.assertTrue(server.until(lambda: any(row['status'] == 499 for row in server.access())))
            self.assertEqual(server.end(), 0)


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv.pop(1)
    sys.exit(gtest_report.main())
